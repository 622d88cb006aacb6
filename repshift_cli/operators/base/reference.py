"""Softmax attention in float64, a few rows at a time: what references are written with, and the full attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from repshift_cli.operators.base.masks import Mask, causal, everything

ROW_ELEMENTS = 1 << 24
"""Scores that are held at once: 128 MiB in float64."""

Bias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(scores (B, H, rows, N), places of the queries (rows, 1), of the keys (1, N)) -> scores."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask = everything,
    scale: float | None = None,
    bias: Bias | None = None,
) -> Tensor:
    """softmax(s q k^T, biased, masked) v for (B, H, Nq, d), (B, Hkv, N, d), (B, Hkv, N, dv), in the inputs' dtype.

    The queries stand at the last places of the keys. Query head h reads key head h // (H / Hkv). A row that sees no
    key is 0.
    """
    k, v = per_query_head(k, q), per_query_head(v, q)
    keys = k.shape[-2]
    j = torch.arange(keys, device=q.device)[None, :]
    out = []
    for begin, rows in chunks(q, keys):
        i = torch.arange(begin, begin + rows.shape[-2], device=q.device)[:, None] + keys - q.shape[-2]
        scores = (rows @ k.transpose(-2, -1)) * (scale or 1 / math.sqrt(q.shape[-1]))
        if bias is not None:
            scores = bias(scores, i, j)
        out.append(weights(scores, mask(i, j)) @ v)
    return torch.cat(out, dim=-2)


def full(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Full softmax attention: what approximations are held against."""
    return attention(q, k, v, causal if is_causal else everything)


def weights(scores: Tensor, seen: Any) -> Tensor:
    """Softmax over the keys that are seen; a row of none is 0."""
    scores = scores.masked_fill(~seen, -math.inf)
    return torch.softmax(scores, -1).nan_to_num(0.0)


def per_query_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values (B, Hkv, N, d) repeated for the query heads that read them: (B, H, N, d)."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def chunks(q: Tensor, keys: int) -> Iterator[tuple[int, Tensor]]:
    """The queries in runs of rows whose scores against `keys` fit, with the place of the first of each."""
    step = max(1, ROW_ELEMENTS // max(1, q.shape[0] * q.shape[1] * keys))
    for begin in range(0, q.shape[-2], step):
        yield begin, q[..., begin : begin + step, :]
