"""What forms share that attend to chosen blocks: the choice by mass, FlexAttention on it, the cost of a density."""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.operators.base import flex
from repshift_cli.operators.base.gather import MOST_GATHERED
from repshift_cli.operators.base.masks import pairs
from repshift_cli.operators.base.rows import run_length
from repshift_cli.operators.base.spec import Cost, Shape, Spec


def by_mass(scores: Tensor, tau: float) -> Tensor:
    """For each row of block scores (..., columns) the fewest blocks whose share of its sum reaches tau: bool.

    At tau = 1 every block with a score above 0 stays, whatever rounding does to the sum.
    """
    order = torch.sort(scores, dim=-1, descending=True)
    before = order.values.cumsum(-1) - order.values
    wanted = (before < tau * scores.sum(-1, keepdim=True)) | (tau >= 1)
    taken = wanted & (order.values > 0)
    return torch.zeros_like(taken).scatter(-1, order.indices, taken)


def flex_on_blocks(q: Tensor, k: Tensor, v: Tensor, active: Tensor, spec: Spec) -> Tensor:
    """FlexAttention on blocks (1 or B, 1 or H, rows, columns)."""
    active = active.expand(q.shape[0], q.shape[1], -1, -1)
    places = flex.from_blocks(active, spec.block, spec.causal, q.shape[-2], k.shape[-2])
    return flex.compiled(flex_on_blocks, q, k)(q, k, v, block_mask=places, enable_gqa=k.shape[1] != q.shape[1])


def active_cost(shape: Shape, spec: Spec, density: float) -> Cost:
    """A share of the pairs of full attention; gathered keys and values are written and read, scores move 4 times. Only
    those of a run of rows of blocks are held."""
    rows = shape.batch * shape.heads
    seen = int(rows * pairs(shape.tokens, spec.causal) * density)
    blocks = -(-shape.tokens // spec.block)
    gathered = int(2 * shape.batch * shape.kv_heads * blocks * density * shape.tokens * shape.head_dim)
    chosen = shape.batch * spec.block * int(blocks * density)
    keys = chosen * shape.kv_heads * shape.head_dim
    held = run_length(blocks, keys, MOST_GATHERED) * (2 * keys + 3 * chosen * shape.heads * spec.block)
    return Cost(seen * 2 * shape.head_dim, shape.given + 4 * seen + 2 * gathered, held)
