"""What the FlashAttention packages share: whether one is installed, and torch's layout against theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from repshift_cli.attention.base.swap import refuse
from repshift_cli.machine.packages import is_installed

Attend = Callable[..., Tensor]


def missing(module: str, hint: str, device: str) -> str | None:
    """Why a package's back end cannot run here, with the way to get it, or None."""
    if not is_installed(module):
        return f"{module} is not installed ({hint})"
    return None if device.startswith("cuda") else f"{module} runs on CUDA only"


def adapted(name: str, load: Callable[[], Callable[..., Any]]) -> Attend:
    """A stand-in for SDPA that calls a package's function: (B, H, N, d) outside, (B, N, H, d) inside, no copy.

    The packages take fewer key/value heads than query heads by themselves (GQA). Their causal mask is aligned at the
    bottom right, torch's at the top left: the same where both sequences are equally long, refused where not.
    """

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
        refuse(attn_mask, dropout_p, name)
        if is_causal and query.shape[-2] != key.shape[-2]:
            raise ValueError(f"{name} aligns its causal mask differently from torch when query and key lengths differ")
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        out = load()(q, k, v, softmax_scale=scale, causal=is_causal)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return attend
