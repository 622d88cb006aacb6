"""A back end put in the place of torch's attention for a while: its session, and its function at `kernels.sdpa`.

What slips past the one patch is found by `benchmark/verification.py`, which counts the calls and looks at what ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from repshift_cli.kernels.sdpa import answered_by


@contextmanager
def attending(backend: Any) -> Iterator[None]:
    """Within it every attention call is answered by `backend`: a module of this room.

    `backend.session()` is a context around it (a forced SDPA kernel); `backend.attend`, where it is not None, stands
    in for `torch.nn.functional.scaled_dot_product_attention` and has its signature.
    """
    # nn.MultiheadAttention's and nn.TransformerEncoderLayer's fused path calls no Python function that could be patched
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with nullcontext() if backend.attend is None else answered_by(backend.attend), backend.session():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def refuse(attn_mask: Any, dropout_p: float, name: str) -> None:
    """ValueError for what a FlashAttention package does not take."""
    if attn_mask is not None:
        raise ValueError(f"{name} takes no attention mask; use the back end 'efficient' or 'vanilla'")
    if dropout_p:
        raise ValueError(f"{name} is bound without dropout; call eval() on the model")
