"""XAttention: blocks chosen by the sums along their antidiagonals, exact attention on the chosen ones.

Within each stride of S the queries in reverse times the keys give antidiagonal sums; softmax (over S d) along the keys,
summed per block of B x B; per row of blocks the fewest whose mass reaches tau. The last block is kept in a causal one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base import flex
from repshift_cli.operators.base.gather import attend_blocks
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.rows import grouped
from repshift_cli.operators.base.selection import active_cost, by_mass, flex_on_blocks
from repshift_cli.operators.base.spec import Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import as_given as arrange

PAPER = "Xu et al. 2025, arXiv 2503.16428"
CLASS = "approximate"
CAUSAL = (False, True)

__all__ = ["arrange"]


def refused(shape: Shape, spec: Spec) -> str | None:
    """Blocks that are not whole strides."""
    return f"blocks of {spec.block} are not whole strides of {spec.stride}" if spec.block % spec.stride else None


def choose(q: Tensor, k: Tensor, spec: Spec) -> Tensor:
    """The blocks that are attended to: (B, H, blocks, blocks) of bool."""
    n, stride, ratio = q.shape[-2], spec.stride, spec.block // spec.stride
    pad = (0, 0, 0, -n % spec.block)
    k = grouped(k, q)
    turned = F.pad(q, pad).unflatten(2, (-1, stride)).flip(3).flatten(3)
    strided = F.pad(k, pad).unflatten(2, (-1, stride)).flatten(3)
    sums = turned @ strided.transpose(-2, -1) / (math.sqrt(q.shape[-1]) * stride)
    group = torch.arange(sums.shape[-1], device=q.device)
    real = group * stride < n
    seen = real & (group <= group[:, None]) if spec.causal else real.expand(sums.shape[-2:])
    mass = torch.softmax(hidden(sums.float() if sums.dtype != torch.float64 else sums, seen), -1)
    mass = (mass * seen * real[:, None]).unflatten(3, (-1, ratio)).sum(-1).unflatten(2, (-1, ratio)).sum(3)
    active = by_mass(mass, spec.tau)
    return active | torch.eye(active.shape[-1], dtype=torch.bool, device=q.device) if spec.causal else active


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d); choosing is part of it."""
    active = choose(q, k, spec)
    return attend_blocks(q, grouped(k, q), grouped(v, q), active, spec.block, spec.causal)


def on_flex(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The same with FlexAttention on the chosen blocks; making its block mask is part of it."""
    return flex_on_blocks(q, k, v, choose(q, k, spec), spec)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation, block by block: every antidiagonal of every pair of strides, summed from single products."""
    active = _chosen_plainly(q, grouped(k, q), spec)
    j = torch.arange(k.shape[-2], device=q.device)
    blocks = active[:, :, j // spec.block][..., j // spec.block]

    def kept(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return scores.masked_fill(~blocks[:, :, i[:, 0]], -math.inf)

    causal = (lambda i, j: j <= i) if spec.causal else (lambda i, j: (j >= 0) & (i >= 0))
    return attention(q, k, v, causal, bias=kept)


def _chosen_plainly(q: Tensor, k: Tensor, spec: Spec) -> Tensor:
    n, size, stride = q.shape[-2], spec.block, spec.stride
    count = -(-n // size)
    whole = count * size // stride
    products = q.new_zeros(*q.shape[:2], whole * stride, whole * stride)
    products[:, :, :n, :n] = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    tiles = products.view(*q.shape[:2], whole, stride, whole, stride).transpose(3, 4)
    sums = tiles.flip(-2).diagonal(dim1=-2, dim2=-1).sum(-1) / stride
    real = torch.arange(whole, device=q.device) * stride < n
    seen = real.expand(whole, whole).tril() if spec.causal else real.expand(whole, whole)
    mass = torch.softmax(sums.masked_fill(~seen, -math.inf), -1) * real[:, None]
    per_block = mass.view(*q.shape[:2], count, size // stride, count, size // stride).sum((3, 5))
    active = torch.zeros_like(per_block, dtype=torch.bool)
    flat = active.flatten(0, -2)
    for scores, taken in zip(per_block.flatten(0, -2), flat, strict=True):
        total = 0.0
        for place in scores.argsort(descending=True, stable=True).tolist():
            if (total >= spec.tau * float(scores.sum()) and spec.tau < 1) or scores[place] <= 0:
                break
            taken[place] = True
            total += float(scores[place])
    return active | torch.eye(count, dtype=torch.bool, device=q.device) if spec.causal else active


def cost(shape: Shape, spec: Spec) -> Cost:
    """An upper bound: the choice (1 / S of the products), and exact attention on all blocks, for the data choose."""
    chosen = active_cost(shape, spec, 1.0)
    sums = shape.batch * shape.heads * (shape.tokens // spec.stride) ** 2
    return Cost(
        chosen.macs + sums * shape.head_dim * spec.stride,
        chosen.moved + 5 * sums,
        chosen.held + 2 * sums,
    )


ENGINES = {
    "plain": Engine(attend, capturable=False),
    "flex": Engine(
        on_flex,
        flex.COMPILED,
        flex.KERNELS,
        unavailable=flex.unavailable,
        session=flex.session,
        backward=("cuda",),
        capturable=False,
    ),
}
