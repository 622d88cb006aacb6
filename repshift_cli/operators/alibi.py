"""ALiBi: scores fall with the distance, by a slope for each head.

softmax(s q k^T - m_h |i - j|) v, m_h = 2^(-8 h / H), h from 1.
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

PAPER = "Press et al. 2021, arXiv 2108.12409"
CLASS = "trained"
CAUSAL = (False, True)

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The slopes (H)."""
    heads = q.shape[1]
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
    return Arranged(q, k, v, {"slopes": slopes.to(q)}, full="a model is trained with its slopes")


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, slopes: Tensor) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d), (H) -> (B, H, N, d), in runs of rows."""
    return attend_rows(q, k, v, spec.causal, lambda s, i, j: s - slopes[:, None, None] * (i - j).abs())


def score(spec: Spec, slopes: Tensor) -> flex.ScoreMod:
    """The change of the scores for FlexAttention."""
    return lambda s, b, h, i, j: s - slopes[h] * (i - j).abs()


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, slopes: Tensor) -> Tensor:
    """The equation."""
    mask = causal if spec.causal else everything
    return attention(q, k, v, mask, bias=lambda s, i, j: s - torch.einsum("h,ij->hij", slopes, (i - j).abs().to(q)))


def cost(shape: Shape, spec: Spec) -> Cost:
    """Full attention in runs of rows, the change read and written once more."""
    rows = run_length(shape.tokens, shape.batch * shape.heads * shape.tokens)
    return in_rows(shape, spec, full_macs(shape, spec.causal), shape.tokens, rows)


ENGINES = {
    "plain": Engine(attend),
    "flex": flex.engine(lambda spec: flex.with_causal(None, spec), score, cost=fused),
}
