"""Sliding window: each query sees the keys within w places, or, causal, the last w.

|i - j| <= w, causal 0 <= i - j < w; softmax over these.
"""

from __future__ import annotations

from torch import Tensor

from repshift_cli.kernels.bands import banded
from repshift_cli.operators.base import flex, masks
from repshift_cli.operators.base.counts import band_cost
from repshift_cli.operators.base.packages import FLASH_ATTN2, package
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.spec import Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Beltagy et al. 2020, arXiv 2004.05150; Jiang et al. 2023, arXiv 2310.06825"
CLASS = "masked"
CAUSAL = (False, True)

__all__ = ["arrange", "refused"]


def seen(spec: Spec) -> masks.Mask:
    """The mask."""
    return masks.window(spec.window, spec.causal)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d), in blocks of queries."""
    return banded(q, k, v, *masks.reach(spec.window, spec.causal))


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return attention(q, k, v, seen(spec))


def cost(shape: Shape, spec: Spec) -> Cost:
    """The band's pairs."""
    return band_cost(shape, *masks.reach(spec.window, spec.causal))


def fused_cost(shape: Shape, spec: Spec) -> Cost:
    """The same pairs with the scores on the chip."""
    return Cost(cost(shape, spec).macs, shape.given)


ENGINES = {
    "plain": Engine(attend),
    "flex": flex.engine(seen, cost=fused_cost),
    "flash_attn2": package(
        *FLASH_ATTN2, window_size=lambda spec: masks.reach(spec.window, spec.causal), cost=fused_cost
    ),
}
