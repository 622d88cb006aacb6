"""What a schedule will cost, from a few that were timed: tokens per block -> milliseconds. Pure arithmetic.

A forward is taken as a constant, a part that grows with the tokens of the blocks, one that grows with their squares
(attention), and for each cut what the method's score and selection cost. No part is negative. It is a guide for the
search; what is recommended is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Load:
    """What a forward does: the tokens that enter each block, and the methods of its cuts."""

    blocks: tuple[int, ...]
    cuts: tuple[str, ...] = ()


@dataclass(frozen=True)
class CostModel:
    """Coefficients by name, and how far the model is from each timed case when fitted without it, as shares."""

    coefficients: dict[str, float]
    errors: tuple[float, ...]

    def milliseconds(self, load: Load) -> float:
        """The predicted time of one forward."""
        return sum(self.coefficients.get(name, 0.0) * value for name, value in _features(load).items())

    @property
    def typical(self) -> float | None:
        """The median error, as a share; None where too few cases were timed to tell."""
        return statistics.median(self.errors) if self.errors else None


def load_of(tokens: Sequence[int], layers: Sequence[int], depth: int, method: str = "") -> Load:
    """Tokens along the depth as `Planned` has them -> those that enter each block."""
    blocks = tuple(tokens[sum(layer < block for layer in layers)] for block in range(1, depth + 1))
    return Load(blocks, (method,) * len(layers))


def fit(timed: Sequence[tuple[Load, float]]) -> CostModel:
    """The model of these cases with their milliseconds; relative errors are made small, not absolute ones."""
    errors = []
    for i, (load, milliseconds) in enumerate(timed):
        others = [*timed[:i], *timed[i + 1 :]]
        if len(others) >= 4 and set(load.cuts) <= {cut for other, _ in others for cut in other.cuts}:
            predicted = CostModel(_solved(others), ()).milliseconds(load)
            errors.append(abs(predicted / milliseconds - 1))
    return CostModel(_solved(timed), tuple(errors))


def _features(load: Load) -> dict[str, float]:
    own = {f"cut by {method}": float(load.cuts.count(method)) for method in dict.fromkeys(load.cuts)}
    return {
        "constant": 1.0,
        "tokens": float(sum(load.blocks)),
        "tokens squared": float(sum(n * n for n in load.blocks)),
        **own,
    }


def _solved(timed: Sequence[tuple[Load, float]]) -> dict[str, float]:
    """Least squares without negative coefficients: what would be negative is left out, the most negative first."""
    rows = [_features(load) for load, _ in timed]
    names = list(dict.fromkeys(name for row in rows for name in row))
    times = np.array([milliseconds for _, milliseconds in timed])
    while names:
        matrix: Any = np.array([[row.get(name, 0.0) for name in names] for row in rows]) / times[:, None]
        scale = np.abs(matrix).max(0) + 1e-300
        found = np.linalg.lstsq(matrix / scale, np.ones(len(rows)), rcond=None)[0] / scale
        if found.min() >= 0:
            return dict(zip(names, map(float, found), strict=True))
        names.pop(int((found * scale).argmin()))
    return {}
