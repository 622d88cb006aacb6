"""StreamingLLM with the paper's positions within the cache: what is far away is not told by its rotary angle.

q and k come without rotary positions. Keys in the window are as far as they are; a sink j is min(i, sinks + w - 1) - j
away, as in a cache of sinks + w places. Held against full causal attention with the rotary positions of the sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.bands import block_of, blocks, hidden, spans, unblocked
from repshift_cli.operators.base import reference as dense
from repshift_cli.operators.base.counts import band_cost
from repshift_cli.operators.base.rotary import rotated
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec

PAPER = "Xiao et al. 2024, arXiv 2309.17453, section 3.2"
CLASS = "approximate"
CAUSAL = (True,)


def refused(shape: Shape, spec: Spec) -> str | None:
    """Rotary positions turn pairs of dims."""
    return f"rotary positions need an even head dim, not {shape.head_dim}" if shape.head_dim % 2 else None


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """As given; the full attention has the positions of the sequence."""
    return Arranged(q, k, v, full=lambda: (rotated(q), rotated(k), v))


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d); turning q and k is part of it."""
    n = q.shape[-2]
    left, first = min(spec.window, n) - 1, min(spec.sinks, n)
    size = block_of(left, 0)
    scale = 1 / math.sqrt(q.shape[-1])
    local = blocks(rotated(q) * scale, k.shape[1], size)
    capped = torch.arange(n, device=q.device).clamp_max(spec.sinks + spec.window - 1)
    distant = blocks(rotated(q, capped) * scale, k.shape[1], size)
    keys = rotated(k)
    count, groups = local.shape[2], local.shape[3] // size
    i = torch.arange(count * size, device=q.device).view(-1, size, 1).repeat(1, groups, 1)
    j = torch.arange(left + size, device=q.device) - left + size * torch.arange(count, device=q.device)[:, None]
    at = torch.arange(first, device=q.device)
    near = hidden(local @ spans(keys, size, left, 0), _local(i, j[:, None], left, n))
    sinks = hidden(distant @ keys[:, :, None, :first].transpose(-2, -1), (i - at > left) & (at <= i))
    weights = torch.softmax(torch.cat([sinks, near], -1), -1)
    values = spans(v, size, left, 0).transpose(-2, -1)
    return unblocked(weights[..., first:] @ values + weights[..., :first] @ v[:, :, None, :first], q)


def _local(i: Tensor, j: Tensor, left: int, n: int) -> Tensor:
    return (j >= 0) & (j < n) & (i - j <= left) & (j <= i)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation: scores from the true distance in the window, from the capped one at the sinks."""
    k, v = dense.per_query_head(k, q), dense.per_query_head(v, q)
    n, scale = q.shape[-2], 1 / math.sqrt(q.shape[-1])
    i, j = torch.arange(n, device=q.device)[:, None], torch.arange(n, device=q.device)[None]
    capped = torch.arange(n, device=q.device).clamp_max(spec.sinks + spec.window - 1)
    near = rotated(q) @ rotated(k).transpose(-2, -1) * scale
    far = rotated(q, capped) @ rotated(k).transpose(-2, -1) * scale
    within = (i - j < spec.window) & (j <= i)
    scores = torch.where(within, near, far)
    return dense.weights(scores, within | ((j < spec.sinks) & (j <= i))) @ v


def cost(shape: Shape, spec: Spec) -> Cost:
    """The streaming mask's, and q turned twice, k once."""
    sinks = min(spec.sinks, shape.tokens)
    base = band_cost(shape, spec.window - 1, 0, extra_pairs=sinks * shape.tokens)
    turned = shape.batch * shape.tokens * shape.head_dim * (2 * shape.heads + shape.kv_heads)
    return Cost(base.macs, base.moved + 2 * turned, base.held + turned)


ENGINES = {"plain": Engine(attend)}
