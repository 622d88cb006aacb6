"""From which length on one curve lies above another: measured ratios by length, interpolated between two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Crossing:
    """Where the ratio rises through 1 for good: `at` tokens, between two measured lengths.

    `word` says what holds where it does not cross: `always` (above 1 at every length measured), `never` (not above 1 at
    the longest, or no ratio known at all).
    """

    word: str
    at: float | None = None
    between: tuple[int, int] | None = None


def crossing(points: Sequence[tuple[int, float]]) -> Crossing:
    """The last length at which the ratio goes from at most 1 to above 1, the points being (tokens, ratio), in order.

    Between two points the logarithm of the ratio is taken as linear in the logarithm of the length, as it is where
    both times are powers of the length.
    """
    below = [i for i, (_, ratio) in enumerate(points) if ratio <= 1]
    if points and not below:
        return Crossing("always")
    if not points or below[-1] == len(points) - 1:
        return Crossing("never")
    (n, low), (m, high) = points[below[-1]], points[below[-1] + 1]
    share = -math.log(low) / (math.log(high) - math.log(low))
    return Crossing("from", math.exp(math.log(n) + share * (math.log(m) - math.log(n))), (n, m))
