"""Attention by runs of rows in plain torch: scores in memory, a run at a time, changed on the way to the softmax."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from repshift_cli.kernels.bands import hidden

MOST_SCORES = 1 << 23
"""Scores of a run: 32 MiB in fp32, so that a run stays near the caches of a CPU."""

Change = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(scores (B, H, rows, N), places of the queries (rows, 1), of the keys (N,)) -> scores."""


def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, change: Change | None = None, scale: float | None = None
) -> Tensor:
    """softmax(change(s q k^T)) v: (B, H, Nq, d), (B, Hkv, N, d), (B, Hkv, N, dv) -> (B, H, Nq, dv).

    The queries stand at the last places of the keys.
    """
    j = torch.arange(k.shape[-2], device=q.device)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale

    def part(begin: int, end: int) -> Tensor:
        i = torch.arange(begin, end, device=q.device)[:, None] + j.numel() - q.shape[-2]
        scores = products(q[..., begin:end, :] * factor, k)
        scores = change(scores, i, j) if change else scores
        scores = hidden(scores, j <= i) if causal else scores
        return mixed(torch.softmax(scores, -1), v)

    return by_runs(q.shape[-2], q.shape[0] * q.shape[1] * j.numel(), part)


def products(q: Tensor, k: Tensor) -> Tensor:
    """q k^T, each KV head against all rows of its query heads: (B, H, R, d), (B, Hkv, N, d) -> (B, H, R, N)."""
    return _by_group(q, k.transpose(-2, -1))


def mixed(weights: Tensor, v: Tensor) -> Tensor:
    """Sums of values: (B, H, R, N), (B, Hkv, N, d) -> (B, H, R, d)."""
    return _by_group(weights, v)


def _by_group(x: Tensor, of_group: Tensor) -> Tensor:
    if x.shape[1] == of_group.shape[1]:
        return x @ of_group
    groups = x.shape[1] // of_group.shape[1]
    out = x.unflatten(1, (-1, groups)).flatten(2, 3) @ of_group
    return out.unflatten(2, (groups, -1)).flatten(1, 2)


def by_runs(rows: int, per_row: int, part: Callable[[int, int], Tensor], most: int = MOST_SCORES) -> Tensor:
    """`part(begin, end)` (B, H, end - begin, ...) of every run of rows, as one (B, H, rows, ...).

    Each goes to its place as soon as it is made. Kept in a list, the small results lie between the large scores of the
    runs, and glibc's heap grows by those of every run: 16 GB at 4096 tokens of `additive`. Gradients need the list.
    """
    spans = runs(rows, per_row, most)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([part(begin, end) for begin, end in spans], 2)
    first = part(*next(spans))
    if first.shape[2] == rows:
        return first
    out = first.new_empty(*first.shape[:2], rows, *first.shape[3:])
    out[:, :, : first.shape[2]] = first
    for begin, end in spans:
        out[:, :, begin:end] = part(begin, end)
    return out


def runs(rows: int, per_row: int, most: int = MOST_SCORES) -> Iterator[tuple[int, int]]:
    """The ends of runs of rows whose elements stay within `most`."""
    step = max(1, most // max(1, per_row))
    return ((begin, min(begin + step, rows)) for begin in range(0, rows, step))


def run_length(rows: int, per_row: int, most: int = MOST_SCORES) -> int:
    """The rows of a run."""
    return min(rows, max(1, most // max(1, per_row)))


def grouped(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values as the query heads read them: (B, Hkv, N, d) -> (B, H, N, d), a copy where heads share."""
    return x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], 1)
