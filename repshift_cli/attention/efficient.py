"""Memory-efficient attention (xFormers' kernel inside torch's SDPA), forced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention
from torch.nn.attention import SDPBackend

from repshift_cli.attention.base.sdpa import forced, needs_cuda
from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("fp32", "bf16", "fp16")}, mask=("cuda",))
OPS = ("aten::_scaled_dot_product_efficient_attention",)
KERNELS = r"fmha_cutlass\w*|mem_eff\w*"

session = forced(SDPBackend.EFFICIENT_ATTENTION)

unavailable = needs_cuda


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
    """torch's own attention, (B, H, N, d); grouped keys and values are repeated where the kernel takes no groups.

    torch 2.11's refuses them, where its flash kernel takes them; the copies are part of what this back end costs then.
    """
    rest: dict[str, Any] = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    if enable_gqa and key.shape[1] != query.shape[1]:
        if not _takes_groups(query, key, value, attn_mask, dropout_p, is_causal):
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        else:
            rest["enable_gqa"] = True
    return torch._C._nn.scaled_dot_product_attention(query, key, value, **rest)


def _takes_groups(*call: Any) -> bool:
    """Whether this torch's kernel takes these grouped queries as they are; not asked while torch.compile follows."""
    if torch.compiler.is_compiling():
        return False
    return can_use_efficient_attention(SDPAParams(*call, True))  # type: ignore[call-arg]
