"""torch's scaled_dot_product_attention, one of its kernels forced."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from repshift_cli.operators.base.counts import fused
from repshift_cli.operators.base.spec import Engine, Shape, Spec
from repshift_cli.records import Offers

FLASH_OPS = ("aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu")
FLASH_KERNELS = r"flash_fwd\w*|Flash\w*Fwd\w*|FlashAttentionForward\w*"
FLASH_OFFERS = Offers(dtypes={"cuda": ("bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")}, max_head_dim=256)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """softmax(s q k^T) v by whichever kernel the session allows: (B, H, Nq, d), (B, Hkv, N, d), (B, Hkv, N, d)."""
    causal = spec.causal and q.shape[-2] > 1
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=k.shape[1] != q.shape[1])


def needs_cuda(device: str) -> str | None:
    """The reason why a kernel that exists on CUDA only is missing here."""
    return None if device.startswith("cuda") else "exists on CUDA only"


def ungrouped(shape: Shape, spec: Spec) -> str | None:
    """Refuses fewer KV heads than query heads."""
    if shape.kv_heads == shape.heads:
        return None
    return f"takes as many KV heads as query heads, not {shape.kv_heads} for {shape.heads}"


flash_session = partial(sdpa_kernel, [SDPBackend.FLASH_ATTENTION])


FLASH = Engine(attend, FLASH_OPS, FLASH_KERNELS, FLASH_OFFERS, session=flash_session, cost=fused)
"""FlashAttention as torch carries it; on a CPU torch's own CPU flash kernel."""
