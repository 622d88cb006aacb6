"""Tokens at even places against those at odd ones: who may merge, and the rows that come of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from repshift_cli.records import UsageError
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.seen import Seen


class Half(NamedTuple):
    """Every second token: its places (n), the slice that takes them, and which are protected (None: none of them)."""

    places: Tensor
    slice: slice
    closed: Tensor | None


def halves(seen: Seen, length: int, device: torch.device) -> tuple[Half, Half]:
    """The tokens at even places and those at odd ones, of `length` with the protected ones."""
    places = torch.arange(length, device=device)
    closed = (places < seen.prefix) | (places >= length - seen.suffix)

    def half(first: int) -> Half:
        # an even protected one is a row of -inf and an odd one a column, as the class and the distillation token there
        some = seen.prefix > first or seen.suffix > (length - 1 - first) % 2
        return Half(places[first::2], slice(first, None, 2), closed[first::2] if some else None)

    return half(0), half(1)


def matched(seen: Seen, values: Tensor, columns: Tensor, leaving: int, even: Half, odd: Half) -> Reduction:
    """The reduction that merges the `leaving` even tokens of the highest `values` (B, n) into their `columns` (B, n).

    Of equal values the earlier place merges. UsageError for more than half of the tokens that may go.
    """
    check_half(leaving, len(even.places) + len(odd.places) - seen.prefix - seen.suffix)
    if even.closed is not None:
        values = values.masked_fill(even.closed, -torch.inf)
    order = values.argsort(dim=1, descending=True, stable=True)
    merged, left = order[:, :leaving], order[:, leaving:]
    if seen.prefix:
        left = left.sort(dim=1).values
    into = columns.gather(1, merged)
    return rows_of(seen, even, odd, left, merged, into)


def rows_of(seen: Seen, even: Half, odd: Half, left: Tensor, merged: Tensor, into: Tensor) -> Reduction:
    """Rows: the protected ones in front, even ones `left` (B, l), all odd ones, the protected ones behind.

    `merged` (B, m) are even tokens and `into` (B, m) the odd ones that take them, both counted within their half.
    """
    batch, front, behind = len(left), seen.prefix, seen.suffix
    stay = torch.cat((even.places[left], odd.places.expand(batch, -1)), 1)
    slots = left.shape[1] + into
    if front > 1 or behind:
        order = protected_apart(seen, stay, len(even.places) + len(odd.places))
        stay = stay.gather(1, order)
        slots = order.argsort(dim=1).gather(1, slots)
    merged_places = even.places[merged]
    weights = None
    if seen.sizes is not None:
        weights = seen.sizes.gather(1, stay), seen.sizes.gather(1, merged_places)
    return Reduction(stay, merged_places, slots, weights)


def protected_apart(seen: Seen, stay: Tensor, length: int) -> Tensor:
    """The order of `stay` (B, k), places among `length`, that puts protected ones in front and behind: (B, k)."""
    front, behind = seen.prefix, length - seen.suffix
    rank = torch.where(stay < front, stay - front, torch.where(stay >= behind, stay + length, 0))
    return rank.argsort(dim=1, stable=True)


def check_half(leaving: int, free: int) -> None:
    """UsageError where more tokens are to merge than have another to merge into."""
    if leaving > free // 2:
        raise UsageError(f"{leaving} of {free} tokens cannot be merged at one layer: it is at most half, {free // 2}")
