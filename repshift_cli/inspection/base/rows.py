"""Attention weights by rows: what flash never writes down, recomputed from q and k, a few queries of a head at a time.

No more than `MOST` weights exist at once, or one row where a row is longer: O(N) memory, where all heads' maps are
O(H N^2). What is kept of them is sums over queries, (H, N).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from repshift_cli.kernels.sdpa import AttentionCall

MOST = 1 << 20
"""Weights held at once: 4 MiB in fp32."""
HIDDEN = 0.5
"""Of the lowest finite number, the share below which an added mask hides a key."""


def weights(call: AttentionCall, most: int = MOST) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """(head, rows, softmax(s q k^T + mask), what is seen) of some rows of one head: (B, n, Nk) each, fp32 or wider."""
    batch, heads, queries, width = call.query.shape
    keys = call.key.shape[2]
    scale = 1 / math.sqrt(width) if call.scale is None else call.scale
    step = max(1, most // (batch * keys))
    for head in range(heads):
        key = _wide(call.key[:, head * call.key.shape[1] // heads]).transpose(1, 2)
        for first in range(0, queries, step):
            rows = slice(first, min(first + step, queries))
            scores = (_wide(call.query[:, head, rows]) * scale) @ key
            scores, seen = _masked(scores, call, head, rows)
            yield head, rows, scores.softmax(-1), seen


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _masked(scores: Tensor, call: AttentionCall, head: int, rows: slice) -> tuple[Tensor, Tensor]:
    """The scores (B, n, Nk) with the mask applied, and whether each key is seen (broadcasting to the same)."""
    seen = torch.ones(1, 1, scores.shape[-1], dtype=torch.bool, device=scores.device)
    if call.is_causal:
        places = torch.arange(scores.shape[-1], device=scores.device)
        seen = (places <= torch.arange(rows.start, rows.stop, device=scores.device).unsqueeze(1)).unsqueeze(0)
    if call.attn_mask is not None:
        shape = (*call.query.shape[:3], call.key.shape[2])
        mask = call.attn_mask.expand(shape)[:, head, rows]
        if mask.dtype == torch.bool:
            seen = seen & mask
        else:
            scores = scores + mask
            seen = seen & (mask > HIDDEN * torch.finfo(mask.dtype).min)
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min), seen


def received(call: AttentionCall, asking: Tensor, most: int = MOST, least: int = 1) -> Tensor:
    """The attention that each key gets, a mean over the queries that see it: (B, H, Nk).

    alpha_k = sum_i A_ik / |{i that see k}| (Gu et al. 2025, arXiv 2410.10781, for causal attention). `asking` (Nq) says
    which queries count: padding does not. A key that fewer than `least` of them see (where there are as many) gets 0.
    """
    batch, heads, _, _ = call.query.shape
    total = torch.zeros(batch, heads, call.key.shape[2], dtype=_wide(call.query[:0]).dtype, device=call.query.device)
    count = torch.zeros_like(total)
    for head, rows, share, seen in weights(call, most):
        counted = asking[rows].to(total).view(1, -1, 1)
        total[:, head] += (share * counted).sum(1)
        count[:, head] += (seen * counted).sum(1)
    return (total / count.clamp_min(1)).where(count >= count.amax().clamp(1, max(1, least)), 0)


def paid(call: AttentionCall, place: int, most: int = MOST) -> Tensor:
    """The attention that the query at `place` pays to each key, a mean over heads: (B, Nk)."""
    one = call._replace(query=call.query[:, :, place : place + 1], is_causal=False)
    if call.is_causal:
        one = one._replace(attn_mask=torch.arange(call.key.shape[2], device=call.key.device) <= place)
    elif call.attn_mask is not None:
        shape = (*call.query.shape[:3], call.key.shape[2])
        one = one._replace(attn_mask=call.attn_mask.expand(shape)[:, :, place : place + 1])
    return torch.stack([share[:, 0] for _, _, share, _ in weights(one, most)]).mean(0)


def causal(call: AttentionCall) -> bool:
    """Whether the first query sees no key behind its own, by the flag or by the mask."""
    _, _, _, seen = next(weights(call, most=1))
    return call.key.shape[2] > 1 and not bool(seen[..., 1:].any())
