"""An approximation: each token sees those within 128 places (causal: the last 128), in plain torch; fidelity tells."""

from __future__ import annotations

import math
from contextlib import nullcontext

from torch import Tensor

from repshift_cli.attention.base.swap import refuse
from repshift_cli.kernels.bands import banded
from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")})
OPS = ("aten::_softmax",)
KERNELS = ""
WINDOW = 128

session = nullcontext


def unavailable(device: str) -> str | None:
    """Works everywhere."""
    return None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(s q k^T) v over |i - j| <= 128, causal 0 <= i - j < 128: (B, H, N, d) -> (B, H, N, d)."""
    refuse(attn_mask, dropout_p, "sliding")
    if query.shape[-2] != key.shape[-2]:
        raise ValueError("sliding needs as many queries as keys")
    if scale is not None:
        query = query * (scale * math.sqrt(query.shape[-1]))
    return banded(query, key, value, *((WINDOW - 1, 0) if is_causal else (WINDOW, WINDOW)))
