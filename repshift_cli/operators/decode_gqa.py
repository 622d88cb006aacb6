"""Decoding with grouped KV heads, 4 query heads to one where --kv-heads names no number.

As `decode`, with fewer keys and values to read per query head.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from repshift_cli.operators.base import counts
from repshift_cli.operators.base.caches import split_cost, split_keys
from repshift_cli.operators.base.grouping import pooled
from repshift_cli.operators.base.packages import FLASH_ATTN2, package
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.sdpa import FLASH, attend
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import takes_all as refused
from repshift_cli.operators.gqa import heads_of

PAPER = "Ainslie et al. 2023, arXiv 2305.13245"
CLASS = "decode"
CAUSAL = (True,)

__all__ = ["attend", "refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The last query, and averaged KV heads."""
    return pooled(q[:, :, -1:].contiguous(), k, v, heads_of(q.shape[1], k.shape[1]))


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return attention(q, k, v)


def _fewer(shape: Shape) -> Shape:
    return replace(shape, kv_heads=heads_of(shape.heads, shape.kv_heads))


def cost(shape: Shape, spec: Spec) -> Cost:
    """The smaller cache once."""
    return counts.fused(_fewer(shape), spec)


ENGINES = {
    "plain": FLASH,
    "split": Engine(split_keys, unasked=("cpu", "cuda"), cost=lambda shape, spec: split_cost(_fewer(shape), spec)),
    "flash_attn2": package(*FLASH_ATTN2, cost=cost),
}
