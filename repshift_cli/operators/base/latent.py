"""Multi-head latent attention: what its cache holds, its two ways to be computed, and its equation.

DeepSeek-V2's proportions: rank 4 d, rotary part d / 2. The latent comes of the given keys by a seeded projection.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.operators.base import reference, rows
from repshift_cli.operators.base.counts import full_macs
from repshift_cli.operators.base.rotary import rotated
from repshift_cli.operators.base.spec import Arranged, Cost, Shape, Spec, drawn


def sizes(head_dim: int) -> tuple[int, int]:
    """(rank of the latent, dims of the rotary part)."""
    return 4 * head_dim, 2 * (head_dim // 4)


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec, queries: int | None = None) -> Arranged:
    """q as [content, rotary] (B, H, Nq, d + dr); the cache [latent, rotary key] (B, 1, N, r + dr) as k and as v."""
    heads, d = q.shape[1], q.shape[-1]
    rank, turning = sizes(d)
    hidden = k.transpose(1, 2).flatten(2)
    width = hidden.shape[-1]
    latent = hidden @ drawn(q, spec, "mla down", width, rank, scale=1 / math.sqrt(width))
    key = rotated((hidden @ drawn(q, spec, "mla key", width, turning, scale=1 / math.sqrt(width)))[:, None])
    query = rotated(q @ drawn(q, spec, "mla query", d, turning, scale=1 / math.sqrt(d)))
    up = {name: drawn(q, spec, f"mla {name}", heads, d, rank, scale=1 / math.sqrt(rank)) for name in ("keys", "values")}
    q = torch.cat([q, query], -1)[:, :, -queries if queries else 0 :].contiguous()
    cache = torch.cat([latent[:, None], key], -1)

    def full() -> tuple[Tensor, Tensor, Tensor]:
        return q, *expanded(cache, up["keys"], up["values"], turning)

    return Arranged(q, cache, cache, {"up_keys": up["keys"], "up_values": up["values"]}, full=full)


def expanded(cache: Tensor, up_keys: Tensor, up_values: Tensor, turning: int) -> tuple[Tensor, Tensor]:
    """The keys [W_uk c, rotary key] (B, H, N, d + dr) and values W_uv c (B, H, N, d) of every head."""
    latent, key = cache[..., :-turning], cache[..., -turning:]
    keys = torch.cat([latent @ up_keys.transpose(-2, -1), key.expand(-1, up_keys.shape[0], -1, -1)], -1)
    return keys, latent @ up_values.transpose(-2, -1)


def not_absorbed(q: Tensor, cache: Tensor, spec: Spec, up_keys: Tensor, up_values: Tensor) -> Tensor:
    """Keys and values are expanded, then flash attention; the values are padded to the keys' width, as it asks."""
    d = up_keys.shape[1]
    keys, values = expanded(cache, up_keys, up_values, q.shape[-1] - d)
    values = F.pad(values, (0, q.shape[-1] - d))
    causal = spec.causal and q.shape[-2] > 1
    return F.scaled_dot_product_attention(q, keys, values, is_causal=causal)[..., :d]


def absorbed(q: Tensor, cache: Tensor, spec: Spec, up_keys: Tensor, up_values: Tensor) -> Tensor:
    """W_uk goes to the query and W_uv to the output, so that all heads read the cache as it is."""
    d, rank = up_keys.shape[1:]
    moved = torch.cat([q[..., :d] @ up_keys, q[..., d:]], -1)
    latent = rows.attend_rows(moved, cache, cache[..., :rank], spec.causal, scale=1 / math.sqrt(q.shape[-1]))
    return latent @ up_values.transpose(-2, -1)


def equation(q: Tensor, cache: Tensor, spec: Spec, up_keys: Tensor, up_values: Tensor) -> Tensor:
    """Softmax attention with the expanded keys and values."""
    keys, values = expanded(cache, up_keys, up_values, q.shape[-1] - up_keys.shape[1])
    return reference.full(q, keys, values, spec.causal)


def cost(shape: Shape, spec: Spec) -> Cost:
    """Expanding the cache, then attention with keys of d + dr."""
    rank, turning = sizes(shape.head_dim)
    expanding = 2 * shape.batch * shape.tokens * shape.heads * shape.head_dim * rank
    pairs = full_macs(shape, spec.causal) // (2 * shape.head_dim)
    per_token = shape.heads * (2 * shape.head_dim + turning)
    expanded_elements = shape.batch * shape.tokens * per_token
    cache = shape.batch * shape.tokens * (rank + turning)
    weights = 2 * shape.heads * shape.head_dim * rank
    ends = shape.batch * shape.heads * shape.queries * (2 * shape.head_dim + turning)
    moved = cache + weights + 2 * expanded_elements + ends
    return Cost(expanding + pairs * (2 * shape.head_dim + turning), moved, expanded_elements)


def absorbed_cost(shape: Shape, spec: Spec) -> Cost:
    """Two small products for each query, and keys and values of the latent's width."""
    rank, turning = sizes(shape.head_dim)
    rows_ = shape.batch * shape.heads * shape.queries
    pairs = full_macs(shape, spec.causal) // (2 * shape.head_dim)
    cache = shape.batch * shape.tokens * (rank + turning)
    weights = 2 * shape.heads * shape.head_dim * rank
    scores = rows_ * shape.tokens
    held = rows.run_length(shape.queries, shape.batch * shape.heads * shape.tokens) * scores // shape.queries
    moved = cache + weights + rows_ * (2 * shape.head_dim + turning) + 4 * scores
    return Cost(2 * rows_ * shape.head_dim * rank + pairs * (2 * rank + turning), moved, 3 * held)
