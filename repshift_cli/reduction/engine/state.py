"""What one forward has reduced so far, and what later modules are given beside the hidden states, reduced alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from repshift_cli.kernels.along import along, biased_along
from repshift_cli.kernels.sdpa import Answer, AttentionCall
from repshift_cli.records import Subject
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.selection import Cut, ends_protected


class Traced(NamedTuple):
    """Where the tokens that entered the first block are behind one reduction.

    `places` (B | 1, k) are those of the rows still there, -1 for one that a method appended; `ends` (B | 1, N) is the
    row that each token is in now, its own or the one that it was merged into, and -1 where it was dropped.
    """

    places: Tensor
    ends: Tensor


class Dropped:
    """The reductions of one forward, each a cut or a merge."""

    def __init__(self, subject: Subject, noting: bool = False) -> None:
        self.roles: Tensor | None = None
        self._subject, self._noting = subject, noting
        self._device = torch.device("cpu")
        self._cuts: list[Cut | Reduction] = []
        self._lengths: list[int] = []
        self._done: list[tuple[Any, Any]] = []
        self._grids: list[Callable[[], Tensor]] = []

    def begin(self, module: Any, args: Any, kwargs: Any) -> None:
        """Pre-hook of the whole model."""
        self._cuts, self._lengths, self._done, self._grids = [], [], [], []
        if self._subject.roles is not None:
            given = dict(zip(_names(module.__class__.forward), args, strict=False)) | kwargs
            self.roles = ends_protected(self._subject.roles(given), self._subject)

    def free(self, hidden: Tensor) -> Tensor:
        """Without the leading and trailing tokens that stay anyway, a view; whole where roles name what stays."""
        if self.roles is not None:
            return hidden
        return hidden[:, self._subject.prefix : hidden.shape[1] - self._subject.suffix]

    def add(self, cut: Cut | Reduction, hidden: Tensor) -> None:
        """One more reduction, of the tokens of `hidden` (B, N, C)."""
        self._device = hidden.device
        self._cuts.append(cut)
        self._lengths.append(hidden.shape[1])
        self._done = []

    def add_grid(self, places: Callable[[], Tensor]) -> None:
        """One more cut of a grid: what gives the places (B, h w) that it keeps."""
        if self._noting:
            self._grids.append(places)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """What the last forward kept after each cut: places (B, k) in the sequence that entered the first block.

        Of a grid they are places in the stage's own output, row by row. One row stands for all samples where a method
        chooses alike in all of them. A merged token has the place of what it was merged into, an appended one -1.
        """
        if self._grids or not self._cuts:
            return tuple(places() for places in self._grids)
        return tuple(self._positions(self._device, n) for n in range(1, len(self._cuts) + 1))

    @property
    def traced(self) -> tuple[Traced, ...]:
        """What became of the tokens after each reduction of the last forward; of a grid nothing."""
        if not self._cuts:
            return ()
        ends = torch.arange(self._lengths[0], device=self._device).unsqueeze(0)
        found = []
        for places, cut, length in zip(self.kept, self._cuts, self._lengths, strict=True):
            step = cut.ends(length, self._device)
            ends = ends.expand(max(len(step), len(ends)), -1)
            ends = torch.where(ends < 0, -1, step.expand(len(ends), -1).gather(1, ends.clamp_min(0)))
            found.append(Traced(places, ends))
        return tuple(found)

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
        shorter = along(value, name, self._lengths[0], prefix, positions, subject.spread, len(hidden))
        self._done.append((value, shorter))
        return shorter

    def biased(self, call: AttentionCall, answer: Answer) -> Tensor:
        """Watcher of attention calls: biases between all tokens, cut to those still there."""
        if not self._cuts:
            return answer(call)
        return answer(biased_along(call, self._lengths[0], self._positions(call.query.device)))

    def _positions(self, device: torch.device, cuts: int | None = None) -> Tensor:
        """The tokens still there (after that many cuts), by their places at the first block: (B | 1, k)."""
        places = torch.arange(self._lengths[0], device=device).view(1, -1, 1)
        return reduce(lambda rows, cut: cut.places(rows), self._cuts[:cuts], places).squeeze(-1)


@cache
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a module's positional arguments."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in inspect.signature(forward).parameters.values() if p.kind in kinds)[1:]


def tokens_of(value: Any) -> Tensor:
    """The tensor itself, or the first (B, N, C) one among several, as `find_sites` looks for it."""
    if isinstance(value, Tensor):
        return value
    return next(v for v in value if isinstance(v, Tensor) and v.ndim == 3)


def with_tokens(output: Any, hidden: Tensor, others: Tensor) -> Any:
    """A module's output with `others` in the place of its `hidden` states."""
    return others if isinstance(output, Tensor) else tuple(others if v is hidden else v for v in output)
