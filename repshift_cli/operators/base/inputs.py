"""Queries, keys and values: Gaussian, with what real attention shows planted in them, or captured from a model.

On Gaussian inputs attention is nearly uniform at any length, so every form that leaves keys out looks absurd.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.sdpa import AttentionCall, heard_by
from repshift_cli.operators.base.rotary import rotated
from repshift_cli.operators.base.spec import Shape

GAUSSIAN, PLANTED, CAPTURED = INPUTS = ("gaussian", "planted", "captured")
REACH = 128.0
"""Planted: the rotary base of the part that makes near tokens look at each other; it falls off within some 64."""
SINKS, HITTERS = 4, 4
"""Planted: the first tokens that every query looks at, and tokens anywhere that every query looks at too."""

Triple = tuple[Tensor, Tensor, Tensor]


def gaussian(shape: Shape, seed: int) -> Triple:
    """Independent normal q (B, H, N, d), k and v (B, Hkv, N, d), float32 on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    return tuple(torch.randn(shape.batch, h, shape.tokens, shape.head_dim, generator=generator) for h in heads)  # type: ignore[return-value]


def planted(shape: Shape, seed: int) -> Triple:
    """Gaussian noise with sinks, local bands and heavy hitters, as attention maps of trained models show them.

    A shared direction makes all queries look at the first tokens and at a few tokens drawn from the seed (the sinks'
    values are small, as trained ones are); a rotary part, alike in queries and keys, makes near tokens look at each
    other. At 1024 tokens of 64 dims a causal row gives the sinks 0.45, its 64 nearest 0.26, its 16 largest 0.86.
    """
    q, k, v = gaussian(shape, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    d = shape.head_dim
    direction = F.normalize(torch.randn(d, generator=generator), dim=0)
    loud = math.log(shape.tokens) + 1
    near = torch.randn(1, 1, 1, 2 * (d // 2), generator=generator).sign().expand(1, 1, shape.tokens, -1)
    near = F.pad(rotated(near, base=REACH), (0, d % 2)) * math.sqrt(max(loud - 1.5, 0.5) / math.sqrt(d))
    hitters = torch.randperm(shape.tokens, generator=generator)[:HITTERS]
    sinks = torch.arange(min(SINKS, shape.tokens))
    weight = torch.zeros(shape.tokens)
    weight[hitters] = 0.9
    weight[sinks] = 1.0
    strength = math.sqrt(math.sqrt(d) * (loud + 0.5))
    q = 0.5 * q + near + strength * direction
    k = 0.5 * k + near + strength * weight[:, None] * direction
    v = torch.where(weight[:, None] == 1.0, 0.1 * v, v)
    return q, k, v


@contextmanager
def capturing(layer: int) -> Iterator[list[Triple]]:
    """Collects q, k and v of the attention call number `layer` (from 1) that a model makes within it."""
    calls, taken = list[None](), list[Triple]()

    def listener(call: AttentionCall) -> None:
        calls.append(None)
        if len(calls) == layer:
            taken.append((call.query.detach().clone(), call.key.detach().clone(), call.value.detach().clone()))

    with heard_by(listener):
        yield taken
