"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, Eq. 2 to 4): mamba-ssm's kernel, or plain torch.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y_t = C_t h_t + D u_t

Every channel d has a state of N numbers, which sees no other channel. The scan is one operator of torch's
(`torch.ops.repshift.selective_scan`), so that a flop counter sees it, whichever of the two runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

MAMBA_SSM, PLAIN = "mamba-ssm", "plain torch"
_SCHEMA = (
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, "
    "Tensor? delta_bias=None, bool delta_softplus=False) -> Tensor"
)


@torch.library.custom_op("repshift::selective_scan", mutates_args=(), schema=_SCHEMA)
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """y, (batch, D, L) in the dtype of `u`; forward only, it has no gradient.

    u, delta, z (batch, D, L); A (D, N), negative; B, C (batch, N, L); D, delta_bias (D,). As in mamba-ssm's
    `selective_scan_fn`: delta is softplus(delta + delta_bias), each where given, and y is gated by silu(z).
    """
    fused = _mamba_ssm() if scan_in_use(u) == MAMBA_SSM else None
    scan = plain_scan if fused is None else fused
    return scan(u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)


@selective_scan.register_fake
def _shape(u: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What torch.compile must know of it: y is laid out like u."""
    return torch.empty_like(u, memory_format=torch.contiguous_format)


def scan_in_use(u: Tensor) -> str:
    """Which scan runs on a `u` like this: "mamba-ssm" on CUDA where installed, except in fp64; else "plain torch"."""
    fits = u.is_cuda and u.dtype != torch.float64
    return MAMBA_SSM if fits and _mamba_ssm() is not None else PLAIN


def scan_named(u: Tensor) -> str:
    """For the record: which scan runs on a `u` like this, and why it is not mamba-ssm's."""
    why = "is not installed" if _mamba_ssm() is None else "runs on CUDA only, and not in fp64"
    return f"scan: {MAMBA_SSM}" if scan_in_use(u) == MAMBA_SSM else f"scan: {PLAIN} ({MAMBA_SSM} {why})"


@cache
def _mamba_ssm() -> Callable[..., Tensor] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


@register_flop_formula(torch.ops.repshift.selective_scan)
def scan_flops(u: Any, delta: Any, A: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """2 FLOPs for each of 4 MACs per token, channel and state: delta A, (delta u) B, exp(delta A) h + ..., C h + ....

    Arguments are shapes: u (batch, D, L), A (D, N). A multiplication counts as one MAC whether or not a sum follows;
    what is done once per channel (softplus, delta u, D u, the gate) is left out, as activations are everywhere else.
    """
    batch, channels, length = u
    return int(2 * 4 * batch * channels * length * A[1])


def plain_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """`selective_scan` in torch operators, accumulated in fp32 (fp64 inputs in fp64)."""
    wide = torch.promote_types(u.dtype, torch.float32)
    x, delta, A, B, C = (t.to(wide) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(wide)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    y = _states_read(delta, delta * x, A, B, C)
    if D is not None:
        y = y + D.to(wide)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(wide))
    return y.to(u.dtype)


def _states_read(delta: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """C_t h_t with h_t = exp(delta_t A) h_{t-1} + B_t x_t, (batch, D, L); delta, x (batch, D, L).

    The tokens lie in about sqrt(L) chunks of about sqrt(L) tokens. All chunks walk through their tokens at once, from
    a state of zero, to find what each adds to the state; one walk over the chunks then gives the state that each starts
    from; with it they walk again and are read. That is 3 sqrt(L) steps, and memory for sqrt(L) states. Decays are only
    ever multiplied, never divided by, so nothing overflows however fast a state is forgotten.
    """
    batch, channels, length = x.shape
    size = math.isqrt(length - 1) + 1
    delta, x, B, C = (_chunked(t, size) for t in (delta, x, B, C))

    def after(state: Tensor, t: int) -> Tensor:
        """The states (batch, chunks, D, N) of all chunks after their token t."""
        decay = (delta[t][..., None] * A).exp_()
        return decay.mul_(state).addcmul_(x[t][..., None], B[t][..., None, :])

    added = x.new_zeros(*x.shape[1:], A.shape[1])
    for t in range(size):
        added = after(added, t)
    decay = (delta.sum(0)[..., None] * A).exp_()
    state = torch.zeros_like(added)
    for chunk in range(1, state.shape[1]):
        state[:, chunk] = decay[:, chunk - 1] * state[:, chunk - 1] + added[:, chunk - 1]
    read = x.new_empty(x.shape)
    for t in range(size):
        state = after(state, t)
        read[t] = (state * C[t][..., None, :]).sum(-1)
    return read.permute(1, 3, 2, 0).reshape(batch, channels, -1)[..., :length]


def _chunked(values: Tensor, size: int) -> Tensor:
    """(batch, D, L) as (size, batch, chunks, D); zeros fill the last chunk, where they leave the state as it is."""
    batch, channels, length = values.shape
    filled = F.pad(values, (0, -length % size))
    return filled.view(batch, channels, -1, size).permute(3, 0, 2, 1).contiguous()
