"""The library's own materialised attention (transformers' `eager`, timm without fused_attn), as its models write it."""

from __future__ import annotations

from contextlib import nullcontext

from repshift_cli.records import Offers

OFFERS = Offers(
    dtypes={"cuda": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")}, mask=("cpu", "cuda"), library=True
)
OPS = ("aten::_softmax",)
KERNELS = ""

session = nullcontext
attend = None


def unavailable(device: str) -> str | None:
    """In every library; a model of your own has none (see `Facts.eager`)."""
    return None
