"""Transformer-XL: relative positions by sinusoids, and the keys of the segment before in memory; causal.

a_ij = s (q_i k_j + q_i R_(i-j) + u k_j + w R_(i-j)), j over the memory and the segment up to i. R is projected once,
and shifted row by row instead of being written out for every pair.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.masks import pairs
from repshift_cli.operators.base.reference import per_query_head
from repshift_cli.operators.base.rows import by_runs, mixed, products, run_length
from repshift_cli.operators.base.spec import NEEDS_TRAINING, Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Dai et al. 2019, arXiv 1901.02860"
CLASS = "trained"
CAUSAL = (True,)

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """Memory in front of k and v (B, Hkv, M + N, d), u and w (H, d), R_0 ... R_(M + N - 1) as (H, M + N, d)."""
    heads, n, d = q.shape[1:]
    before = [drawn(q, spec, f"xl memory {name}", k.shape[0], k.shape[1], spec.memory, d) for name in ("k", "v")]
    k, v = (torch.cat([m, x], 2) for m, x in zip(before, (k, v), strict=True))
    speeds = 10000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = torch.arange(spec.memory + n)[:, None] * speeds
    waves = torch.cat([angles.sin(), angles.cos()], -1)[:, :d].to(q)
    distance = waves @ drawn(q, spec, "xl distance", heads, d, d, scale=1 / math.sqrt(d))
    biases = {f"{name}_bias": drawn(q, spec, f"xl {name}", heads, d, scale=0.3) for name in ("content", "place")}
    return Arranged(q, k, v, {"distance": distance, **biases}, full=NEEDS_TRAINING)


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: Spec, distance: Tensor, content_bias: Tensor, place_bias: Tensor
) -> Tensor:
    """(B, H, N, d), (B, Hkv, M + N, d) twice -> (B, H, N, d), a run of rows at a time."""
    n, keys = q.shape[2], k.shape[2]
    scale = 1 / math.sqrt(q.shape[-1])
    content, place = ((q + b[:, None]) * scale for b in (content_bias, place_bias))
    j = torch.arange(keys, device=q.device)

    def part(begin: int, end: int) -> Tensor:
        i = torch.arange(begin, end, device=q.device)[:, None] + keys - n
        by_distance = place[:, :, begin:end] @ distance.transpose(-2, -1)
        shifted = by_distance.gather(-1, (i - j).clamp_min(0).expand(*q.shape[:2], -1, -1))
        scores = hidden(products(content[:, :, begin:end], k) + shifted, j <= i)
        return mixed(torch.softmax(scores, -1), v)

    return by_runs(n, q.shape[0] * q.shape[1] * keys, part)


def reference(
    q: Tensor, k: Tensor, v: Tensor, spec: Spec, distance: Tensor, content_bias: Tensor, place_bias: Tensor
) -> Tensor:
    """The four terms of the equation, one query after another."""
    k, v = per_query_head(k, q), per_query_head(v, q)
    n, keys, out = q.shape[2], k.shape[2], []
    for row in range(n):
        last = row + keys - n
        kj, r, query = k[:, :, : last + 1], distance[:, : last + 1].flip(1), q[:, :, row, None]
        terms = [query * kj, query * r, content_bias[:, None] * kj, place_bias[:, None] * r]
        scores = (terms[0] + terms[1] + terms[2] + terms[3]).sum(-1) / math.sqrt(q.shape[-1])
        out.append((torch.softmax(scores, -1)[..., None] * v[:, :, : last + 1]).sum(2))
    return torch.stack(out, 2)


def cost(shape: Shape, spec: Spec) -> Cost:
    """3 d for every pair of query and key or memory; scores by content and by distance move."""
    rows, n, keys = shape.batch * shape.heads, shape.tokens, shape.tokens + spec.memory
    seen = pairs(n, True) + n * spec.memory
    held = rows * keys * run_length(n, rows * keys)
    return Cost(rows * seen * 3 * shape.head_dim, shape.given + 9 * rows * n * keys, 4 * held)


ENGINES = {"plain": Engine(attend)}
