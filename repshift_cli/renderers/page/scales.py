"""From values to places in a drawing, and the round values that stand along an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` stand between `start` and `end`, in proportion or by their logarithms."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where the value stands; one outside stands at the nearer end."""
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, max(value, 1e-300)))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values, about so many."""
        return _log_ticks(self.low, self.high, about) if self.log else _ticks(self.low, self.high, about)


def fitting(values: Iterable[float], start: float, end: float, log: bool = False, room: float = 0.05) -> Scale:
    """A scale that holds all the values with some room at both ends; none below 0 where nothing is."""
    known = [v for v in values if not log or v > 0] or [1.0]
    low, high = min(known), max(known)
    if log:
        wider = max((high / low) ** room, 1.05)
        return Scale(low / wider, high * wider, start, end, log)
    span = (high - low) or abs(high) or 1.0
    return Scale(low - room * span if low < 0 else max(0.0, low - room * span), high + room * span, start, end)


def from_zero(values: Sequence[float], zero: float, start: float, end: float) -> Scale:
    """A scale for bars that stand on `zero`, on either side of it."""
    low, high = min([zero, *values]), max([zero, *values])
    span = (high - low) or 1.0
    return Scale(low - (0.03 * span if low < zero else 0), high + 0.03 * span, start, end)


def _ticks(low: float, high: float, about: int) -> list[float]:
    if high <= low:
        return [low]
    rough = (high - low) / about
    size = 10 ** math.floor(math.log10(rough))
    step = size * next(n for n in NICE if n * size >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    """Powers of ten, or 1, 2 and 5 times these; where even that gives too few, values in proportion."""
    powers = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    fine, coarse = (
        [t for t in ticks if low <= t <= high] for ticks in ([m * p for p in powers for m in (1, 2, 5)], powers)
    )
    if len(fine) < 3:
        return _ticks(low, high, about)
    chosen = fine if len(fine) <= 2 * about else coarse
    return chosen[:: max(1, len(chosen) // (2 * about))]
