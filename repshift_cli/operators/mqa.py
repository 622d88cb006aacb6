"""Multi-query attention: all query heads read one KV head.

GQA with Hkv = 1; keys and values of all heads are averaged.
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

PAPER = "Shazeer 2019, arXiv 1911.02150"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["attend", "refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """One averaged KV head."""
    return pooled(q, k, v, 1)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)


def cost(shape: Shape, spec: Spec) -> Cost:
    """Flash attention's, with one KV head to move."""
    return counts.fused(replace(shape, kv_heads=1), spec)


ENGINES = {"plain": FLASH}
