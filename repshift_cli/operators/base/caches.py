"""One query against a cache: split along the keys, as decoding does, and the cost of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.spec import Cost, Shape, Spec

LEAST_SPLIT = 256
"""Keys of a split, at least."""
SPLITS = 16


def split_keys(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """Split-K: parts of the cache attend on their own, their outputs are combined by their sums of exponentials.

    (B, H, 1, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, 1, d); heads of a group share one product.
    """
    n = k.shape[2]
    count = max(1, min(SPLITS, n // LEAST_SPLIT))
    size = -(-n // count)
    pad = (0, 0, 0, count * size - n)
    keys, values = (F.pad(t, pad).unflatten(2, (count, size)) for t in (k, v))
    rows = q.unflatten(1, (k.shape[1], -1)).squeeze(3)[:, :, None] / math.sqrt(q.shape[-1])
    real = (torch.arange(count * size, device=q.device) < n).view(count, 1, size)
    scores = hidden(rows @ keys.transpose(-2, -1), real)
    total = torch.logsumexp(scores, -1, keepdim=True)
    parts = (scores - total).exp() @ values
    return (torch.softmax(total, 2) * parts).sum(2).flatten(1, 2)[:, :, None]


def split_cost(shape: Shape, spec: Spec) -> Cost:
    """The cache once, and the scores, which are few."""
    scores = shape.batch * shape.heads * shape.tokens
    padded = 2 * shape.batch * shape.kv_heads * shape.tokens * shape.head_dim
    return Cost(scores * 2 * shape.head_dim, shape.given + 4 * scores, padded + 3 * scores)
