"""Relative positions (Shaw): learnt vectors for clipped distances, added to keys and to values.

e_ij = s q_i . (k_j + aK_clip(j - i)), out_i = sum_j p_ij (v_j + aV_clip(j - i)), distances clipped to +-r. No N x N x d
tensor: q meets the 2 r + 1 vectors once, and the weights are summed by distance before they meet aV.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.masks import pairs
from repshift_cli.operators.base.reference import per_query_head, weights
from repshift_cli.operators.base.rows import by_runs, mixed, products, run_length
from repshift_cli.operators.base.spec import NEEDS_TRAINING, Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Shaw et al. 2018, arXiv 1803.02155"
CLASS = "trained"
CAUSAL = (False, True)

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """aK and aV, (2 r + 1, d) each, shared by the heads as in the paper."""
    size = (2 * spec.clip + 1, q.shape[-1])
    vectors = {f"of_{name}": drawn(q, spec, f"shaw {name}", *size, scale=0.3) for name in ("keys", "values")}
    return Arranged(q, k, v, vectors, full=NEEDS_TRAINING)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, of_keys: Tensor, of_values: Tensor) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d), two of (2 r + 1, d) -> (B, H, N, d)."""
    n = q.shape[2]
    j = torch.arange(n, device=q.device)
    q = q / math.sqrt(q.shape[-1])
    relative = q @ of_keys.T

    def part(begin: int, end: int) -> Tensor:
        i = torch.arange(begin, end, device=q.device)[:, None]
        apart = ((j - i).clamp(-spec.clip, spec.clip) + spec.clip).expand(*q.shape[:2], -1, -1)
        scores = products(q[:, :, begin:end], k) + relative[:, :, begin:end].gather(-1, apart)
        scores = hidden(scores, j <= i) if spec.causal else scores
        share = torch.softmax(scores, -1)
        by_distance = torch.zeros_like(relative[:, :, begin:end]).scatter_add(-1, apart, share)
        return mixed(share, v) + by_distance @ of_values

    return by_runs(n, q.shape[0] * q.shape[1] * n, part)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, of_keys: Tensor, of_values: Tensor) -> Tensor:
    """The equation with the vector of every pair written out, one query after another."""
    k, v = per_query_head(k, q), per_query_head(v, q)
    n = q.shape[2]
    j, out = torch.arange(n, device=q.device), []
    for i in range(n):
        apart = (j - i).clamp(-spec.clip, spec.clip) + spec.clip
        scores = ((k + of_keys[apart]) * q[:, :, i, None]).sum(-1) / math.sqrt(q.shape[-1])
        part = weights(scores, (j <= i) if spec.causal else (j >= 0))
        out.append((part[..., None] * (v + of_values[apart])).sum(2))
    return torch.stack(out, 2)


def cost(shape: Shape, spec: Spec) -> Cost:
    """Full attention's pairs and 2 (2 r + 1) d per query; scores move with the gathered and the summed ones."""
    rows, n = shape.batch * shape.heads, shape.tokens
    macs = rows * (pairs(n, spec.causal) * 2 * shape.head_dim + n * 2 * (2 * spec.clip + 1) * shape.head_dim)
    held = rows * n * run_length(n, rows * n)
    return Cost(macs, shape.given + 8 * rows * n * n, 4 * held)


ENGINES = {"plain": Engine(attend)}
