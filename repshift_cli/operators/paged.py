"""Paged attention: the cache in pages anywhere in a pool, a block table per sequence, sequences of different lengths.

softmax(s q k^T) v over the keys that the table names, up to each sequence's length. `plain` gathers the pages and
attends; `pages` keeps a running maximum and sum over runs of pages, so that no whole cache is copied; `flash_attn2`
reads the table itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.packages import FLASH_ATTN2, OFFERS, missing
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.rows import mixed, products, runs
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Kwon et al. 2023, arXiv 2309.06180"
CLASS = "decode"
CAUSAL = (True,)
MOST = 1 << 20
"""Elements of keys that `pages` gathers at once."""

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """Pools (pages, page, Hkv, d) in a drawn order, the table (B, pages of a sequence), the lengths (B).

    The first sequence has all N tokens, each further one a quarter of a page fewer, and at least one.
    """
    batch, _, n, _ = k.shape
    pages = -(-n // spec.page)
    order = torch.randperm(batch * pages, generator=torch.Generator().manual_seed(spec.seed)).to(q.device)
    table = order.view(batch, pages)
    lengths = (n - torch.arange(batch, device=q.device) * max(1, spec.page // 4)).clamp_min(1)
    return Arranged(
        q[:, :, -1:].contiguous(),
        _pool(k, order, pages, spec.page),
        _pool(v, order, pages, spec.page),
        {"table": table, "lengths": lengths},
        full="sequences differ in length" if batch > 1 else lambda: (q[:, :, -1:], k, v),
    )


def _pool(x: Tensor, order: Tensor, pages: int, page: int) -> Tensor:
    batch, heads, n, d = x.shape
    padded = torch.zeros(batch, heads, pages * page, d, dtype=x.dtype, device=x.device)
    padded[:, :, :n] = x
    pool = torch.empty(batch * pages, page, heads, d, dtype=x.dtype, device=x.device)
    pool[order] = padded.unflatten(2, (pages, page)).permute(0, 2, 3, 1, 4).flatten(0, 1)
    return pool


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, table: Tensor, lengths: Tensor) -> Tensor:
    """(B, H, 1, d), pools (pages, page, Hkv, d), (B, pages), (B) -> (B, H, 1, d)."""
    keys, values = (pool[table].flatten(1, 2).transpose(1, 2) for pool in (k, v))
    real = torch.arange(keys.shape[2], device=q.device) < lengths[:, None]
    scores = hidden(products(q / math.sqrt(q.shape[-1]), keys), real[:, None, None])
    return mixed(torch.softmax(scores, -1), values)


def by_pages(q: Tensor, k: Tensor, v: Tensor, spec: Spec, table: Tensor, lengths: Tensor) -> Tensor:
    """The same with a running maximum and sum over runs of pages (FlashAttention's recurrence)."""
    top = q.new_full((*q.shape[:3], 1), torch.finfo(q.dtype).min)
    total, out = torch.zeros_like(top), torch.zeros_like(q)
    q = q / math.sqrt(q.shape[-1])
    place = torch.arange(spec.page, device=q.device)
    for begin, end in runs(table.shape[1], q.shape[0] * k[0].numel(), MOST):
        some = table[:, begin:end]
        keys, values = (pool[some].flatten(1, 2).transpose(1, 2) for pool in (k, v))
        at = (torch.arange(begin, end, device=q.device)[:, None] * spec.page + place).flatten()
        real = (at < lengths[:, None])[:, None, None]
        scores = hidden(products(q, keys), real)
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights, kept = (scores - higher).exp() * real, (top - higher).exp()
        total, out, top = total * kept + weights.sum(-1, keepdim=True), out * kept + mixed(weights, values), higher
    return out / total


def with_flash_attn2(q: Tensor, k: Tensor, v: Tensor, spec: Spec, table: Tensor, lengths: Tensor) -> Tensor:
    """flash-attn's own paged cache."""
    from flash_attn import flash_attn_with_kvcache

    out = flash_attn_with_kvcache(
        q.transpose(1, 2), k, v, cache_seqlens=lengths.int(), block_table=table.int(), causal=False
    )
    return out.transpose(1, 2)


def whole_pages(shape: Shape, spec: Spec) -> str | None:
    """What flash-attn asks of a page."""
    return None if spec.page % 256 == 0 else f"flash-attn takes pages of a multiple of 256 tokens, not {spec.page}"


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, table: Tensor, lengths: Tensor) -> Tensor:
    """The equation, one sequence after another, its tokens collected one by one."""
    out = []
    for b, length in enumerate(lengths.tolist()):
        places = [(table[b, t // spec.page], t % spec.page) for t in range(length)]
        keys, values = (torch.stack([pool[p, r] for p, r in places], 1)[None] for pool in (k, v))
        out.append(attention(q[b : b + 1], keys, values))
    return torch.cat(out)


def cost(shape: Shape, spec: Spec) -> Cost:
    """The cache read, copied and read again; scores are few."""
    scores = shape.batch * shape.heads * shape.tokens
    cache = 2 * shape.batch * shape.kv_heads * shape.tokens * shape.head_dim
    return Cost(scores * 2 * shape.head_dim, shape.given + 2 * cache + 4 * scores, cache + 3 * scores)


def fused_cost(shape: Shape, spec: Spec) -> Cost:
    """The cache read once."""
    return Cost(cost(shape, spec).macs, shape.given)


ENGINES = {
    "plain": Engine(attend),
    "pages": Engine(by_pages, unasked=("cpu", "cuda")),
    "flash_attn2": Engine(
        with_flash_attn2,
        kernels=FLASH_ATTN2[2],
        offers=OFFERS,
        unavailable=missing(*FLASH_ATTN2[:2]),
        backward=(),
        refused=whole_pages,
        cost=fused_cost,
    ),
}
