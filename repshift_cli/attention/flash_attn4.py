"""FlashAttention 4 from the package flash-attn-4 (flash_attn.cute), CUDA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

from repshift_cli.attention.base.packages import adapted, missing
from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("bf16", "fp16")}, max_head_dim=256, head_dim_multiple=8)
OPS = ()
KERNELS = r"FlashAttentionForward\w*"

session = nullcontext
unavailable = partial(missing, "flash_attn.cute", "pip install --pre flash-attn-4")


@cache
def _function() -> Callable[..., Any]:
    from flash_attn.cute import flash_attn_func

    return flash_attn_func


attend = adapted("flash-attn 4", _function)
