"""Block-sparse attention under a given block mask: a share of the blocks, drawn from the seed, and the diagonal.

softmax(s q k^T) v over the keys of the blocks that are given, causal within them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repshift_cli.operators.base import flex
from repshift_cli.operators.base.gather import attend_blocks
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.selection import active_cost, flex_on_blocks
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Child et al. 2019, arXiv 1904.10509; Zaheer et al. 2020, arXiv 2007.14062"
CLASS = "masked"
CAUSAL = (False, True)

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The mask (blocks, blocks): the same number of blocks in each row, the diagonal one among them."""
    count = -(-q.shape[-2] // spec.block)
    generator = torch.Generator().manual_seed(spec.seed)
    ranks = torch.rand(count, count, generator=generator)
    ranks.fill_diagonal_(2.0)
    if spec.causal:
        ranks = ranks.tril()
    chosen = ranks.topk(max(1, round(count * spec.density)), -1).indices
    active = torch.zeros(count, count, dtype=torch.bool).scatter(1, chosen, True)
    active = active.tril() if spec.causal else active
    return Arranged(q, k, v, {"active": active.to(q.device)}, full=lambda: (q, k, v))


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, active: Tensor) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d), active (blocks, blocks) -> (B, H, N, d)."""
    return attend_blocks(q, k, v, active.expand(*k.shape[:2], *active.shape), spec.block, spec.causal)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, active: Tensor) -> Tensor:
    """The equation."""

    def seen(i: Any, j: Any) -> Any:
        inside = active[i // spec.block, j // spec.block]
        return inside & (j <= i) if spec.causal else inside

    return attention(q, k, v, seen)


def on_flex(q: Tensor, k: Tensor, v: Tensor, spec: Spec, active: Tensor) -> Tensor:
    """The same by FlexAttention; its block mask is made here, within the timed region."""
    return flex_on_blocks(q, k, v, active[None, None], spec)


def cost(shape: Shape, spec: Spec) -> Cost:
    """The share of the pairs; gathered keys and values are written and read again."""
    return active_cost(shape, spec, spec.density)


ENGINES = {
    "plain": Engine(attend, capturable=False),
    "flex": Engine(
        on_flex,
        flex.COMPILED,
        flex.KERNELS,
        unavailable=flex.unavailable,
        session=flex.session,
        backward=("cuda",),
        capturable=False,
    ),
}
