"""How a pruning method meets a model it does not own: hooks that look, score and cut, and leave with the context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from repshift_cli.kernels.select import gather, top
from repshift_cli.ranges import part
from repshift_cli.records import Case, Site, Subject, kept

Seen = dict[str, Tensor]
"""What a method asked to see of a block, each (B, P + N, C): `x`, `attention`, `middle` (x'), `mlp`, `out` (x^)."""


@contextmanager
def pruned(subject: Subject, method: Any, case: Case) -> Iterator[None]:
    """Within it the subject drops tokens at the end of the blocks `case.layers`; afterwards it is as it was.

    `method` is None (no pruning) or a module of this room: `needs(case)` names what it must see, then either
    `score(seen, case)` gives (B, N) with the highest kept, or `cut(hidden, prefix, count)` gives the shorter hidden
    states itself. At keep 1 nothing is hooked, so the model is the untouched one bit for bit.
    """
    handles: list[Any] = []
    try:
        if method is not None and case.keep < 1:
            for layer in case.layers:
                handles += _hook(subject.sites[layer - 1], subject.prefix, method, case)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(site: Site, prefix: int, method: Any, case: Case) -> list[Any]:
    seen: Seen = {}
    handles = [_watch(site, name, prefix, seen) for name in method.needs(case) if name != "out"]

    def at_end(module: Any, args: Any, output: Any) -> Any:
        hidden = tokens_of(output)
        count = kept(hidden.shape[1] - prefix, case.keep)
        if hasattr(method, "cut"):
            with part("cut"):
                shorter = method.cut(hidden, prefix, count)
        else:
            seen["out"] = hidden[:, prefix:]
            with part("score"):
                scores = method.score(seen, case)
            with part("select"):
                indices = top(scores, count)
            with part("cut"):
                shorter = gather(hidden, prefix, indices)
        seen.clear()
        return shorter if isinstance(output, Tensor) else tuple(shorter if v is hidden else v for v in output)

    return [*handles, site.block.register_forward_hook(at_end)]


def _watch(site: Site, name: str, prefix: int, seen: Seen) -> Any:
    """Hook that keeps one tensor of the block, prefix rows cut off: an input (`x`, `middle`) or a branch's output."""

    def see_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[name] = tokens_of((*args, *kwargs.values()))[:, prefix:]

    def see_output(module: Any, args: Any, output: Any) -> None:
        seen[name] = tokens_of(output)[:, prefix:]

    if name in ("x", "middle"):
        owner = site.block if name == "x" else site.middle
        return owner.register_forward_pre_hook(see_input, with_kwargs=True)
    branch = site.attention if name == "attention" else site.mlp
    return branch.register_forward_hook(see_output)


def tokens_of(value: Any) -> Tensor:
    """The tensor itself, or the first (B, N, C) one among several, as `find_sites` looks for it."""
    if isinstance(value, Tensor):
        return value
    return next(v for v in value if isinstance(v, Tensor) and v.ndim == 3)
