"""torch's SDPA with nobody forcing a kernel: whichever torch picks for these inputs, recorded with the row."""

from __future__ import annotations

from contextlib import nullcontext

from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")}, mask=("cpu", "cuda"))
OPS = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::_scaled_dot_product_attention_math",
    "aten::_scaled_dot_product_attention_math_for_mps",
)
KERNELS = ""

session = nullcontext
attend = None


def unavailable(device: str) -> str | None:
    """In every torch."""
    return None
