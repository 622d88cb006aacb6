"""Log-linear attention: linear attention whose past is kept in a Fenwick tree of states, each level with its weight.

out_i = sum_l lambda_i,l phi(q_i) S_l(i), S_l over the bucket of 2^(l-1) tokens that the set bits of i cut off, level 0
the token itself; lambda = softplus(W q). The base is Katharopoulos' linear attention with its normaliser, so that equal
weights give `linear`; the paper's (Mamba-2, gated DeltaNet) have gates and none. O(N log N), causal.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.operators.base.reference import per_query_head
from repshift_cli.operators.base.rows import grouped
from repshift_cli.operators.base.spec import NEEDS_TRAINING, Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused
from repshift_cli.operators.base.states import CHUNK, chunked, features, lower, normalised, wide, with_ones

PAPER = "Guo et al. 2025, arXiv 2506.04761"
CLASS = "trained"
CAUSAL = (True,)

__all__ = ["refused"]


def levels(n: int) -> int:
    """Levels of a tree of n tokens: the token itself and one for each bit of its place."""
    return max(1, n - 1).bit_length() + 1


def level_of(i: Tensor, j: Tensor) -> Tensor:
    """The level of the pair j <= i: 0 for itself, else 1 + the highest bit in which the places differ."""
    differing = (i ^ j).clamp_min(1).double()
    return torch.where(i == j, 0, torch.floor(torch.log2(differing)).long() + 1)


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """W (H, d, levels), drawn from the seed."""
    heads, n, d = q.shape[1:]
    weights = drawn(q, spec, "log-linear", heads, d, levels(max(n, CHUNK)), scale=1 / math.sqrt(d))
    return Arranged(q, k, v, {"of_levels": weights}, full=NEEDS_TRAINING)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, of_levels: Tensor) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d), (H, d, levels) -> (B, H, N, d)."""
    n = q.shape[2]
    strength = chunked(wide(F.softplus(q @ of_levels)))
    query, key = chunked(wide(features(q))), chunked(wide(features(grouped(k, q))))
    value = chunked(with_ones(wide(grouped(v, q))))
    place = torch.arange(CHUNK, device=q.device)
    level = level_of(place[:, None], place).clamp_max(CHUNK.bit_length() - 1)
    weight = strength.gather(-1, level.expand(*strength.shape[:-1], -1))
    out = (query @ key.transpose(-2, -1) * lower(CHUNK, q.device) * weight) @ value
    state = key.transpose(-2, -1) @ value
    for bit in range((query.shape[2] - 1).bit_length()):
        reading = with_bit(bit, query.shape[2], q.device)
        read = query[:, :, reading] @ state[:, :, (reading >> bit) - 1]
        weight = strength[:, :, reading][..., CHUNK.bit_length() + bit, None]
        out = out.index_add(2, reading, weight * read)
        state = F.pad(state, (0, 0, 0, 0, 0, state.shape[2] % 2)).unflatten(2, (-1, 2)).sum(3)
    return normalised(out.flatten(2, 3)[:, :, :n]).to(q.dtype)


def with_bit(bit: int, count: int, device: torch.device) -> Tensor:
    """The numbers below `count` that have this bit, in order; how many there are is known without looking at any."""
    whole, rest = divmod(count, 2 << bit)
    there = torch.arange((whole << bit) + max(0, rest - (1 << bit)), device=device)
    return (there >> bit << bit + 1) + (1 << bit) + (there & (1 << bit) - 1)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, of_levels: Tensor) -> Tensor:
    """The equation as a matrix: phi(q_i) phi(k_j) lambda at the level of each pair, rows normalised."""
    k, v = per_query_head(k, q), per_query_head(v, q)
    strength = F.softplus(q @ of_levels)
    place = torch.arange(q.shape[2], device=q.device)
    level = level_of(place[:, None], place)
    weight = strength.gather(-1, level.clamp_max(strength.shape[-1] - 1).expand(*q.shape[:2], -1, -1))
    similar = (features(q) @ features(k).transpose(-2, -1) * weight).tril()
    return similar / similar.sum(-1, keepdim=True) @ v


def cost(shape: Shape, spec: Spec) -> Cost:
    """The chunk's own pairs, a state of d x (d + 1) made per token, and half of the levels above read per token."""
    rows, d = shape.batch * shape.heads * shape.tokens, shape.head_dim
    above = max(0, levels(shape.tokens) - CHUNK.bit_length())
    macs = rows * (CHUNK * (2 * d + 1) + d * (d + 1) * (1 + above / 2) + d * levels(shape.tokens))
    states = rows // CHUNK * d * (d + 1)
    moved = shape.given + rows * (4 * CHUNK + 4 * d * (1 + above)) + 4 * states
    return Cost(int(macs), moved, rows * (3 * CHUNK + 4 * d) + 2 * states)


ENGINES = {"plain": Engine(attend)}
