"""Memory-efficient attention (xFormers' kernel inside torch's SDPA), forced."""

from __future__ import annotations

from torch.nn.attention import SDPBackend

from repshift_cli.attention.base.sdpa import forced, needs_cuda
from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("fp32", "bf16", "fp16")}, mask=("cuda",))
OPS = ("aten::_scaled_dot_product_efficient_attention",)
KERNELS = r"fmha_cutlass\w*|mem_eff\w*"

session = forced(SDPBackend.EFFICIENT_ATTENTION)
attend = None

unavailable = needs_cuda
