"""FlashAttention as torch's SDPA carries it, forced; on a CPU torch's own CPU flash kernel."""

from __future__ import annotations

from torch.nn.attention import SDPBackend

from repshift_cli.attention.base.sdpa import forced
from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")}, max_head_dim=256, mask=("cpu",))
OPS = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
)
KERNELS = r"flash_fwd\w*|Flash\w*Fwd\w*|FlashAttentionForward\w*"

session = forced(SDPBackend.FLASH_ATTENTION)
attend = None


def unavailable(device: str) -> str | None:
    """In every torch."""
    return None
