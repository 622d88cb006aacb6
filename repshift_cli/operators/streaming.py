"""StreamingLLM's mask: the first tokens (attention sinks) and the last w.

j < sinks or 0 <= i - j < w, causal by definition. `streaming-cache` has the paper's positions within the cache.
"""

from __future__ import annotations

from torch import Tensor

from repshift_cli.kernels.bands import banded
from repshift_cli.operators.base import flex, masks
from repshift_cli.operators.base.counts import band_cost
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.spec import Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Xiao et al. 2024, arXiv 2309.17453"
CLASS = "masked"
CAUSAL = (True,)

__all__ = ["arrange", "refused"]


def seen(spec: Spec) -> masks.Mask:
    """The mask."""
    return masks.both(masks.either(masks.window(spec.window, True), lambda i, j: j < spec.sinks), masks.causal)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d)."""
    return banded(q, k, v, spec.window - 1, 0, spec.sinks, causal=True)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return attention(q, k, v, seen(spec))


def cost(shape: Shape, spec: Spec) -> Cost:
    """The band's pairs and the sinks' (of which the band has the first few)."""
    return band_cost(shape, spec.window - 1, 0, extra_pairs=min(spec.sinks, shape.tokens) * shape.tokens)


def fused_cost(shape: Shape, spec: Spec) -> Cost:
    """The same pairs with the scores on the chip."""
    return Cost(cost(shape, spec).macs, shape.given)


ENGINES = {"plain": Engine(attend), "flex": flex.engine(seen, cost=fused_cost)}
