"""Decoding with one KV head for all query heads.

As `decode`; the heads of the query are rows of one product.
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

PAPER = "Shazeer 2019, arXiv 1911.02150"
CLASS = "decode"
CAUSAL = (True,)

__all__ = ["attend", "refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The last query, and averaged KV heads."""
    return pooled(q[:, :, -1:].contiguous(), k, v, 1)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return attention(q, k, v)


def _fewer(shape: Shape) -> Shape:
    return replace(shape, kv_heads=1)


def cost(shape: Shape, spec: Spec) -> Cost:
    """The smaller cache once."""
    return counts.fused(_fewer(shape), spec)


ENGINES = {
    "plain": FLASH,
    "split": Engine(split_keys, unasked=("cpu", "cuda"), cost=lambda shape, spec: split_cost(_fewer(shape), spec)),
    "flash_attn2": package(*FLASH_ATTN2, cost=cost),
}
