"""Example back end: softmax attention written out."""

from contextlib import nullcontext
from typing import Any

import torch

from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")})
OPS = ("aten::_softmax",)  # an operator that must be seen to run, once for each call
KERNELS = ""  # a pattern that a device kernel's name must match on CUDA
session = nullcontext  # a context around every forward


def unavailable(device: str) -> str | None:
    return None


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: Any = None, **_: Any) -> torch.Tensor:
    if attn_mask is not None:
        raise ValueError("example_attention takes no mask")
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
