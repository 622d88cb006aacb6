"""cuDNN's fused attention inside torch's SDPA, forced.

softmax(s q k^T) v, a FlashAttention of NVIDIA's.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from repshift_cli.operators.base.counts import fused as cost
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.sdpa import attend, needs_cuda
from repshift_cli.operators.base.spec import Engine, Spec
from repshift_cli.operators.base.spec import as_given as arrange
from repshift_cli.operators.base.spec import takes_all as refused
from repshift_cli.records import Offers

PAPER = "NVIDIA, cuDNN; FlashAttention of Dao 2023, arXiv 2307.08691"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "attend", "cost", "refused"]


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return full(q, k, v, spec.causal)


OFFERS = Offers(dtypes={"cuda": ("bf16", "fp16")}, max_head_dim=256, head_dim_multiple=8)
KERNELS = r"cudnn\w*sdpa\w*|cudnn\w*flash\w*|cudnn_generated\w*"
SESSION = partial(sdpa_kernel, [SDPBackend.CUDNN_ATTENTION])
ENGINES = {
    "plain": Engine(
        attend,
        ("aten::_scaled_dot_product_cudnn_attention",),
        KERNELS,
        offers=OFFERS,
        unavailable=needs_cuda,
        session=SESSION,
    )
}
