"""Attention of blocks of queries to chosen blocks of keys, in plain torch: the engine of block-sparse forms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.bands import blocks, hidden, unblocked
from repshift_cli.operators.base.rows import by_runs

MOST_GATHERED = 1 << 22
"""Elements of keys that are gathered at once."""


def chosen(active: Tensor) -> tuple[Tensor, Tensor]:
    """From (..., columns) of bool the places of the True ones, in order, and which of them are real: (..., most)."""
    most = int(active.sum(-1).max())
    order = torch.sort(active.to(torch.uint8), dim=-1, descending=True, stable=True)
    return order.indices[..., :most], order.values[..., :most].bool()


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, active: Tensor, size: int, causal: bool) -> Tensor:
    """softmax(s q k^T) v over the blocks that are `active` (B, Hkv, blocks, blocks), causal within them.

    Each row of blocks is padded to the longest choice, so the work is that of the fullest row.
    """
    n = k.shape[-2]
    index, real = chosen(active)
    rows = blocks(q / math.sqrt(q.shape[-1]), k.shape[1], size)
    keys, values = (F.pad(t, (0, 0, 0, -n % size)).unflatten(2, (-1, size)) for t in (k, v))
    place = torch.arange(size, device=q.device)
    groups = rows.shape[3] // size

    def part(begin: int, end: int) -> Tensor:
        some, taken = index[:, :, begin:end], real[:, :, begin:end]
        j = (some[..., None] * size + place).flatten(3)
        i = ((begin + torch.arange(some.shape[2], device=q.device)) * size)[:, None] + place.repeat(groups)
        seen = (taken[..., None] & (j.unflatten(3, (-1, size)) < n)).flatten(3)[:, :, :, None]
        if causal:
            seen = seen & (j[:, :, :, None] <= i[:, :, None])
        scores = hidden(rows[:, :, begin:end] @ _taken(keys, some).transpose(-2, -1), seen)
        return torch.softmax(scores, -1) @ _taken(values, some)

    per_row = k.shape[0] * k.shape[1] * index.shape[-1] * size * k.shape[-1]
    return unblocked(by_runs(rows.shape[2], per_row, part, MOST_GATHERED), q)


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """(B, H, blocks, size, d) by (B, H, rows, chosen) -> (B, H, rows, chosen x size, d)."""
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    head = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return x[batch, head, index].flatten(3, 4)
