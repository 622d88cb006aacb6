"""Distances between rows: the score of representation shift, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def distance(moved: Tensor, origin: Tensor, kind: str) -> Tensor:
    """D(moved, origin) for every row: (B, N, C), (B, N, C) -> (B, N), at least fp32, larger where a token changed more.

    `kind`: `l2` and `l1` are norms of the difference, `cosine` is 1 - cosine similarity (Choi et al. 2025, Eq. 4).
    """
    if kind == "cosine":
        wide = _at_least_fp32(moved)
        return 1 - torch.nn.functional.cosine_similarity(moved.to(wide), origin.to(wide), dim=-1)
    return length(moved - origin, kind)


def length(update: Tensor, kind: str) -> Tensor:
    """The l2 or l1 norm of every row, accumulated in at least fp32: (B, N, C) -> (B, N)."""
    return torch.linalg.vector_norm(update, ord={"l2": 2, "l1": 1}[kind], dim=-1, dtype=_at_least_fp32(update))


def _at_least_fp32(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
