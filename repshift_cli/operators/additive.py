"""Additive attention (Bahdanau): scores by a small network instead of a product, in runs of rows.

score_ij = w^T tanh(W q_i + U k_j), softmax over j; N x N x d does not fit, so a run of rows at a time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.masks import pairs
from repshift_cli.operators.base.reference import weights
from repshift_cli.operators.base.rows import by_runs, grouped, run_length
from repshift_cli.operators.base.spec import NEEDS_TRAINING, Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Bahdanau et al. 2015, arXiv 1409.0473"
CLASS = "exact"
CAUSAL = (False, True)
MOST = 1 << 22
"""Elements of tanh at once."""

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """W, U (d, d) and w (d), drawn from the seed."""
    d = q.shape[-1]
    square = {name: drawn(q, spec, f"additive {name}", d, d, scale=1 / math.sqrt(d)) for name in ("of_query", "of_key")}
    return Arranged(q, k, v, square | {"weight": drawn(q, spec, "additive w", d)}, full=NEEDS_TRAINING)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, of_query: Tensor, of_key: Tensor, weight: Tensor) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d)."""
    queries, keys, v = q @ of_query.T, grouped(k @ of_key.T, q), grouped(v, q)
    j = torch.arange(k.shape[-2], device=q.device)

    def part(begin: int, end: int) -> Tensor:
        scores = torch.tanh(queries[:, :, begin:end, None] + keys[:, :, None]) @ weight
        if spec.causal:
            scores = hidden(scores, j <= torch.arange(begin, end, device=q.device)[:, None])
        return torch.softmax(scores, -1) @ v

    return by_runs(q.shape[-2], keys.numel(), part, MOST)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, of_query: Tensor, of_key: Tensor, weight: Tensor) -> Tensor:
    """The equation, one key after another over all queries."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    queries = torch.einsum("bhid,ed->bhie", q, of_query)
    columns = [torch.tanh(queries + (of_key @ key[..., None])[..., 0][:, :, None]) @ weight for key in k.unbind(2)]
    n = q.shape[-2]
    seen = torch.ones(n, n, dtype=torch.bool, device=q.device)
    return weights(torch.stack(columns, -1), seen.tril() if spec.causal else seen) @ v


def cost(shape: Shape, spec: Spec) -> Cost:
    """d for w^T tanh and d for the sum at every pair, two projections; the sums, their tanh and the scores move."""
    rows, n, d = shape.batch * shape.heads, shape.tokens, shape.head_dim
    macs = rows * (pairs(n, spec.causal) * 2 * d + 2 * n * d * d)
    held = run_length(n, rows * n * d, MOST) * rows * n * d
    return Cost(macs, shape.given + rows * n * n * (4 * d + 4), 2 * held)


ENGINES = {"plain": Engine(attend)}
