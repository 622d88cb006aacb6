"""Soft-capped attention: scores bent to stay within +-c.

softmax(c tanh(s q k^T / c)) v, c = 50 as in Gemma 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.operators.base import flex
from repshift_cli.operators.base.counts import full_macs, fused, in_rows
from repshift_cli.operators.base.masks import causal, everything
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.rows import attend_rows, run_length
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Bello et al. 2016, arXiv 1611.09940; Gemma 2, arXiv 2408.00118"
CLASS = "trained"
CAUSAL = (False, True)
CAP = 50.0

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """As given."""
    return Arranged(q, k, v, full="a model is trained with its cap")


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d), in runs of rows."""
    return attend_rows(q, k, v, spec.causal, lambda s, i, j: CAP * torch.tanh(s / CAP))


def score(spec: Spec) -> flex.ScoreMod:
    """The change of the scores for FlexAttention."""
    return lambda s, b, h, i, j: CAP * torch.tanh(s / CAP)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation, tanh written with exponentials."""

    def capped(s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return CAP * (1 - 2 / (torch.exp(2 * s / CAP) + 1))

    return attention(q, k, v, causal if spec.causal else everything, bias=capped)


def cost(shape: Shape, spec: Spec) -> Cost:
    """Full attention in runs of rows, the change read and written once more."""
    rows = run_length(shape.tokens, shape.batch * shape.heads * shape.tokens)
    return in_rows(shape, spec, full_macs(shape, spec.causal), shape.tokens, rows)


ENGINES = {
    "plain": Engine(attend),
    "flex": flex.engine(lambda spec: flex.with_causal(None, spec), score, cost=fused),
}
