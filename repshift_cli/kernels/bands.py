"""Attention within a band of the score matrix in plain torch: blocks of queries against the keys that they can see.

No N x N matrix exists. The keys of neighbouring blocks overlap, so they are read about (c + w) / c times.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_BLOCK, MOST_BLOCK = 16, 256


def block_of(left: int, right: int) -> int:
    """Queries of a block: about the width of the band, so that half of what is computed is used."""
    return max(LEAST_BLOCK, min(MOST_BLOCK, left + right + 1))


def banded(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, first: int = 0, causal: bool = False) -> Tensor:
    """softmax(s q k^T) v over the keys i - left <= j <= i + right and the `first` ones, each once: (B, H, N, d).

    With `causal` no query sees any of the first keys before its turn.
    """
    n = q.shape[-2]
    left, right, first = min(left, n - 1), min(right, n - 1), min(first, n)
    size = block_of(left, right)
    scale = 1 / math.sqrt(q.shape[-1])
    rows = blocks(q * scale, k.shape[1], size)
    scores = rows @ spans(k, size, left, right)
    groups = scores.shape[-2] // size
    i = torch.arange(rows.shape[2] * size, device=q.device).view(-1, size, 1).repeat(1, groups, 1)
    begins = size * torch.arange(rows.shape[2], device=q.device)[:, None, None]
    j = begins + torch.arange(scores.shape[-1], device=q.device) - left
    scores = hidden(scores, (j >= 0) & (j < n) & (i - j <= left) & (j - i <= right))
    values = spans(v, size, left, right).transpose(-2, -1)
    if not first:
        return unblocked(torch.softmax(scores, -1) @ values, q)
    at = torch.arange(first, device=q.device)
    seen = (i - at > left) | (at - i > right)
    seen = seen & (at <= i) if causal else seen
    extra = hidden(rows @ k[:, :, None, :first].transpose(-2, -1), seen)
    weights = torch.softmax(torch.cat([extra, scores], -1), -1)
    return unblocked(weights[..., first:] @ values + weights[..., :first] @ v[:, :, None, :first], q)


def hidden(scores: Tensor, seen: Tensor) -> Tensor:
    """The scores with the lowest finite number where nothing is seen: padding stays finite, also in gradients."""
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min)


def blocks(q: Tensor, kv_heads: int, size: int) -> Tensor:
    """(B, H, N, d) -> (B, Hkv, blocks, heads of the group x size, d), padded behind."""
    batch, heads, n, d = q.shape
    count = -(-n // size)
    q = F.pad(q, (0, 0, 0, count * size - n)).view(batch, kv_heads, heads // kv_heads, count, size, d)
    return q.transpose(2, 3).reshape(batch, kv_heads, count, heads // kv_heads * size, d)


def unblocked(out: Tensor, q: Tensor) -> Tensor:
    """The way back of `blocks`, without the padding."""
    batch, heads, n, _ = q.shape
    _, kv_heads, count, rows, d = out.shape
    groups = heads // kv_heads
    out = out.view(batch, kv_heads, count, groups, rows // groups, d).transpose(2, 3)
    return out.reshape(batch, heads, count * (rows // groups), d)[:, :, :n]


def spans(k: Tensor, size: int, left: int, right: int) -> Tensor:
    """For each block the keys that its queries may see: (B, Hkv, N, d) -> (B, Hkv, blocks, d, left + size + right)."""
    n = k.shape[-2]
    behind = -(-n // size) * size - n + right
    return F.pad(k, (0, 0, left, behind)).unfold(2, left + size + right, size)
