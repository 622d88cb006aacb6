"""Softmax attention with the N x N matrix in memory: scores, softmax and weighted sum as separate operations.

softmax(s q k^T) v, s = 1 / sqrt(d).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.counts import materialised as cost
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.rows import mixed, products
from repshift_cli.operators.base.spec import Engine, Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Vaswani et al. 2017, arXiv 1706.03762"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "cost", "refused"]


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d); the scale is folded into q."""
    scores = products(q / math.sqrt(q.shape[-1]), k)
    if spec.causal:
        scores = hidden(scores, torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril())
    return mixed(torch.softmax(scores, -1), v)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)


ENGINES = {"plain": Engine(attend, ops=("aten::_softmax",))}
