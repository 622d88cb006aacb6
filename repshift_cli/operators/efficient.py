"""Memory-efficient attention (xFormers' kernel inside torch's SDPA), forced.

softmax(s q k^T) v in tiles, the running maximum and sum kept.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from repshift_cli.operators.base.counts import fused as cost
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.sdpa import attend, needs_cuda
from repshift_cli.operators.base.sdpa import ungrouped as refused
from repshift_cli.operators.base.spec import Engine, Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.records import Offers

PAPER = "Rabe and Staats 2021, arXiv 2112.05682"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "attend", "cost", "refused"]


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)


OFFERS = Offers(dtypes={"cuda": ("fp32", "bf16", "fp16")})
KERNELS = r"fmha_cutlass\w*|mem_eff\w*"
SESSION = partial(sdpa_kernel, [SDPBackend.EFFICIENT_ATTENTION])
ENGINES = {
    "plain": Engine(
        attend,
        ("aten::_scaled_dot_product_efficient_attention",),
        KERNELS,
        offers=OFFERS,
        unavailable=needs_cuda,
        session=SESSION,
    )
}
