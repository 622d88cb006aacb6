"""Linformer: keys and values projected along the tokens to k of them, then softmax attention.

softmax(s q (E K)^T) (F V), E and F of (k, N) shared by the heads; not causal, for every projected key mixes all tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.rows import mixed, products
from repshift_cli.operators.base.spec import NEEDS_TRAINING, Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Wang et al. 2020, arXiv 2006.04768"
CLASS = "trained"
CAUSAL = (False,)

__all__ = ["refused"]


def rank_of(n: int, spec: Spec) -> int:
    """k, never more than the tokens."""
    return min(spec.rank, n)


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """E and F, drawn from the seed."""
    n = k.shape[-2]
    sides = ("keys", "values")
    maps = {f"of_{s}": drawn(q, spec, f"linformer {s}", rank_of(n, spec), n, scale=1 / math.sqrt(n)) for s in sides}
    return Arranged(q, k, v, maps, full=NEEDS_TRAINING)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, of_keys: Tensor, of_values: Tensor) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d), (k, N) twice -> (B, H, N, d)."""
    scores = products(q / math.sqrt(q.shape[-1]), of_keys @ k)
    return mixed(torch.softmax(scores, -1), of_values @ v)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, of_keys: Tensor, of_values: Tensor) -> Tensor:
    """The equation."""
    keys, values = (torch.einsum("rn,bhnd->bhrd", m, x) for m, x in ((of_keys, k), (of_values, v)))
    return attention(q, keys, values, lambda i, j: (i == i) & (j >= 0))


def cost(shape: Shape, spec: Spec) -> Cost:
    """Projecting keys and values, then k keys for every query."""
    rank, n, d = rank_of(shape.tokens, spec), shape.tokens, shape.head_dim
    projecting = 2 * shape.batch * shape.kv_heads * rank * n * d
    scores = shape.batch * shape.heads * n * rank
    return Cost(projecting + scores * 2 * d, shape.given + 2 * rank * n + 4 * scores, 2 * scores)


ENGINES = {"plain": Engine(attend)}
