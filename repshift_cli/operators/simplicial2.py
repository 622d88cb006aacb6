"""2-simplicial attention: scores of triples of tokens, softmax over pairs of keys jointly, in causal windows.

A_ijk = s sum_d q_id k_jd k'_kd over 0 <= i - j < w1 and 0 <= i - k < w2; out_i = sum A_ijk (v_j * v'_k). k' and v' are
seeded projections of k and v, made before anything is timed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.reference import per_query_head
from repshift_cli.operators.base.rows import by_runs, grouped, run_length
from repshift_cli.operators.base.spec import NEEDS_TRAINING, Arranged, Cost, Engine, Shape, Spec, drawn
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Roy et al. 2025, arXiv 2507.02754"
CLASS = "trained"
CAUSAL = (True,)
MOST = 1 << 22
"""Elements of gathered keys at once."""

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The second keys and values, (B, Hkv, N, d) each."""
    d = q.shape[-1]
    second = {
        f"second_{name}": x @ drawn(q, spec, f"simplicial {name}", d, d, scale=1 / math.sqrt(d))
        for name, x in (("keys", k), ("values", v))
    }
    return Arranged(q, k, v, second, full=NEEDS_TRAINING)


def widths(n: int, spec: Spec) -> tuple[int, int]:
    """(w1, w2), never more than the tokens."""
    return min(spec.window, n), min(spec.second_window, n)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, second_keys: Tensor, second_values: Tensor) -> Tensor:
    """(B, H, N, d), four of (B, Hkv, N, d) -> (B, H, N, d), a run of queries at a time."""
    n, d = q.shape[2:]
    w1, w2 = widths(n, spec)
    keys, values = (_windows(grouped(t, q), w1) for t in (k, v))
    others, other_values = (_windows(grouped(t, q), w2) for t in (second_keys, second_values))

    def part(begin: int, end: int) -> Tensor:
        some = slice(begin, end)
        pairwise = q[:, :, some, None] / math.sqrt(d) * others[:, :, some]
        scores = pairwise @ keys[:, :, some].transpose(-2, -1)
        scores = hidden(scores, _real(begin, end, w2, q)[..., None] & _real(begin, end, w1, q)[..., None, :])
        weights = torch.softmax(scores.flatten(-2), -1).view_as(scores)
        return (weights @ values[:, :, some] * other_values[:, :, some]).sum(-2)

    return by_runs(n, q.shape[0] * q.shape[1] * w1 * d, part, MOST)


def _windows(x: Tensor, width: int) -> Tensor:
    """The last `width` tokens of every query: (B, H, N, d) -> (B, H, N, width, d), a view of the padded tensor."""
    return F.pad(x, (0, 0, width - 1, 0)).unfold(2, width, 1).transpose(-2, -1)


def _real(begin: int, end: int, width: int, q: Tensor) -> Tensor:
    """Which places of the windows lie within the sequence: (queries, width)."""
    at = torch.arange(begin, end, device=q.device)[:, None] - width + 1
    return at + torch.arange(width, device=q.device) >= 0


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, second_keys: Tensor, second_values: Tensor) -> Tensor:
    """The equation, one query after another."""
    first, second = ([per_query_head(t, q) for t in two] for two in ((k, v), (second_keys, second_values)))
    n, d = q.shape[2:]
    w1, w2 = widths(n, spec)
    out = []
    for i in range(n):
        (kj, vj), (kk, vk) = ([t[:, :, max(0, i - w + 1) : i + 1] for t in x] for x, w in ((first, w1), (second, w2)))
        scores = torch.einsum("bhd,bhjd,bhkd->bhjk", q[:, :, i], kj, kk) / math.sqrt(d)
        weights = torch.softmax(scores.flatten(2), -1).view_as(scores)
        out.append(torch.einsum("bhjk,bhjd,bhkd->bhd", weights, vj, vk))
    return torch.stack(out, 2)


def cost(shape: Shape, spec: Spec) -> Cost:
    """2 d for every triple, d more for every pair of query and second key; windows of keys are copied."""
    rows, n, d = shape.batch * shape.heads, shape.tokens, shape.head_dim
    w1, w2 = widths(n, spec)
    triples = sum(min(i, w1) * min(i, w2) for i in range(1, n + 1))
    copied = rows * n * (w1 + w2) * d
    at_once = run_length(n, rows * w1 * d, MOST)
    moved = shape.given + 4 * copied + 4 * rows * n * w1 * w2
    held = rows * at_once * (2 * (w1 + w2) * d + 2 * w1 * w2)
    return Cost(rows * (triples * 2 * d + n * w2 * 2 * d), moved, held)


ENGINES = {"plain": Engine(attend)}
