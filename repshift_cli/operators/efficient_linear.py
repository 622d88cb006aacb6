"""Efficient attention (Shen): softmax over the features of a query, over the tokens of the keys, then two products.

out = rho_q(Q) (rho_k(K)^T V), rho_q over each row's d features, rho_k over each column's N tokens; not causal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.operators.base.reference import per_query_head
from repshift_cli.operators.base.rows import mixed
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Shen et al. 2018, arXiv 1812.01243"
CLASS = "trained"
CAUSAL = (False,)

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """As given."""
    return Arranged(q, k, v, full="has to be trained with its softmaxes")


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d)."""
    return mixed(torch.softmax(q, -1), torch.softmax(k, -2).transpose(-2, -1) @ v)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation with the N x N similarities that it never forms."""
    k, v = per_query_head(k, q), per_query_head(v, q)
    queries = q.exp() / q.exp().sum(-1, keepdim=True)
    keys = k.exp() / k.exp().sum(-2, keepdim=True)
    return (queries @ keys.transpose(-2, -1)) @ v


def cost(shape: Shape, spec: Spec) -> Cost:
    """Two products of d x d per token; the softmaxes read and write q and k once more."""
    n, d = shape.batch * shape.tokens, shape.head_dim
    macs = n * d * d * (shape.heads + shape.kv_heads)
    return Cost(macs, shape.given + 2 * n * d * (shape.heads + shape.kv_heads), n * d * (shape.heads + shape.kv_heads))


ENGINES = {"plain": Engine(attend)}
