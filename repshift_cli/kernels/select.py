"""Choosing rows by score and gathering them in their order, in plain torch; shapes are static, nothing synchronises."""

from __future__ import annotations

import torch
from torch import Tensor


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores of every row, in rising order of position: (B, N) -> (B, count) int64.

    NaN counts as highest (torch.topk's order), so a broken token stays and shows in the output.
    """
    return scores.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values


def gather(hidden: Tensor, prefix: int, indices: Tensor) -> Tensor:
    """The prefix rows, then the rows at `indices` (counted after the prefix): (B, P + N, C), (B, k) -> (B, P + k, C).

    One copy of whole rows (index_select over the flattened batch), several times faster on a CPU than torch.gather
    with an index expanded over C.
    """
    batch, tokens, width = hidden.shape
    offsets = torch.arange(0, batch * tokens, tokens, device=hidden.device).unsqueeze(1)
    rows = indices + (offsets + prefix)
    if prefix:
        head = torch.arange(prefix, device=hidden.device) + offsets
        rows = torch.cat((head, rows), dim=1)
    flat = hidden.reshape(batch * tokens, width).index_select(0, rows.flatten())
    return flat.view(batch, -1, width)
