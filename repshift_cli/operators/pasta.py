"""PASTA: post-hoc steering; in chosen heads the tokens that are not emphasised lose weight by a factor alpha.

softmax(s q k^T + log alpha [j not emphasised]) v in the chosen heads, alpha = 0.01. Here every fourth head is steered
to an eighth of the tokens, drawn from the seed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.operators.base import flex
from repshift_cli.operators.base.counts import full_macs, fused, in_rows
from repshift_cli.operators.base.masks import causal, everything
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.rows import attend_rows, run_length
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Zhang et al. 2023, arXiv 2311.02262"
CLASS = "trained"
CAUSAL = (False, True)
ALPHA = 0.01

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """What is added to the scores of every head and key, (H, N): log alpha or 0."""
    heads, n = q.shape[1], k.shape[2]
    emphasised = drawn(q, spec, "pasta", n).argsort() < -(-n // 8)
    steered = torch.arange(heads, device=q.device)[:, None] % 4 == 0
    added = torch.where(steered & ~emphasised, math.log(ALPHA), 0.0).to(q)
    return Arranged(q, k, v, {"added": added}, full="steers attention away from what full attention gives")


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, added: Tensor) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d), (H, N) -> (B, H, N, d), in runs of rows."""
    return attend_rows(q, k, v, spec.causal, lambda s, i, j: s + added[:, None])


def score(spec: Spec, added: Tensor) -> flex.ScoreMod:
    """The change of the scores for FlexAttention."""
    return lambda s, b, h, i, j: s + added[h, j]


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, added: Tensor) -> Tensor:
    """The equation: weights of full attention times alpha where not emphasised, normalised again."""
    mask = causal if spec.causal else everything
    scaled = added.exp()[:, :, None] * torch.cat([v.new_ones(*v.shape[:3], 1), v], -1).repeat_interleave(
        q.shape[1] // v.shape[1], 1
    )
    out = attention(q, k, scaled, mask)
    return out[..., 1:] / out[..., :1]


def cost(shape: Shape, spec: Spec) -> Cost:
    """Full attention in runs of rows, the change read and written once more."""
    rows = run_length(shape.tokens, shape.batch * shape.heads * shape.tokens)
    return in_rows(shape, spec, full_macs(shape, spec.causal), shape.tokens, rows)


ENGINES = {
    "plain": Engine(attend),
    "flex": flex.engine(lambda spec: flex.with_causal(None, spec), score, cost=fused),
}
