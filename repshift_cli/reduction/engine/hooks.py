"""How a pruning method meets a model it does not own: hooks that look, score and cut, and leave with the context."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels.along import along, biased_along
from repshift_cli.kernels.sdpa import Answer, AttentionCall, watched_by
from repshift_cli.profiling.annotations import part
from repshift_cli.records import Case, Site, Subject, UsageError, dropped_share
from repshift_cli.reduction import Method
from repshift_cli.reduction.engine import grid
from repshift_cli.reduction.engine.fused_add import awaiting
from repshift_cli.reduction.engine.seen import Seen, needs
from repshift_cli.reduction.engine.selection import Cut, chosen, ends_protected


@contextmanager
def pruned(subject: Subject, method: Method | None, case: Case, noting: bool = False) -> Iterator[Dropped]:
    """Within it the subject drops tokens at the end of the blocks `case.layers`; afterwards it is as it was.

    What it gives tells which places the last forward kept, of a grid only with `noting`. No `method` is no pruning.
    At keep 1 nothing is hooked, so the model is the untouched one bit for bit.
    """
    handles: list[Any] = []
    dropped = Dropped(subject, noting)
    try:
        with ExitStack() as stack:
            if method is not None and case.keep < 1 and case.layers:
                if subject.biased:
                    stack.enter_context(watched_by(dropped.biased))
                for handle in _hooked(subject, method, case, dropped):
                    handles.append(handle)
            yield dropped
    finally:
        for handle in handles:
            handle.remove()


class Dropped:
    """What one forward has dropped so far, and what later modules are given beside the hidden states, cut alike."""

    def __init__(self, subject: Subject, noting: bool = False) -> None:
        self.roles: Tensor | None = None
        self._subject, self._noting = subject, noting
        self._tokens, self._device = 0, torch.device("cpu")
        self._cuts: list[Cut] = []
        self._done: list[tuple[Any, Any]] = []
        self._grids: list[Callable[[], Tensor]] = []

    def begin(self, module: Any, args: Any, kwargs: Any) -> None:
        """Pre-hook of the whole model."""
        self._cuts, self._done, self._grids = [], [], []
        if self._subject.roles is not None:
            given = dict(zip(_names(module.__class__.forward), args, strict=False)) | kwargs
            self.roles = ends_protected(self._subject.roles(given), self._subject)

    def free(self, hidden: Tensor) -> Tensor:
        """Without the leading and trailing tokens that stay anyway, a view; whole where roles name what stays."""
        if self.roles is not None:
            return hidden
        return hidden[:, self._subject.prefix : hidden.shape[1] - self._subject.suffix]

    def add(self, cut: Cut, hidden: Tensor) -> None:
        """One more cut, of the tokens of `hidden` (B, N, C)."""
        self._tokens = self._tokens if self._cuts else hidden.shape[1]
        self._device = hidden.device
        self._cuts.append(cut)
        self._done = []

    def add_grid(self, places: Callable[[], Tensor]) -> None:
        """One more cut of a grid: what gives the places (B, h w) that it keeps."""
        if self._noting:
            self._grids.append(places)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """What the last forward kept after each cut: places (B, k) in the sequence that entered the first block.

        Of a grid they are places in the stage's own output, row by row. One row stands for all samples where a method
        chooses alike in all of them.
        """
        if self._grids or not self._cuts:
            return tuple(places() for places in self._grids)
        device = self._device
        return tuple(self._positions(device, n) for n in range(1, len(self._cuts) + 1))

    def rest(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook of a later block or reader: its arguments with what belongs to dropped tokens taken out."""
        if not self._cuts:
            return None
        hidden = tokens_of((*args, *kwargs.values()))
        names = (*_names(module.__class__.forward), *[""] * len(args))
        given = tuple(v if v is hidden else self._shortened(v, n, hidden) for v, n in zip(args, names, strict=False))
        return given, {n: v if v is hidden else self._shortened(v, n, hidden) for n, v in kwargs.items()}

    def _shortened(self, value: Any, name: str, hidden: Tensor) -> Any:
        """Once per cut and value, found again by `is`: torch.compile cannot follow an id."""
        if not isinstance(value, (Tensor, tuple, list, dict)):
            return value
        for known, shorter in self._done:
            if known is value:
                return shorter
        subject, positions = self._subject, self._positions(hidden.device)
        prefix = subject.prefix if subject.own_prefix is None else subject.own_prefix
        shorter = along(value, name, self._tokens, prefix, positions, subject.spread, len(hidden))
        self._done.append((value, shorter))
        return shorter

    def biased(self, call: AttentionCall, answer: Answer) -> Tensor:
        """Watcher of attention calls: biases between all tokens, cut to those still there."""
        if not self._cuts:
            return answer(call)
        return answer(biased_along(call, self._tokens, self._positions(call.query.device)))

    def _positions(self, device: torch.device, cuts: int | None = None) -> Tensor:
        """The tokens still there (after that many cuts), by their places at the first block: (B | 1, k)."""
        places = torch.arange(self._tokens, device=device).view(1, -1, 1)
        return reduce(lambda rows, cut: cut.rows(rows), self._cuts[:cuts], places).squeeze(-1)


@cache
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a module's positional arguments."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in inspect.signature(forward).parameters.values() if p.kind in kinds)[1:]


def _hooked(subject: Subject, method: Method, case: Case, dropped: Dropped) -> Iterator[Any]:
    yield subject.module.register_forward_pre_hook(dropped.begin, with_kwargs=True)
    behind = [site.block for site in subject.sites[case.layers[0] :]] + [*subject.readers]
    for module in behind if subject.companions else subject.readers:
        yield module.register_forward_pre_hook(dropped.rest, with_kwargs=True)
    for layer in case.layers:
        site = subject.sites[layer - 1]
        yield from (
            grid.hooks(site, method, case, dropped.add_grid)
            if subject.grid
            else _hook(site, subject, method, case, dropped)
        )


def _hook(site: Site, subject: Subject, method: Method, case: Case, dropped: Dropped) -> Iterator[Any]:
    """Hooks of one pruned block: they look at what the method needs, choose as soon as all of it is there, and cut."""
    seen: Seen = {}
    chosen_early: list[Cut] = []
    share = dropped_share(case.keep)
    needed = needs(method, case)
    for name in needed:
        if name != "resid_post":
            yield _watch(site, name, dropped, seen)

    def choose(hidden: Tensor) -> Cut:
        seen["rows"] = next(iter(seen.values())) if seen else dropped.free(hidden)
        length = hidden.shape[1]
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
        return later if isinstance(output, Tensor) else tuple(later if v is branch else v for v in output)

    def at_end(module: Any, args: Any, output: Any) -> Any:
        hidden = tokens_of(output)
        if chosen_early and hidden.shape[1] == chosen_early[0].stay:
            return None
        if "resid_post" in needed:
            seen["resid_post"] = dropped.free(hidden)
        cut = chosen_early[0] if chosen_early else choose(hidden)
        with part("cut"):
            shorter = cut.rows(hidden)
        return shorter if isinstance(output, Tensor) else tuple(shorter if v is hidden else v for v in output)

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


def tokens_of(value: Any) -> Tensor:
    """The tensor itself, or the first (B, N, C) one among several, as `find_sites` looks for it."""
    if isinstance(value, Tensor):
        return value
    return next(v for v in value if isinstance(v, Tensor) and v.ndim == 3)
