"""cuDNN's fused attention inside torch's SDPA, forced."""

from __future__ import annotations

from torch.nn.attention import SDPBackend

from repshift_cli.attention.base.sdpa import forced, needs_cuda
from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("bf16", "fp16")}, max_head_dim=256, head_dim_multiple=8, mask=("cuda",))
OPS = ("aten::_scaled_dot_product_cudnn_attention",)
KERNELS = r"cudnn\w*sdpa\w*|cudnn\w*flash\w*|cudnn_generated\w*"

session = forced(SDPBackend.CUDNN_ATTENTION)
attend = None

unavailable = needs_cuda
