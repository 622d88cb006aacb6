"""Multi-head latent attention (DeepSeek-V2): keys and values of all heads from one latent of rank 4 d per token.

c_t = W_dkv x_t; k_h = [W_uk,h c, k_rope], v_h = W_uv,h c. `plain` expands the latent and runs flash attention;
`absorbed` moves W_uk to the query and W_uv to the output and reads the latent itself: right for decode, costly here.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from repshift_cli.operators.base import latent
from repshift_cli.operators.base.latent import arrange, cost
from repshift_cli.operators.base.sdpa import FLASH_KERNELS, FLASH_OFFERS, FLASH_OPS, flash_session
from repshift_cli.operators.base.spec import Engine, Spec
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "DeepSeek-AI 2024, arXiv 2405.04434"
CLASS = "exact"
CAUSAL = (False, True)

__all__ = ["arrange", "cost", "refused"]


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **up: Any) -> Tensor:
    """q [content, rotary] (B, H, N, d + dr), k the cache [latent, rotary key] (B, 1, N, r + dr) -> (B, H, N, d)."""
    return latent.not_absorbed(q, k, spec, **up)


def absorbed(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **up: Any) -> Tensor:
    """The same through the latent itself."""
    return latent.absorbed(q, k, spec, **up)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **up: Any) -> Tensor:
    """The equation."""
    return latent.equation(q, k, spec, **up)


ENGINES = {
    "plain": Engine(attend, FLASH_OPS, FLASH_KERNELS, FLASH_OFFERS, session=flash_session),
    "absorbed": Engine(absorbed, unasked=("cpu", "cuda"), cost=latent.absorbed_cost),
}
