"""Native sparse attention: compressed blocks, the best blocks in full, and a window, each with its gate.

out = sum over the three of sigmoid(W q) * branch. Compressed: keys and values pooled per block with learnt weights,
only blocks that have ended. Selected: the top n blocks by the compressed scores summed over a GQA group, the first and
the current one always. Window: the last w. Blocks of compression and selection are the same here (the paper: 32 with
stride 16, and 64), so its equation 9 is the identity.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.bands import banded, hidden
from repshift_cli.operators.base.counts import band_cost
from repshift_cli.operators.base.masks import window
from repshift_cli.operators.base.reference import attention, per_query_head, weights
from repshift_cli.operators.base.rows import by_runs, mixed, products, run_length
from repshift_cli.operators.base.spec import NEEDS_TRAINING, Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Yuan et al. 2025, arXiv 2502.11089"
CLASS = "trained"
CAUSAL = (True,)
MOST_GATHERED = 1 << 22

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """Pooling weights (Hkv, block) for keys and for values, gates (H, d, 3), drawn from the seed."""
    heads, d = q.shape[1], q.shape[-1]
    pooling = {f"pool_{s}": drawn(q, spec, f"nsa {s}", k.shape[1], spec.block) for s in ("keys", "values")}
    gates = drawn(q, spec, "nsa gates", heads, d, 3, scale=1 / math.sqrt(d))
    return Arranged(q, k, v, {**pooling, "gates": gates}, full=NEEDS_TRAINING)


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: Spec, pool_keys: Tensor, pool_values: Tensor, gates: Tensor
) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d)."""
    gate = torch.sigmoid(q @ gates)
    compressed, mass = _compressed(q, _pooled(k, pool_keys, spec), _pooled(v, pool_values, spec), spec)
    selected = _selected(q, k, v, choose(mass, k.shape[1], q.shape[2], spec), spec)
    local = banded(q, k, v, spec.window - 1, 0)
    return gate[..., :1] * compressed + gate[..., 1:2] * selected + gate[..., 2:] * local


def _pooled(x: Tensor, pool: Tensor, spec: Spec) -> Tensor:
    """Whole blocks summed with softmax(pool): (B, Hkv, N, d) -> (B, Hkv, blocks, d)."""
    whole = x.shape[2] // spec.block
    x = x[:, :, : whole * spec.block].unflatten(2, (whole, spec.block))
    return torch.einsum("bhcnd,hn->bhcd", x, torch.softmax(pool, -1))


def _compressed(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Attention to the blocks that have ended, and its weights (B, H, N, blocks); 0 where none has."""
    if not k.shape[2]:
        return torch.zeros_like(q), q.new_zeros(*q.shape[:3], 0)
    ended = (torch.arange(1, k.shape[2] + 1, device=q.device) * spec.block - 1) <= _places(q)[:, None]
    mass = torch.softmax(hidden(products(q / math.sqrt(q.shape[-1]), k), ended), -1) * ended
    return mixed(mass, v), mass


def choose(mass: Tensor, kv_heads: int, n: int, spec: Spec) -> Tensor:
    """The blocks of each query, (B, Hkv, N, chosen); -1 where there are fewer."""
    count = -(-n // spec.block)
    mass = F.pad(mass.unflatten(1, (kv_heads, -1)).sum(2), (0, count - mass.shape[-1]))
    block = torch.arange(count, device=mass.device)
    own = (torch.arange(n, device=mass.device) // spec.block)[:, None]
    mass = mass.masked_fill((block == 0) | (block == own), 1e4).masked_fill(block > own, -1.0)
    best = mass.topk(min(spec.top, count), -1)
    return best.indices.masked_fill(best.values < 0, -1)


def _selected(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, spec: Spec) -> Tensor:
    """Attention of each query to the keys of its blocks, a run of queries at a time."""
    n, size = q.shape[2], spec.block
    keys, values = (F.pad(t, (0, 0, 0, -n % size)).unflatten(2, (-1, size)) for t in (k, v))
    queries = q.unflatten(1, (k.shape[1], -1)).transpose(2, 3) / math.sqrt(q.shape[-1])
    batch = torch.arange(q.shape[0], device=q.device)[:, None, None, None]
    head = torch.arange(k.shape[1], device=q.device)[:, None, None]

    def part(begin: int, end: int) -> Tensor:
        some = chosen[:, :, begin:end]
        j = (some[..., None] * size + torch.arange(size, device=q.device)).flatten(3)
        seen = (j >= 0) & (j <= torch.arange(begin, end, device=q.device)[:, None])
        near, far = (t[batch, head, some.clamp_min(0)].flatten(3, 4) for t in (keys, values))
        scores = hidden(queries[:, :, begin:end] @ near.transpose(-2, -1), seen[:, :, :, None])
        return torch.softmax(scores, -1) @ far

    per_row = k.shape[0] * k.shape[1] * chosen.shape[-1] * size * k.shape[-1]
    return by_runs(n, per_row, part, MOST_GATHERED).transpose(2, 3).flatten(1, 2)


def _places(q: Tensor) -> Tensor:
    return torch.arange(q.shape[2], device=q.device)


def reference(
    q: Tensor, k: Tensor, v: Tensor, spec: Spec, pool_keys: Tensor, pool_values: Tensor, gates: Tensor
) -> Tensor:
    """The equation with dense masks."""
    n, size = q.shape[2], spec.block
    place = _places(q)
    whole = n // size
    sums = [
        torch.einsum("bhcnd,hn->bhcd", x[:, :, : whole * size].unflatten(2, (whole, size)), pool.softmax(-1))
        for x, pool in ((k, pool_keys), (v, pool_values))
    ]
    pooled_k, pooled_v = (per_query_head(x, q) for x in sums)
    ended = (torch.arange(1, whole + 1, device=q.device) * size - 1) <= place[:, None]
    mass = weights(q @ pooled_k.transpose(-2, -1) / math.sqrt(q.shape[-1]), ended)
    chosen = choose(mass, k.shape[1], n, spec)
    kept = torch.zeros(*chosen.shape[:3], -(-n // size) + 1, dtype=torch.bool, device=q.device)
    kept = kept.scatter(3, chosen + 1, True)[..., 1:][..., place // size]
    kept = per_query_head(kept, q) & (place <= place[:, None])
    scores = q @ per_query_head(k, q).transpose(-2, -1) / math.sqrt(q.shape[-1])
    selected = weights(scores, kept) @ per_query_head(v, q)
    local = attention(q, k, v, window(spec.window, True))
    gate = torch.sigmoid(q @ gates)
    return gate[..., :1] * (mass @ pooled_v) + gate[..., 1:2] * selected + gate[..., 2:] * local


def cost(shape: Shape, spec: Spec) -> Cost:
    """Half of the blocks compressed, top n in full, the window; gathered keys and values are written and read."""
    rows, n, d = shape.batch * shape.heads, shape.tokens, shape.head_dim
    blocks, kept = n // spec.block, min(spec.top * spec.block, n)
    local = band_cost(shape, spec.window - 1, 0)
    macs = local.macs + rows * n * (blocks // 2 + kept) * 2 * d + 2 * shape.batch * shape.kv_heads * n * d
    gathered = 2 * shape.batch * shape.kv_heads * n * kept * d
    at_once = run_length(n, shape.batch * shape.kv_heads * kept * d, MOST_GATHERED)
    scores = rows * n * (blocks + kept)
    held = local.held + 2 * rows * n * blocks + 2 * gathered * at_once // n
    return Cost(macs, local.moved + 4 * scores + 2 * gathered, held)


ENGINES = {"plain": Engine(attend)}
