"""How a pruning method meets a model it does not own: hooks that look, score and cut, and leave with the context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels.sdpa import watched_by
from repshift_cli.profiling.annotations import part
from repshift_cli.records import Case, Site, Subject, UsageError, shares_of
from repshift_cli.reduction import Method, with_defaults
from repshift_cli.reduction.engine import grid
from repshift_cli.reduction.engine.fused_add import awaiting
from repshift_cli.reduction.engine.heard import Hearing, check_heard
from repshift_cli.reduction.engine.reducing import Reducer, check_reducing
from repshift_cli.reduction.engine.seen import Seen, needs, place_of
from repshift_cli.reduction.engine.selection import Cut, Share, chosen
from repshift_cli.reduction.engine.state import Dropped, tokens_of, with_tokens


@contextmanager
def pruned(subject: Subject, method: Method | None, case: Case, noting: bool = False) -> Iterator[Dropped]:
    """Within it the subject reduces its tokens in the blocks `case.layers`; afterwards it is as it was.

    What it gives tells which places the last forward kept and what became of the others, of a grid only with `noting`.
    No `method` is no reduction. At keep 1, and where none is to leave, nothing is hooked: the model is the untouched
    one bit for bit.
    """
    handles: list[Any] = []
    dropped = Dropped(subject, noting)
    try:
        with ExitStack() as stack:
            if method is not None and (layers := shares_of(case)):
                method = with_defaults(method)
                hearing = Hearing(method, case)
                if hearing.needed:
                    stack.enter_context(watched_by(hearing.attended))
                if subject.biased:
                    stack.enter_context(watched_by(dropped.biased))
                for handle in _hooked(subject, method, case, layers, dropped, hearing):
                    handles.append(handle)
            yield dropped
    finally:
        for handle in handles:
            handle.remove()


def _hooked(
    subject: Subject, method: Method, whole: Case, layers: dict[int, Share], dropped: Dropped, hearing: Hearing
) -> Iterator[Any]:
    seen = {layer: Seen.of(layer, len(subject.sites)) for layer in layers}
    yield subject.module.register_forward_pre_hook(dropped.begin, with_kwargs=True)
    itself = set(layers) if place_of(method, whole) == "start" else set()  # such a block sees to its arguments itself
    later = [n for n in range(min(layers) + 1, len(subject.sites) + 1) if n not in itself]
    behind = [*(subject.sites[n - 1].block for n in later), *subject.readers]
    for module in behind if subject.companions else subject.readers:
        yield module.register_forward_pre_hook(dropped.rest, with_kwargs=True)
    if method.reduce is not None:
        check_reducing(subject, method, whole)
        yield subject.module.register_forward_pre_hook(hearing.begin)
    if hearing.needed and not subject.grid:
        yield from hearing.hooks(subject, seen)
    for layer, share in layers.items():
        site, case = subject.sites[layer - 1], whole.at(layer)
        if subject.grid:
            yield from grid.hooks(site, method, case, share, dropped.add_grid)
        elif method.reduce is not None:
            reduce = Reducer(subject, method, case, seen[layer], share, dropped, hearing)
            yield from reduce.hooks(site)
        else:
            yield from _hook(site, subject, method, case, share, dropped, seen[layer])


def _hook(
    site: Site, subject: Subject, method: Method, case: Case, share: Share, dropped: Dropped, seen: Seen
) -> Iterator[Any]:
    """Hooks of one pruned block: they look at what the method needs, choose as soon as all of it is there, and cut."""
    chosen_early: list[Cut] = []
    needed = needs(method, case)
    for name in needed:
        if name != "resid_post":
            yield _watch(site, name, dropped, seen)

    def choose(hidden: Tensor) -> Cut:
        seen["rows"] = next(iter(seen.values())) if seen else dropped.free(hidden)
        length = hidden.shape[1]
        check_heard(method, seen, case)
        cut, dropped.roles = chosen(subject, method, case, seen, length, dropped.roles, share)
        dropped.add(cut, hidden)
        seen.clear()
        return cut

    def at_branch(module: Any, args: Any, output: Any) -> Any:
        chosen_early.clear()
        branch = tokens_of(output)
        if torch.compiler.is_compiling() or type(branch) is not Tensor:
            return None
        chosen_early.append(choose(branch))
        later = awaiting(branch, chosen_early[0])
        return with_tokens(output, branch, later)

    def at_end(module: Any, args: Any, output: Any) -> Any:
        hidden = tokens_of(output)
        if chosen_early and hidden.shape[1] == chosen_early[0].stay:
            return None
        if "resid_post" in needed:
            seen["resid_post"] = dropped.free(hidden)
        cut = chosen_early[0] if chosen_early else choose(hidden)
        with part("cut"):
            return with_tokens(output, hidden, cut.rows(hidden))

    last = site.mlp if site.mlp is not None else site.attention
    # parallel branches may be summed before x is added, or the MLP run first: these are cut at the block's end
    if last is not None and "resid_post" not in needed and not site.parallel:
        yield last.register_forward_hook(at_branch)
    yield site.block.register_forward_hook(at_end)


def _watch(site: Site, name: str, dropped: Dropped, seen: Seen) -> Any:
    """Hook that keeps one tensor of the block, without protected ends: an input (`resid_...`) or an output."""

    def see_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[name] = dropped.free(tokens_of((*args, *kwargs.values())))

    def see_output(module: Any, args: Any, output: Any) -> None:
        seen[name] = dropped.free(tokens_of(output))

    if name in ("resid_pre", "resid_mid"):
        owner = site.block if name == "resid_pre" else site.middle
        return owner.register_forward_pre_hook(see_input, with_kwargs=True)
    operation, branch = ("attention", site.attention) if name == "attn_out" else ("mlp", site.mlp)
    if branch is None:
        raise UsageError(f"the blocks of this model have no {operation} branch, which the method scores by")
    return branch.register_forward_hook(see_output)


def _free(hidden: Tensor, subject: Subject) -> Tensor:
    """Without the leading and trailing tokens that stay anyway: a view."""
    return hidden[:, subject.prefix : hidden.shape[1] - subject.suffix]
