"""Multi-token attention: logits convolved over queries and keys before the softmax, weights mixed over heads after it.

A = mix_heads(softmax(mask_-inf(conv(mask_0(s q k^T))))), kernel 6 queries (past ones) x 11 keys (around), pairs of
heads mixed; each head's output normed by its root mean square and gated by sigmoid(w . out). The convolution is a
correlation with each head's own kernel.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.masks import pairs
from repshift_cli.operators.base.reference import per_query_head, weights
from repshift_cli.operators.base.rows import by_runs, mixed, products, run_length
from repshift_cli.operators.base.spec import NEEDS_TRAINING, Arranged, Cost, Engine, Shape, Spec, drawn

PAPER = "Golovneva et al. 2025, arXiv 2504.00927"
CLASS = "trained"
CAUSAL = (True,)
QUERIES, KEYS, HEADS = 6, 11, 2


def refused(shape: Shape, spec: Spec) -> str | None:
    """Heads are mixed in pairs."""
    return f"heads are mixed in pairs, and {shape.heads} is odd" if shape.heads % HEADS else None


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """Kernels near the identity (as the paper begins), head mixing near it, norm gains and gates."""
    heads, d = q.shape[1], q.shape[-1]
    kernel = drawn(q, spec, "mta kernel", heads, 1, QUERIES, KEYS, scale=0.1)
    kernel[:, :, -1, KEYS // 2] += 1
    mixing = drawn(q, spec, "mta heads", heads // HEADS, HEADS, HEADS, scale=0.2) + torch.eye(HEADS).to(q)
    gain, gate = 1 + drawn(q, spec, "mta gain", d, scale=0.1), drawn(q, spec, "mta gate", d, scale=1 / math.sqrt(d))
    return Arranged(q, k, v, {"kernel": kernel, "mixing": mixing, "gain": gain, "gate": gate}, full=NEEDS_TRAINING)


def attend(
    q: Tensor, k: Tensor, v: Tensor, spec: Spec, kernel: Tensor, mixing: Tensor, gain: Tensor, gate: Tensor
) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d), a run of rows at a time with its 5 rows before."""
    n = q.shape[2]
    j = torch.arange(n, device=q.device)

    def part(begin: int, end: int) -> Tensor:
        first = max(0, begin - QUERIES + 1)
        i = torch.arange(first, end, device=q.device)[:, None]
        scores = products(q[:, :, first:end] / math.sqrt(q.shape[-1]), k) * (j <= i)
        above = QUERIES - 1 - (begin - first)
        scores = F.pad(scores, (KEYS // 2, KEYS // 2, above, 0))
        scores = F.conv2d(scores, kernel, groups=kernel.shape[0])
        share = torch.softmax(hidden(scores, j <= i[begin - first :]), -1)
        return mixed(_over_heads(share, mixing), v)

    return _gated(by_runs(n, q.shape[0] * q.shape[1] * n, part), gain, gate)


def _over_heads(weights: Tensor, mixing: Tensor) -> Tensor:
    """A'_g = sum over the group of w_gh A_h: (B, H, R, N) -> (B, H, R, N)."""
    return torch.einsum("bghrn,gkh->bgkrn", weights.unflatten(1, (-1, HEADS)), mixing).flatten(1, 2)


def _gated(out: Tensor, gain: Tensor, gate: Tensor) -> Tensor:
    normed = out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + 1e-5) * gain
    return normed * torch.sigmoid(out @ gate)[..., None]


def reference(
    q: Tensor, k: Tensor, v: Tensor, spec: Spec, kernel: Tensor, mixing: Tensor, gain: Tensor, gate: Tensor
) -> Tensor:
    """The equation, the convolution as a sum of shifted matrices (equation 4)."""
    n = q.shape[2]
    k, v = per_query_head(k, q), per_query_head(v, q)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).tril()
    summed = torch.zeros_like(scores)
    for row in range(min(QUERIES, n)):
        for column in range(-(KEYS // 2), KEYS // 2 + 1):
            moved = F.pad(scores, (KEYS, KEYS, row, 0))[:, :, :n, KEYS + column : KEYS + column + n]
            summed += kernel[None, :, 0, QUERIES - 1 - row, KEYS // 2 + column, None, None] * moved
    part = weights(summed, torch.ones(n, n, dtype=torch.bool, device=q.device).tril())
    joined = [
        sum(mixing[h // HEADS, h % HEADS, m] * part[:, h // HEADS * HEADS + m] for m in range(HEADS))
        for h in range(q.shape[1])
    ]
    out = torch.stack(joined, 1) @ v  # type: ignore[arg-type]
    normed = out / (out.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain
    return normed / (1 + torch.exp(-(out * gate).sum(-1, keepdim=True)))


def cost(shape: Shape, spec: Spec) -> Cost:
    """Full attention's pairs, the kernel on each and the mixing; scores move about ten times."""
    scores = shape.batch * shape.heads * shape.tokens**2
    per_pair = 2 * shape.head_dim + QUERIES * KEYS + HEADS
    macs = shape.batch * shape.heads * pairs(shape.tokens, True) * per_pair
    rows = run_length(shape.tokens, shape.batch * shape.heads * shape.tokens)
    return Cost(macs, shape.given + 10 * scores, 10 * scores * rows // shape.tokens)


ENGINES = {"plain": Engine(attend)}
