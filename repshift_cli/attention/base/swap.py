"""Where attention is swapped: torch's scaled_dot_product_attention, which transformers, timm and plain modules call.

One seam for all of them is simpler than a switch per library, and what slips past it is found by the verification of
`probes/kernels.py`, which counts the calls and looks at what ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F


@contextmanager
def attending(backend: Any) -> Iterator[None]:
    """Within it every attention call is answered by `backend`: a module of this room.

    `backend.session()` is a context around it (a forced SDPA kernel); `backend.attend`, where it is not None, stands
    in for `torch.nn.functional.scaled_dot_product_attention` and has its signature. torch's fused
    nn.MultiheadAttention path is off meanwhile, since it would bypass the seam.
    """
    original, fast = (
        F.scaled_dot_product_attention,
        torch.backends.mha.get_fastpath_enabled(),
    )
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if backend.attend is not None:
            F.scaled_dot_product_attention = backend.attend
        with backend.session():
            yield
    finally:
        F.scaled_dot_product_attention = original
        torch.backends.mha.set_fastpath_enabled(fast)


def refuse(attn_mask: Any, dropout_p: float, name: str) -> None:
    """ValueError for what a FlashAttention package does not take."""
    if attn_mask is not None:
        raise ValueError(f"{name} takes no attention mask; use the back end 'efficient' or 'vanilla'")
    if dropout_p:
        raise ValueError(f"{name} is bound without dropout; call eval() on the model")
