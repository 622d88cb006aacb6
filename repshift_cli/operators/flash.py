"""FlashAttention as torch's SDPA carries it, forced; on a CPU torch's own CPU flash kernel. The reference of all.

softmax(s q k^T) v in tiles, the running maximum and sum kept, so that no score reaches memory.
"""

from __future__ import annotations

from torch import Tensor

from repshift_cli.operators.base.counts import fused as cost
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.sdpa import FLASH, attend
from repshift_cli.operators.base.spec import Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "attend", "cost", "refused"]


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)


ENGINES = {"plain": FLASH}
