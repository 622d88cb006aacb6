"""FlexAttention, compiled: a mask or a change of the scores as a function of places, in a fused kernel.

Its eager form materialises N x N, so it is never run in the place of the compiled one: where torch.compile has no
compiler (Triton on CUDA, a C++ compiler on a CPU), it is refused with the reason.
"""

from __future__ import annotations

import shutil
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from repshift_cli.machine.packages import is_installed
from repshift_cli.operators.base.masks import Mask, causal
from repshift_cli.operators.base.spec import Cost, Engine, Shape, Spec

COMPILED = ("Torch-Compiled Region",)
EAGER = "aten::logsumexp"
"""What runs in FlexAttention's eager form and never in the compiled one: torch.compile falls back in silence."""
KERNELS = r"triton_tem_fused\w*|flex_attention\w*"
BLOCK = 128

ScoreMod = Callable[..., Tensor]
"""(score, batch, head, i, j) -> score."""


def session() -> AbstractContextManager[Any]:
    """Within it torch.compile raises where it would go on eagerly."""
    import torch._dynamo  # here, for it doubles the time in which a process that measures starts

    return torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)


def unavailable(device: str) -> str | None:
    """Why FlexAttention cannot be compiled for this device, or None."""
    if device.startswith("cuda"):
        return None if is_installed("triton") else "torch.compile needs Triton for it (pip install triton)"
    if any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return None
    return "torch.compile needs a C++ compiler for it on a CPU (apt-get install g++)"


def engine(
    mask: Callable[[Spec], Mask | None],
    score: Callable[..., ScoreMod] | None = None,
    cost: Callable[[Shape, Spec], Cost] | None = None,
    unasked: tuple[str, ...] = ("cuda",),
) -> Engine:
    """The engine for a mask of places (None lets everything through) and a change of the scores.

    `score(spec, **parameters)` gives the change. The block mask is made once per shape, not in the timed region: it
    depends on places alone.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **parameters: Tensor) -> Tensor:
        places = _block_mask(mask, spec, q.shape[-2], k.shape[-2], str(q.device))
        change = score(spec, **parameters) if score else None
        grouped = k.shape[1] != q.shape[1]
        return compiled(score, q, k)(q, k, v, score_mod=change, block_mask=places, enable_gqa=grouped)

    return Engine(
        attend,
        COMPILED,
        KERNELS,
        unavailable=unavailable,
        backward=("cuda",),
        session=session,
        unasked=unasked,
        cost=cost,
    )


def with_causal(mask: Mask | None, spec: Spec) -> Mask | None:
    """The mask, and the causal one where the spec asks for it."""
    if not spec.causal:
        return mask
    return causal if mask is None else lambda i, j: mask(i, j) & causal(i, j)


def from_blocks(active: Tensor, size: int, causal: bool, queries: int, keys: int) -> BlockMask:
    """A block mask from the blocks that are seen, (B, H, rows, columns) of bool with blocks of `size` x `size`.

    Blocks on the diagonal of a causal one, and those at the ragged end, are masked within.
    """

    def seen(batch: Any, head: Any, i: Any, j: Any) -> Any:
        inside = active[batch, head, i // size, j // size]
        return inside & (j <= i) if causal else inside

    return create_block_mask(seen, active.shape[0], active.shape[1], queries, keys, active.device, BLOCK_SIZE=size)


@cache
def _block_mask(mask: Callable[[Spec], Mask | None], spec: Spec, queries: int, keys: int, device: str) -> Any:
    places = mask(spec)
    if places is None:
        return None
    return create_block_mask(
        lambda b, h, i, j: places(i, j), None, None, queries, keys, device=device, BLOCK_SIZE=BLOCK
    )


def compiled(key: Any, q: Tensor, k: Tensor) -> Any:
    """flex_attention through torch.compile, with code of its own for each score change and shape.

    torch.compile gives up after eight recompilations of one code object, and flex_attention then materialises N x N.
    """
    return _compiled(key, q.shape, k.shape, q.dtype, q.device, torch.is_grad_enabled())


@cache
def _compiled(*key: Any) -> Any:
    original = flex_attention
    own = types.FunctionType(
        original.__code__.replace(), original.__globals__, None, original.__defaults__, original.__closure__
    )
    own.__kwdefaults__ = original.__kwdefaults__
    function: Any = torch.compile(own, dynamic=False)
    return function
