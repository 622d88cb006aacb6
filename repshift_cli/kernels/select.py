"""Choosing rows by score, in their order, as a Triton kernel or in plain torch; static shapes, no synchronisation.

For B rows of N fp32 scores and k kept; a launch is an operator that launches a kernel (a sort on CUDA: several).

|             | launches | bytes                                                                    |
|-------------|----------|--------------------------------------------------------------------------|
| plain, sort | 3        | 24 BN + 24 Bk (positions have 8 bytes) and the sort's own passes         |
| plain, threshold | 14  | about 110 BN                                                             |
| Triton      | 1        | 4 BN + 8 Bk, the floor                                                   |
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels import paths
from repshift_cli.kernels.cut import gather as gather

LONGEST = 8192
"""Scores that one program of the Triton kernel holds."""
SHORT = 256
"""Up to so many scores a CPU sorts them faster than it finds the threshold."""


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores of every row, in rising order of position: (B, N) -> (B, count) int64.

    Of equal scores the lower position is kept. NaN counts as +inf, so a broken token stays and shows in the output
    (`not_finite` counts them). `count` of N or more keeps all. The same on every path.
    """
    count = min(count, scores.shape[1])
    limit = f"it takes up to {LONGEST} tokens" if scores.shape[1] > LONGEST else None
    if paths.path_for("select", scores, limit=limit) == "triton":
        from repshift_cli.kernels import _select_triton

        return _select_triton.top(scores, count)
    ordered = scores.nan_to_num(math.inf, math.inf, -math.inf)
    if scores.is_cpu and scores.shape[1] > SHORT:
        return _by_threshold(ordered, count)
    return ordered.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values


def _by_threshold(scores: Tensor, count: int) -> Tensor:
    """The k-th highest score as threshold, ties filled up by position, then every kept position into its slot.

    No sort, of N or of k. Microseconds on one core of a CPU, sort / this: (8, 196) 34 / 44, (8, 1024) 565 / 91,
    (20, 2352) 4100 / 850, (1, 8192) 790 / 86.
    """
    batch, tokens = scores.shape
    threshold = scores.kthvalue(tokens - count + 1, dim=1, keepdim=True).values
    above, tie = scores > threshold, scores == threshold
    room = count - above.sum(dim=1, keepdim=True)
    keep = above | (tie & (tie.cumsum(dim=1) <= room))
    slot = keep.cumsum(dim=1).mul_(keep)  # from 1; every dropped position goes to slot 0
    positions = torch.arange(tokens, device=scores.device).expand(batch, -1)
    return slot.new_empty(batch, count + 1).scatter_(1, slot, positions)[:, 1:]


def not_finite(scores: Tensor) -> Tensor:
    """How many scores of every row are NaN or infinite, on the device: (B, N) -> (B,) int64."""
    return scores.isfinite().logical_not_().sum(dim=1)
