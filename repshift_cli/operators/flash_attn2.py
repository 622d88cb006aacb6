"""FlashAttention 2 from the package flash-attn (flash_attn), CUDA.

softmax(s q k^T) v in tiles; the packages take fewer KV heads than query heads by themselves.
"""

from __future__ import annotations

from torch import Tensor

from repshift_cli.operators.base.counts import fused as cost
from repshift_cli.operators.base.packages import FLASH_ATTN2, package
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.spec import Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Dao 2023, arXiv 2307.08691"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "attend", "cost", "refused"]

ENGINES = {"plain": package(*FLASH_ATTN2)}
attend = ENGINES["plain"].attend


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)
