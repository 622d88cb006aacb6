"""Reformer: queries that are also keys, hashed into buckets, sorted, each chunk attending to itself and the one before.

k_j = q_j / |q_j|; bucket = argmax [x R; -x R] in each round; a pair counts where buckets agree and chunks are next to
each other; rounds are combined by their log-sum-exp (a pair seen in two rounds counts twice); a token attends to itself
only where nothing else is there. The given keys are not used.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.reference import chunks, per_query_head
from repshift_cli.operators.base.rows import grouped
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec, drawn

PAPER = "Kitaev et al. 2020, arXiv 2001.04451"
CLASS = "trained"
CAUSAL = (False, True)
ITSELF = -5e4
"""The score of a token with itself: below all others, above what is masked, and finite in fp16."""


def refused(shape: Shape, spec: Spec) -> str | None:
    """Rotations give buckets in pairs."""
    return None if spec.buckets == 1 or spec.buckets % 2 == 0 else f"an even number of buckets, not {spec.buckets}"


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """Random rotations (d, rounds, buckets / 2), drawn from the seed."""
    rotations = drawn(q, spec, "reformer", q.shape[-1], spec.rounds, max(1, spec.buckets // 2))
    return Arranged(q, k, v, {"rotations": rotations}, full="shares queries and keys, and has to be trained so")


def buckets_of(q: Tensor, rotations: Tensor, spec: Spec) -> Tensor:
    """(B, H, rounds, N); always computed in float32, so that a dtype does not move a token to another bucket."""
    if spec.buckets == 1:
        return torch.zeros(*q.shape[:2], rotations.shape[1], q.shape[2], dtype=torch.long, device=q.device)
    turned = torch.einsum("bhnd,drk->bhrnk", q.float(), rotations.float())
    return torch.cat([turned, -turned], -1).argmax(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, rotations: Tensor) -> Tensor:
    """(B, H, N, d), v (B, Hkv, N, d) -> (B, H, N, d)."""
    n, size = q.shape[2], spec.block
    order = buckets_of(q, rotations, spec) * n + torch.arange(n, device=q.device)
    order, places = torch.sort(order, -1)
    pad = -n % size
    bucket = F.pad(order // n, (0, pad), value=-1).unflatten(-1, (-1, size))
    place = F.pad(places, (0, pad), value=n).unflatten(-1, (-1, size))
    queries, values = (_sorted(t, places, pad, size) for t in (q, grouped(v, q)))
    keys = _with_before(queries / queries.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    other, at = _with_before(bucket, -2), _with_before(place, n)
    scores = queries / math.sqrt(q.shape[-1]) @ keys.transpose(-2, -1)
    i, j = place[..., None], at[..., None, :]
    seen = (bucket[..., None] == other[..., None, :]) & (j < n)
    seen = seen & (j <= i) if spec.causal else seen
    scores = hidden(scores.masked_fill(i == j, ITSELF), seen)
    total = torch.logsumexp(scores, -1, keepdim=True)
    out = (scores - total).exp() @ _with_before(values)
    return _combined(out.flatten(3, 4)[..., :n, :], total.flatten(3)[..., :n], places)


def _sorted(x: Tensor, places: Tensor, pad: int, size: int) -> Tensor:
    """(B, H, N, d) in the order of each round, in chunks: (B, H, rounds, chunks, size, d)."""
    x = x[:, :, None].expand(-1, -1, places.shape[2], -1, -1)
    x = x.gather(3, places[..., None].expand(-1, -1, -1, -1, x.shape[-1]))
    return F.pad(x, (0, 0, 0, pad)).unflatten(3, (-1, size))


def _with_before(x: Tensor, fill: float = 0) -> Tensor:
    """Each chunk behind the one before it; before the first stands `fill`: (B, H, R, chunks, 2 size, ...)."""
    before = torch.cat([torch.full_like(x[:, :, :, :1], fill), x[:, :, :, :-1]], 3)
    return torch.cat([before, x], 4)


def _combined(out: Tensor, total: Tensor, places: Tensor) -> Tensor:
    """The rounds in the tokens' own order, weighted by their sums of exponentials."""
    back = places.argsort(-1)
    out = out.gather(3, back[..., None].expand_as(out))
    return (torch.softmax(total.gather(3, back), 2)[..., None] * out).sum(2)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, rotations: Tensor) -> Tensor:
    """The equation with dense masks: the softmax runs over all pairs of round and key."""
    v = per_query_head(v, q)
    keys = q / q.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    buckets = buckets_of(q, rotations, spec)
    n, j = q.shape[2], torch.arange(q.shape[2], device=q.device)
    chunk = torch.argsort(torch.argsort(buckets * n + j, -1), -1) // spec.block
    out = []
    for begin, rows in chunks(q, n * spec.rounds):
        i = torch.arange(begin, begin + rows.shape[2], device=q.device)
        scores = (rows @ keys.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(i[:, None] == j, ITSELF)
        seen = buckets[..., i, None] == buckets[..., None, :]
        apart = chunk[..., i, None] - chunk[..., None, :]
        seen = seen & (apart >= 0) & (apart <= 1)
        seen = seen & (j <= i[:, None]) if spec.causal else seen
        scores = scores[:, :, None].masked_fill(~seen, -math.inf).transpose(2, 3).flatten(3)
        weights = torch.softmax(scores, -1).unflatten(-1, (spec.rounds, n)).sum(3)
        out.append(weights @ v)
    return torch.cat(out, 2)


def cost(shape: Shape, spec: Spec) -> Cost:
    """Hashing, and in each round 2 chunks of keys for every query; sorted copies and scores move."""
    rows = shape.batch * shape.heads * shape.tokens
    d, size = shape.head_dim, min(spec.block, shape.tokens)
    scores = spec.rounds * rows * 2 * size
    macs = rows * d * spec.rounds * (spec.buckets // 2) + scores * 2 * d
    copies = spec.rounds * rows * d
    return Cost(macs, shape.given + 8 * scores + 10 * copies, 4 * scores + 6 * copies)


ENGINES = {"plain": Engine(attend)}
