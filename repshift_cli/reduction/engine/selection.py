"""Which rows stay: a method's scores or its fixed choice, with the protected tokens in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from repshift_cli.kernels.cut import gather, gather_add
from repshift_cli.kernels.select import top
from repshift_cli.profiling.annotations import part
from repshift_cli.records import Case, Subject, left
from repshift_cli.reduction import Method
from repshift_cli.reduction.engine.seen import Seen, scores_of

Share = tuple[int, int]
"""What one cut drops of the tokens, as a fraction; of 0: that many."""
Choose = Callable[[int, int], Sequence[int]]
"""A method's `choose`."""


class Cut(NamedTuple):
    """The rows that stay, of anything laid out like the hidden states: (B | 1, n, C) -> (B | 1, k, C).

    `added(middle, branch)` are those rows of the sum, bit for bit, and no others are added; `stay` is k; `view` says
    that the rows cost nothing.
    """

    rows: Callable[[Tensor], Tensor]
    added: Callable[[Tensor, Tensor], Tensor]
    stay: int
    view: bool = False

    def places(self, places: Tensor) -> Tensor:
        """Where the rows stand: (1 | B, N, 1) -> (1 | B, k, 1)."""
        return self.rows(places)

    def ends(self, length: int, device: torch.device) -> Tensor:
        """Which row each of `length` rows ended in, -1 for one that was dropped: (1 | B, N)."""
        stay = self.rows(torch.arange(length, device=device).view(1, -1, 1)).squeeze(-1)
        ended = torch.full((len(stay), length), -1, device=device)
        return ended.scatter_(1, stay, torch.arange(stay.shape[1], device=device).expand_as(stay))


def fixed(chosen: Sequence[int], subject: Subject, length: int) -> Cut:
    """The cut that keeps the protected tokens and the `chosen` ones of the others, the same in every sample.

    The first ones without anything behind them are a slice, which costs nothing.
    """
    stay = len(chosen) + subject.protected
    first = isinstance(chosen, range) and chosen == range(len(chosen))
    view = first and not (subject.suffix or subject.central)
    places = () if view else tuple(_in_place(list(chosen), subject, length))

    def rows(hidden: Tensor) -> Tensor:
        return hidden[:, :stay] if view else hidden.index_select(1, _on(places, hidden.device))

    return Cut(rows, lambda middle, branch: rows(middle) + rows(branch), stay, view)


def _in_place(chosen: list[int], subject: Subject, length: int) -> list[int]:
    middle = (length - subject.protected) // 2
    if subject.central:
        half = len(chosen) // 2
        chosen = [i + (i >= middle) for i in chosen]
        chosen = [*chosen[:half], middle, *chosen[half:]]
    tail = range(length - subject.suffix, length)
    return [*range(subject.prefix), *(i + subject.prefix for i in chosen), *tail]


