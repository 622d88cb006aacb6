"""FlashAttention 4 from the package flash-attn-4 (flash_attn.cute), CUDA.

softmax(s q k^T) v in tiles; the packages take fewer KV heads than query heads by themselves.
"""

from __future__ import annotations

from torch import Tensor

from repshift_cli.operators.base.counts import fused as cost
from repshift_cli.operators.base.packages import FLASH_ATTN4, package
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.spec import Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Dao et al. 2025, the package flash-attn-4"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "attend", "cost", "refused"]

ENGINES = {"plain": package(*FLASH_ATTN4)}
attend = ENGINES["plain"].attend


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)
