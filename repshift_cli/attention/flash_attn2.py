"""FlashAttention 2 from the package flash-attn (flash_attn), CUDA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

from repshift_cli.attention.base.packages import adapted, missing
from repshift_cli.machine.packages import install
from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("bf16", "fp16")}, max_head_dim=256, head_dim_multiple=8)
OPS = ()
KERNELS = r"flash_fwd\w*"

session = nullcontext
unavailable = partial(missing, "flash_attn", install("flash-attn"))


@cache
def _function() -> Callable[..., Any]:
    from flash_attn import flash_attn_func

    return flash_attn_func


attend = adapted("flash-attn 2", _function)