@lru_cache(maxsize=256)
def _on(places: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(places, device=device)


def scored(scores: Tensor, subject: Subject, length: int, share: Share) -> Cut:
    """The cut that keeps the protected tokens and the highest `scores` (B, N) of the others, in their order.

    A token in the centre has a score of its own, which is left out, and comes back to the middle of what stays.
    """
    free = length - subject.protected
    stay, middle = left(free, *share), free // 2
    if not subject.central:
        indices = top(scores, stay)
    else:
        indices = top(torch.cat((scores[:, :middle], scores[:, middle + 1 :]), dim=1), stay)
        indices = indices + (indices >= middle)
        half, centre = stay // 2, torch.full_like(indices[:, :1], middle)
        indices = torch.cat((indices[:, :half], centre, indices[:, half:]), dim=1)
    if subject.suffix:
        tail = torch.arange(free, free + subject.suffix, device=scores.device)
        indices = torch.cat((indices, tail.expand(len(indices), -1)), dim=1)
    return _gathering(subject.prefix, indices)


def _gathering(prefix: int, indices: Tensor) -> Cut:
    def rows(hidden: Tensor) -> Tensor:
        return gather(hidden.expand(len(indices), -1, -1), prefix, indices)

    def added(middle: Tensor, branch: Tensor) -> Tensor:
        return gather_add(middle, branch, prefix, indices)

    return Cut(rows, added, prefix + indices.shape[1])


def marked(scores: Tensor, roles: Tensor, subject: Subject, share: Share) -> tuple[Cut, Tensor]:
    """The cut by `scores` (B, n) where `roles` (B, n) name protected tokens (+inf) and padding (-inf), and its roles.

    Every sample keeps its share of its own tokens, so that its result is that of the sample alone. The shape is what a
    sample without padding needs; where another needs less, more of its padding fills the rest, which its mask hides.
    """
    length, fixed = scores.shape[1], subject.protected
    stay = min(length, fixed + left(length - fixed, *share))
    ranked = torch.where(roles == 0, scores, roles).sort(dim=1, descending=True, stable=True).indices[:, :stay]
    free = (roles == 0).sum(1)
    enough = _counts(length, share, scores.device)[free] + fixed
    stays = torch.arange(stay, device=scores.device) < enough.unsqueeze(1)
    indices = torch.where(stays, ranked, roles.argmin(1, keepdim=True)).sort(dim=1).values
    return _gathering(0, indices), roles.gather(1, indices)


def ends_protected(roles: Tensor | None, subject: Subject) -> Tensor | None:
    """The roles (B, N) with the leading and trailing tokens that stay, counted in each sample without its padding."""
    if roles is None or not subject.prefix + subject.suffix:
        return roles
    real = roles != float("-inf")
    place = real.cumsum(1)
    ends = (place <= subject.prefix) | (place > place[:, -1:] - subject.suffix)
    return roles.masked_fill(real & ends, float("inf"))


@lru_cache(maxsize=256)
def _counts(length: int, share: Share, device: torch.device) -> Tensor:
    """How many of 0, 1, ... `length` tokens stay."""
    with torch.inference_mode(False):
        return torch.tensor([0, *(left(n, *share) for n in range(1, length + 1))], device=device)


def marked_choice(choose: Choose, roles: Tensor, share: Share) -> Tensor:
    """Scores (B, n) that make `marked` keep what `choose` names among each sample's own tokens."""
    free = roles == 0
    rank = (free.cumsum(1) - 1).clamp_min(0)
    chosen = _choices(choose, roles.shape[1], share, roles.device)[free.sum(1)]
    return chosen.gather(1, rank)


@lru_cache(maxsize=64)
def _choices(choose: Choose, length: int, share: Share, device: torch.device) -> Tensor:
    """Row n marks with 1 what is chosen of n tokens: (length + 1, length)."""
    table = torch.zeros(length + 1, length)
    for n in range(1, length + 1):
        table[n, list(choose(n, left(n, *share)))] = 1
    with torch.inference_mode(False):
        return table.to(device, copy=True)


def chosen(
    subject: Subject,
    method: Method,
    case: Case,
    seen: Seen,
    length: int,
    roles: Tensor | None,
    share: Share,
) -> tuple[Cut, Tensor | None]:
    """The cut of `length` tokens at the end of one block, and the roles of what stays where there are any."""
    if method.choose is not None and roles is None:
        free = length - subject.protected
        return fixed(method.choose(free, left(free, *share)), subject, length), None
    seen.prefix, seen.suffix = (subject.prefix, subject.suffix) if roles is None else (0, 0)
    seen.stay = left(length - subject.protected, *share)
    if roles is not None:
        seen.roles, seen.counts = roles, lambda: _counts(length, share, roles.device)
    with part("score"):
        if method.choose is not None and roles is not None:
            scores = marked_choice(method.choose, roles, share)
        else:
            scores = scores_of(method, seen, case)
    tell(scores)
    with part("select"):
        if roles is not None:
            return marked(scores, roles, subject, share)
        return scored(scores, subject, length, share), None


_listener: Callable[[Tensor], None] | None = None


def tell(scores: Tensor) -> None:
    """Give the scores of a cut to whoever listens."""
    if _listener is not None:
        _listener(scores)


@contextmanager
def listening(listener: Callable[[Tensor], None]) -> Iterator[None]:
    """Within it `listener` is given the scores (B, N) of every cut, in order."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
