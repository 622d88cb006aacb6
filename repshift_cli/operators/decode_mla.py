"""Decoding with a latent cache (MLA), absorbed: r + d_rope numbers per token serve all heads.

q'_h = W_uk,h^T q_h; scores q'_h . c + q_rope . k_rope; out_h = W_uv,h (softmax c). `expanded` makes keys and values of
all heads first and runs flash attention.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from repshift_cli.operators.base import latent
from repshift_cli.operators.base.latent import absorbed_cost as cost
from repshift_cli.operators.base.sdpa import FLASH_KERNELS, FLASH_OFFERS, FLASH_OPS, flash_session
from repshift_cli.operators.base.spec import Arranged, Engine, Spec
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "DeepSeek-AI 2024, arXiv 2405.04434"
CLASS = "decode"
CAUSAL = (True,)

__all__ = ["cost", "refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The last query against the latent cache."""
    return latent.arrange(q, k, v, spec, queries=1)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **up: Any) -> Tensor:
    """q [content, rotary] (B, H, 1, d + dr), k the cache [latent, rotary key] (B, 1, N, r + dr) -> (B, H, 1, d)."""
    return latent.absorbed(q, k, spec, **up)


def expanded(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **up: Any) -> Tensor:
    """The same through expanded keys and values."""
    return latent.not_absorbed(q, k, spec, **up)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **up: Any) -> Tensor:
    """The equation."""
    return latent.equation(q, k, spec, **up)


ENGINES = {
    "plain": Engine(attend),
    "expanded": Engine(
        expanded,
        FLASH_OPS,
        FLASH_KERNELS,
        FLASH_OFFERS,
        session=flash_session,
        unasked=("cpu", "cuda"),
        cost=latent.cost,
    ),
}
