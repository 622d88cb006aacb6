"""No attention to choose: convolutional and state space models run as they are."""

from __future__ import annotations

from contextlib import nullcontext

from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")}, mask=("cpu", "cuda"))
OPS = ()
KERNELS = ""

session = nullcontext
attend = None


def unavailable(device: str) -> str | None:
    """Works everywhere."""
    return None
