"""Slim attention: keys alone are cached, and values come from them through W_K^-1 W_V. Multi-head decoding.

V = K (W_K^-1 W_V), K of all heads (N, H d): out_h = (softmax(s q_h k_h^T) K) W_KV,h. Exact but for rounding, which
grows with the condition number of W_K; every head reads the keys of all heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec, drawn

PAPER = "Graef et al. 2025, arXiv 2503.05840"
CLASS = "decode"
CAUSAL = (True,)


def refused(shape: Shape, spec: Spec) -> str | None:
    """W_K is square in multi-head attention only."""
    if shape.kv_heads == shape.heads:
        return None
    return f"needs as many KV heads as query heads (a square W_K), not {shape.kv_heads} for {shape.heads}"


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """K as it is, V made of it by seeded W_K and W_V (H d, H d): the given values are not used."""
    heads, d = q.shape[1], q.shape[-1]
    width = heads * d
    like = torch.empty(0, dtype=torch.float64, device=q.device)
    key_map, value_map = (drawn(like, spec, f"slim {s}", width, width, scale=width**-0.5) for s in ("keys", "values"))
    joined = torch.linalg.solve(key_map, value_map)
    condition = float(torch.linalg.cond(key_map))

    def full() -> tuple[Tensor, Tensor, Tensor]:
        made = (k.transpose(1, 2).flatten(2).double() @ joined).unflatten(2, (heads, d)).transpose(1, 2)
        return q[:, :, -1:], k, made.to(torch.float64)

    return Arranged(
        q[:, :, -1:].contiguous(),
        k,
        k,
        {"joined": joined.to(q.dtype)},
        full=full,
        notes=(f"the condition number of W_K ({width} x {width}, drawn from the seed) is {condition:.3g}",),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, joined: Tensor) -> Tensor:
    """(B, H, 1, d), the key cache (B, H, N, d), W_KV (H d, H d) -> (B, H, 1, d)."""
    heads, d = q.shape[1], q.shape[-1]
    weights = torch.softmax(q / math.sqrt(d) @ k.transpose(-2, -1), -1)
    summed = torch.einsum("bhn,bgnd->bhgd", weights[:, :, 0], k).flatten(2)
    return torch.einsum("bhe,ehd->bhd", summed, joined.unflatten(1, (heads, d)))[:, :, None]


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, joined: Tensor) -> Tensor:
    """Multi-head attention with V = K W_KV written out."""
    values = (k.transpose(1, 2).flatten(2) @ joined).unflatten(2, (q.shape[1], q.shape[-1])).transpose(1, 2)
    return attention(q, k, values)


def cost(shape: Shape, spec: Spec) -> Cost:
    """Scores of d, sums of H d for each head and key, W_KV once: half the cache is read, H times the sums made."""
    width = shape.heads * shape.head_dim
    scores = shape.batch * shape.heads * shape.tokens
    macs = scores * (shape.head_dim + width) + shape.batch * width * width
    cache = shape.batch * shape.tokens * width
    return Cost(macs, 2 * cache + 4 * scores + width * width + 2 * shape.batch * width, cache + 3 * scores)


ENGINES = {"plain": Engine(attend)}
