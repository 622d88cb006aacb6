"""Materialised attention: scores, softmax and weighted sum as separate operations, the O(N^2) matrix in memory."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from repshift_cli.records import Offers

OFFERS = Offers(
    dtypes={"cuda": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")},
    mask=("cpu", "cuda"),
)
OPS = ("aten::_softmax",)
KERNELS = ""

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
    **unknown: Any,
) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v with (B, H, N, d); the scale is folded into q: no extra pass over N^2.

    A row whose mask hides every key gives 0, as in torch.
    """
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeat = query.shape[1] // key.shape[1]
        key, value = (
            key.repeat_interleave(repeat, 1),
            value.repeat_interleave(repeat, 1),
        )
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if masked else scores + attn_mask
    softmax = torch.softmax if attn_mask is None else torch.ops.aten._safe_softmax
    weights = softmax(scores, -1)
    if dropout_p:
        weights = torch.dropout(weights, dropout_p, True)
    return weights @ value
