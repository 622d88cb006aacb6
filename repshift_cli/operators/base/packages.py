"""The FlashAttention packages: whether one is installed, and torch's layout against theirs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from repshift_cli.machine.packages import install, is_installed
from repshift_cli.operators.base.spec import Cost, Engine, Shape, Spec
from repshift_cli.records import Offers

OFFERS = Offers(dtypes={"cuda": ("bf16", "fp16")}, max_head_dim=256, head_dim_multiple=8)


def package(
    module: str,
    hint: str,
    kernels: str,
    cost: Callable[[Shape, Spec], Cost] | None = None,
    **options: Callable[[Spec], Any],
) -> Engine:
    """The engine that calls `flash_attn_func` of a package: (B, H, N, d) outside, (B, N, H, d) inside, no copy.

    `options` are further keyword arguments, each from the spec (a window).
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
        given = {name: option(spec) for name, option in options.items()}
        function = import_module(module).flash_attn_func
        out = function(*(t.transpose(1, 2) for t in (q, k, v)), causal=spec.causal, **given)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    unavailable = missing(module, hint)
    return Engine(attend, kernels=kernels, offers=OFFERS, unavailable=unavailable, backward=("cuda",), cost=cost)


def missing(module: str, hint: str) -> Callable[[str], str | None]:
    """Why a package that runs on CUDA only cannot run on a device, with the way to get it."""

    def unavailable(device: str) -> str | None:
        if not is_installed(module):
            return f"{module} is not installed ({hint})"
        return None if device.startswith("cuda") else f"{module} runs on CUDA only"

    return unavailable


FLASH_ATTN2 = ("flash_attn", install("flash-attn"), r"flash_fwd\w*")
FLASH_ATTN3 = ("flash_attn_interface", "built from hopper/ of the flash-attention repository", r"FlashAttnFwd\w*")
FLASH_ATTN4 = ("flash_attn.cute", "pip install --pre flash-attn-4", r"FlashAttentionForward\w*")
