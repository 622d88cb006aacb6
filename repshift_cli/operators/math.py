"""torch's SDPA math back end, forced: unfused, with torch's own order of operations.

softmax(s q k^T) v, the scale split between q and k.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from repshift_cli.operators.base.counts import materialised as cost
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.sdpa import attend
from repshift_cli.operators.base.spec import Engine, Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Vaswani et al. 2017, arXiv 1706.03762"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "attend", "cost", "refused"]


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)


SESSION = partial(sdpa_kernel, [SDPBackend.MATH])
ENGINES = {"plain": Engine(attend, ("aten::_scaled_dot_product_attention_math",), session=SESSION)}
