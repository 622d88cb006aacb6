"""Grouped-query attention: query heads share KV heads, 4 to one where --kv-heads names no number.

Query head h reads KV head h // (H / Hkv). Keys and values of the query heads are averaged over their group, as the
paper converts a model; what is compared is attention on these.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from repshift_cli.operators.base import counts
from repshift_cli.operators.base.grouping import pooled
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.sdpa import FLASH, attend
from repshift_cli.operators.base.spec import Arranged, Cost, Shape, Spec
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Ainslie et al. 2023, arXiv 2305.13245"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["attend", "refused"]


def heads_of(heads: int, kv_heads: int) -> int:
    """KV heads: those given where they are fewer already, else a quarter."""
    return kv_heads if kv_heads < heads else (heads // 4 if heads % 4 == 0 else 1)


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The KV heads of each group averaged."""
    return pooled(q, k, v, heads_of(q.shape[1], k.shape[1]))


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)


def cost(shape: Shape, spec: Spec) -> Cost:
    """Flash attention's, with fewer keys and values to move."""
    return counts.fused(replace(shape, kv_heads=heads_of(shape.heads, shape.kv_heads)), spec)


ENGINES = {"plain": FLASH}
