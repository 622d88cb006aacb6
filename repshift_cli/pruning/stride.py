"""Control: keeps tokens at a uniform stride, no scoring."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from repshift_cli.records import Case

OPTIONS = ()


def needs(case: Case) -> tuple[str, ...]:
    """Nothing."""
    return ()


def cut(hidden: Tensor, prefix: int, count: int) -> Tensor:
    """The prefix and token floor(i * N / count) for i = 0 .. count - 1: (B, P + N, C) -> (B, P + count, C)."""
    return hidden.index_select(1, _positions(hidden.shape[1], prefix, count, hidden.device))


@lru_cache(maxsize=256)
def _positions(length: int, prefix: int, count: int, device: torch.device) -> Tensor:
    tokens = length - prefix
    rows = [*range(prefix), *(prefix + i * tokens // count for i in range(count))]
    with torch.inference_mode(False):
        return torch.tensor(rows, device=device)
