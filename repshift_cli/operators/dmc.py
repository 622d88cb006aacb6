"""Dynamic memory compression: each token is appended to the cache or merged into its last slot. Decoding.

merge: k <- (z k + w k_t) / (z + w), v likewise, z <- z + w; append: k <- k_t, z <- w. Decisions and importances w are
drawn from the seed at the compression rate, each KV head for itself; making the cache is not timed, attention to it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.rows import grouped, mixed, products
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Nawrot et al. 2024, arXiv 2403.09636"
CLASS = "decode"
CAUSAL = (True,)

__all__ = ["refused"]


def decisions(k: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """(appended (B, Hkv, N) of bool, importances (B, Hkv, N) in (0, 1)); the first token is always appended."""
    size = k.shape[:3]
    generator = torch.Generator().manual_seed(spec.seed)
    appended = torch.rand(size, generator=generator) < 1 / spec.compression
    appended[..., 0] = True
    return appended.to(k.device), torch.sigmoid(drawn(k, spec, "dmc", *size))


def compress(x: Tensor, appended: Tensor, importance: Tensor) -> Tensor:
    """Averages over each run of merged tokens, weighted by importance: (B, Hkv, N, d) -> (B, Hkv, slots, d)."""
    slot = appended.long().cumsum(-1) - 1
    slots = int(slot.max()) + 1
    sums = x.new_zeros(*x.shape[:2], slots, x.shape[-1])
    sums = sums.scatter_add(2, slot[..., None].expand_as(x), x * importance[..., None])
    total = x.new_zeros(*x.shape[:2], slots).scatter_add(2, slot, importance)
    return sums / total.clamp_min(1e-9)[..., None]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The compressed cache (B, Hkv, slots, d), padded, and the slots of each head (B, Hkv)."""
    appended, importance = decisions(k, spec)
    lengths = appended.sum(-1)
    wide = k.double()
    keys, values = (compress(t.to(wide), appended, importance.to(wide)).to(k.dtype) for t in (k, v))
    rate = k.shape[2] / float(lengths.double().mean())
    note = f"{rate:.2f} tokens per slot, {100 * float(lengths.max() / lengths.double().mean()) - 100:.0f}% padding"
    q = q[:, :, -1:].contiguous()
    return Arranged(q, keys, values, {"lengths": lengths}, full=lambda: (q, k, v), notes=(note,))


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, lengths: Tensor) -> Tensor:
    """(B, H, 1, d), (B, Hkv, slots, d) twice, (B, Hkv) -> (B, H, 1, d)."""
    real = torch.arange(k.shape[2], device=q.device) < lengths[..., None]
    scores = products(q / math.sqrt(q.shape[-1]), k)
    return mixed(torch.softmax(hidden(scores, grouped(real, q)[:, :, None]), -1), v)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, lengths: Tensor) -> Tensor:
    """The equation, head by head, without the padding."""
    group = q.shape[1] // k.shape[1]
    rows = []
    for b in range(q.shape[0]):
        heads = []
        for h in range(k.shape[1]):
            n = int(lengths[b, h])
            some = slice(h * group, (h + 1) * group)
            heads.append(attention(q[b : b + 1, some], k[b : b + 1, h : h + 1, :n], v[b : b + 1, h : h + 1, :n]))
        rows.append(torch.cat(heads, 1))
    return torch.cat(rows)


def cost(shape: Shape, spec: Spec) -> Cost:
    """The compressed cache once."""
    slots = max(1, round(shape.tokens / spec.compression))
    scores = shape.batch * shape.heads * slots
    cache = 2 * shape.batch * shape.kv_heads * slots * shape.head_dim
    ends = 2 * shape.batch * shape.heads * shape.head_dim
    return Cost(scores * 2 * shape.head_dim, cache + ends + 4 * scores, 3 * scores)


ENGINES = {"plain": Engine(attend)}
