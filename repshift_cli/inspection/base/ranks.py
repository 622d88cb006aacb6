"""Rank statistics of scores over tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FEWEST = 4
"""Tokens below which no correlation is told."""


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values sharing the mean of theirs: (n,) -> (n,), fp64."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts - 1) / 2)[inverse]


def rank_correlation(one: Tensor, other: Tensor) -> float | None:
    """Spearman's rho of two scores (n,); None for fewer than 4 tokens, or where one of the scores is the same for all.

    A NaN or infinite score has no rank that means anything: None too.
    """
    if len(one) < FEWEST or not (one.isfinite().all() and other.isfinite().all()):
        return None
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    lengths = a.norm() * b.norm()
    return float(a @ b / lengths) if lengths else None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there."""
    there = [v for v in values if v is not None and math.isfinite(v)]
    return sum(there) / len(there) if there else None


def told_sign(correlations: Sequence[float | None], tokens: int) -> int:
    """+1 or -1 where the mean correlation is clear of 0 by two standard errors, else 0.

    The error is the larger of chance's, 1 / sqrt(n - 1) for each input of n `tokens`, and that seen between inputs.
    """
    there = [c for c in correlations if c is not None]
    if not there or tokens < FEWEST:
        return 0
    middle = sum(there) / len(there)
    error = 1 / math.sqrt(len(there) * (tokens - 1))
    if len(there) > 1:
        spread = math.sqrt(sum((c - middle) ** 2 for c in there) / (len(there) - 1))
        error = max(error, spread / math.sqrt(len(there)))
    return 0 if abs(middle) < 2 * error else (1 if middle > 0 else -1)


def lower_half_weight(score: Tensor, weight: Tensor) -> float | None:
    """The mean weight of the half with the lower score, over that of all: 1 is what a random half has.

    Of importance it is what dropping that half costs against dropping any (if costs add up). None where nothing weighs.
    """
    if len(score) < FEWEST or not weight.sum():
        return None
    lower = score.argsort(stable=True)[: len(score) // 2]
    return float(weight[lower].mean() / weight.mean())


def top_share(weight: Tensor, share: float = 0.1) -> float | None:
    """The share of all weight that the heaviest `share` of the tokens (at least one) carries."""
    if len(weight) < FEWEST or not weight.sum():
        return None
    count = max(1, round(share * len(weight)))
    return float(weight.topk(count).values.sum() / weight.sum())
