"""LessIsMore: one choice of tokens for all heads, by the union of their best, beside sinks and recent tokens. Decoding.

Each head ranks the tokens between sinks and window; the union in order of rank (then head) is cut at the budget; all
heads attend to sinks, chosen and recent tokens. Half of the budget is chosen, the rest recent. `reuse` is a later layer
that takes the choice as given; the paper's layers before the choice are dense.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.operators.base.reference import attention, per_query_head
from repshift_cli.operators.base.rows import mixed, products
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Yang et al. 2025, arXiv 2508.07101"
CLASS = "decode"
CAUSAL = (True,)

__all__ = ["refused"]


def parts(n: int, spec: Spec) -> tuple[int, int, int]:
    """(sinks, chosen, recent) tokens of the budget, as the authors' code divides it."""
    total = max(1, min(n, round(n * spec.budget)))
    chosen = total // 2
    sinks = spec.sinks if total - chosen >= spec.sinks else 0
    return sinks, chosen, total - chosen - sinks


def choose(q: Tensor, k: Tensor, spec: Spec) -> Tensor:
    """The places that all heads attend to: (B, budget)."""
    n = k.shape[2]
    sinks, chosen, recent = parts(n, spec)
    scores = products(q, k)[:, :, 0, sinks : n - recent]
    heads, places = scores.shape[1:]
    best = scores.topk(min(chosen, places), -1).indices
    order = torch.arange(best.shape[-1], device=q.device) * heads + torch.arange(heads, device=q.device)[:, None]
    rank = torch.full((q.shape[0], places), places * heads, device=q.device, dtype=torch.long)
    rank = rank.scatter_reduce(1, best.flatten(1), order.expand_as(best).flatten(1), "amin")
    middle = rank.topk(best.shape[-1], -1, largest=False).indices + sinks
    ends = torch.cat([torch.arange(sinks, device=q.device), torch.arange(n - recent, n, device=q.device)])
    return torch.cat([middle, ends.expand(q.shape[0], -1)], 1)


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The last query; `kept` is the choice that `reuse` takes."""
    q = q[:, :, -1:].contiguous()
    return Arranged(q, k, v, {"kept": choose(q, k, spec)}, full=lambda: (q, k, v))


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, kept: Tensor) -> Tensor:
    """(B, H, 1, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, 1, d); choosing is part of it."""
    return reuse(q, k, v, spec, choose(q, k, spec))


def reuse(q: Tensor, k: Tensor, v: Tensor, spec: Spec, kept: Tensor) -> Tensor:
    """Attention to the places given, (B, budget)."""
    batch = torch.arange(q.shape[0], device=q.device)[:, None]
    keys, values = (t.transpose(1, 2)[batch, kept].transpose(1, 2) for t in (k, v))
    return mixed(torch.softmax(products(q / math.sqrt(q.shape[-1]), keys), -1), values)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, kept: Tensor) -> Tensor:
    """The union built place by place, then dense attention under its mask."""
    n = k.shape[2]
    sinks, chosen, recent = parts(n, spec)
    scores = (q @ per_query_head(k, q).transpose(-2, -1))[:, :, 0]
    out = []
    for b in range(q.shape[0]):
        ranked = scores[b, :, sinks : n - recent].argsort(-1, descending=True) + sinks
        union = list(dict.fromkeys(ranked[:, :chosen].T.flatten().tolist()))[:chosen]
        seen = torch.zeros(n, dtype=torch.bool, device=q.device)
        seen[[*range(sinks), *union, *range(n - recent, n)]] = True
        some = seen.nonzero()[:, 0]
        out.append(attention(q[b : b + 1], k[b : b + 1, :, some], v[b : b + 1, :, some]))
    return torch.cat(out)


def cost(shape: Shape, spec: Spec) -> Cost:
    """All keys are read for the choice, the budget's keys and values are gathered and read."""
    rest, rows = reuse_cost(shape, spec), shape.batch * shape.heads * shape.tokens
    keys = shape.batch * shape.kv_heads * shape.tokens * shape.head_dim
    return Cost(rest.macs + rows * shape.head_dim, rest.moved + keys + 3 * rows, rest.held + 2 * rows)


def reuse_cost(shape: Shape, spec: Spec) -> Cost:
    """The budget's keys and values, gathered and read."""
    budget, d = sum(parts(shape.tokens, spec)), shape.head_dim
    gathered = 2 * shape.batch * shape.kv_heads * budget * d
    scores = shape.batch * shape.heads * budget
    return Cost(scores * 2 * d, 3 * gathered + 4 * scores + 2 * shape.batch * shape.heads * d, gathered + 3 * scores)


ENGINES = {"plain": Engine(attend), "reuse": Engine(reuse, unasked=("cpu", "cuda"), cost=reuse_cost)}
