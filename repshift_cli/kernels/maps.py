"""What a method reads off an attention map, worked out again from q and k beside whatever kernel answers the call.

No N x N matrix is kept: `column_means` and `row_entropies` go through the queries in blocks of at most `MOST` scores
(all heads of a block at once). With B, H, N and d of q and k, e their bytes and M = B H N^2 scores:

|                 | launches                 | bytes                            | kept      |
|-----------------|--------------------------|----------------------------------|-----------|
| `row`           | 4                        | BHNd e + about 16 BHN            | 4 BN      |
| `column_means`  | 3 per block and 1        | BHNd e per block and 3 M e       | 4 BN      |
| `row_entropies` | 6 per block and 1        | BHNd e per block, 3 M e, 4 M e/H | 4 BN      |
| `dense`         | 3                        | 3 M e                            | M e       |

The floor of the last three is one product of q and k and an exponential of each score, which flash attention has
computed already and does not put out. GQA: keys are laid over the queries of their group, which copies no keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.sdpa import AttentionCall

MOST = 2**24
"""Scores that exist at a time: 64 MiB in fp32."""


def row(call: AttentionCall, index: int) -> Tensor:
    """The mean over heads of one query's row of the map, softmax(q_i k^T): (B, N), fp32 or wider."""
    place = range(call.query.shape[-2])[index]
    return _weights(call, place, place + 1).mean(1).squeeze(1)


def dense(call: AttentionCall) -> Tensor:
    """The whole map, (B, H, N, N), as a user writes it: it costs what flash attention avoids."""
    return _weights(call, 0, call.query.shape[-2])


def column_means(call: AttentionCall, whole: bool = False) -> Tensor:
    """How much every token is attended to, the mean over heads and queries, padding's left out: (B, N).

    By blocks of queries, or of the `whole` map at once.
    """
    heads, queries = call.query.shape[1:3]
    real = _real_queries(call)

    def summed(first: int, last: int) -> Tensor:
        weights = _weights(call, first, last)
        return (weights if real is None else weights * real[:, None, first:last, None]).sum((1, 2))

    sums = [summed(first, last) for first, last in ([(0, queries)] if whole else _blocks(call))]
    total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
    return total / (heads * (queries if real is None else real.sum(1, keepdim=True)))


def _real_queries(call: AttentionCall) -> Tensor | None:
    """1 for queries whose own key is seen by any query, 0 for padding: (B | 1, N), where a mask may hide some."""
    mask = call.attn_mask
    if mask is None or mask.shape[-1] != call.query.shape[-2]:
        return None
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    seen = seen.expand(*[1] * (4 - seen.ndim), *seen.shape) if seen.ndim < 4 else seen
    return seen.any(-2).any(1).to(torch.promote_types(call.query.dtype, torch.float32))


def row_entropies(call: AttentionCall) -> Tensor:
    """sum_j p_ij log p_ij of every row of the mean map over heads: (B, N), the negative entropy; 0 log 0 is 0."""

    def negative(first: int, last: int) -> Tensor:
        mean = _weights(call, first, last).mean(1)
        return torch.xlogy(mean, mean).sum(-1)

    return torch.cat([negative(first, last) for first, last in _blocks(call)], 1)


def _blocks(call: AttentionCall) -> list[tuple[int, int]]:
    """First and last query of blocks of at most MOST scores."""
    batch, heads, queries, _ = call.query.shape
    size = max(1, MOST // (batch * heads * call.key.shape[-2]))
    return [(first, min(first + size, queries)) for first in range(0, queries, size)]


def _weights(call: AttentionCall, first: int, last: int) -> Tensor:
    """Rows `first` to `last` of every head's map: (B, H, rows, N), in fp32 or wider."""
    query = call.query[..., first:last, :]
    batch, heads, rows, dim = query.shape
    groups = call.key.shape[1]
    factor = 1 / math.sqrt(dim) if call.scale is None else call.scale
    grouped = (query * factor).unflatten(1, (groups, -1)).flatten(2, 3)
    scores = (grouped @ call.key.transpose(-2, -1)).view(batch, heads, rows, -1)
    seen = _seen(call, first, last, scores)
    if seen is not None:
        scores = scores + seen if seen.is_floating_point() else scores.masked_fill(~seen, -math.inf)
    return torch.softmax(scores, -1, torch.promote_types(scores.dtype, torch.float32))


def _seen(call: AttentionCall, first: int, last: int, scores: Tensor) -> Tensor | None:
    """The mask or bias of those rows."""
    mask = call.attn_mask
    if mask is not None:
        return mask[..., first:last, :] if mask.shape[-2] > 1 else mask
    if not call.is_causal or first == scores.shape[-1] - 1:  # the last row sees all
        return None
    rows = torch.arange(first, last, device=scores.device).unsqueeze(1)
    return torch.arange(scores.shape[-1], device=scores.device) <= rows
