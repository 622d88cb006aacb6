"""FlexAttention, compiled: the same function, and the engine of the masks and score changes below.

softmax(s q k^T) v with score and mask as functions of the places.
"""

from __future__ import annotations

from torch import Tensor

from repshift_cli.operators.base import flex
from repshift_cli.operators.base.counts import fused as cost
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.spec import Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Dong et al. 2024, arXiv 2412.05496"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "attend", "cost", "refused"]

ENGINES = {"plain": flex.engine(lambda spec: flex.with_causal(None, spec))}
attend = ENGINES["plain"].attend


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)
