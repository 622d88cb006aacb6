"""torch's SDPA math back end, forced: unfused, with torch's own order of operations."""

from __future__ import annotations

from torch.nn.attention import SDPBackend

from repshift_cli.attention.base.sdpa import forced
from repshift_cli.records import Offers

OFFERS = Offers(
    dtypes={"cuda": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")},
    mask=("cpu", "cuda"),
)
OPS = ("aten::_scaled_dot_product_attention_math",)
KERNELS = r""

session = forced(SDPBackend.MATH)
attend = None


def unavailable(device: str) -> str | None:
    """In every torch."""
    return None
