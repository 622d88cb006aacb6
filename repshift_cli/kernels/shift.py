"""Distances between rows: the score of representation shift, as a Triton kernel or in plain torch.

For B x N rows of C elements, fp32 (in brackets fp16 and bf16); bytes for every element, beside which the O(BN) of
the scores vanish; a launch is an operator that launches a kernel. The Triton column is the floor too: every input once.

|                       | plain: launches | plain: bytes | Triton: launches | Triton: bytes |
|-----------------------|-----------------|--------------|------------------|---------------|
| `distance`, l1 and l2 | 2 (3)           | 16 (20)      | 1                | 8 (4)         |
| `distance`, cosine    | 9 (11)          | 24 (36)      | 1                | 8 (4)         |
| `moved_from`, cosine  | 10 (11)         | 36 (40)      | 1                | 8 (4)         |
| `length`              | 1               | 4 (2)        | 1                | 4 (2)         |
"""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.kernels import paths

NORMS = {"l1": 1, "l2": 2}
"""The distances that are norms of the difference, with their order."""
COSINE = 0
TINY = 1e-8
"""Norms below it count as it in the cosine, as in torch.nn.functional.cosine_similarity."""


def distance(moved: Tensor, origin: Tensor, kind: str) -> Tensor:
    """D(moved, origin) for every row: (B, N, C), (B, N, C) -> (B, N), fp32 (fp64 for fp64), any strides.

    `kind`: `l2` and `l1` are norms of the difference, `cosine` is 1 - cosine similarity (Choi et al. 2025, Eq. 4).
    Differences, products and sums are taken in fp32 whatever the inputs are.
    """
    order = COSINE if kind == "cosine" else NORMS[kind]
    if paths.path_for("score", moved, origin) == "triton":
        return _fused(moved, origin, order, "distance")
    wide = _at_least_fp32(moved)
    if order == COSINE:
        return _cosine(moved.to(wide), origin.to(wide))
    return _norm(moved.to(wide) - origin, order)


def length(update: Tensor, kind: str) -> Tensor:
    """The l2 or l1 norm of every row, accumulated in fp32 (fp64 for fp64), any strides: (B, N, C) -> (B, N)."""
    order = NORMS[kind]
    if paths.path_for("score", update) == "triton":
        return _fused(update, update, order, "length")
    return _norm(update, order)


def moved_from(before: Tensor, branch: Tensor, kind: str) -> Tensor:
    """D(before + branch, before) for every row, the form `update`: (B, N, C), (B, N, C) -> (B, N).

    Only the cosine needs `before`; the norms of the difference are those of the branch. The sum is not rounded to the
    inputs' dtype, and the kernel never writes it.
    """
    if kind != "cosine":
        return length(branch, kind)
    if paths.path_for("score", before, branch) == "triton":
        return _fused(branch, before, COSINE, "moved_from")
    origin = before.to(_at_least_fp32(before))
    return _cosine(origin + branch, origin)


def _norm(rows: Tensor, order: int) -> Tensor:
    wide = _at_least_fp32(rows)
    if order == 1 and rows.is_cpu:  # vector_norm takes five times as long for it there
        return rows.abs().sum(dim=-1, dtype=wide)
    return torch.linalg.vector_norm(rows, ord=order, dim=-1, dtype=wide)


def _cosine(moved: Tensor, origin: Tensor) -> Tensor:
    """As torch.nn.functional.cosine_similarity, which takes up to three times as long on a CPU."""
    lengths = [torch.linalg.vector_norm(rows, dim=-1).clamp_min_(TINY) for rows in (moved, origin)]
    return 1 - (moved * origin).sum(dim=-1) / (lengths[0] * lengths[1])


def _fused(first: Tensor, second: Tensor, order: int, form: str) -> Tensor:
    from repshift_cli.kernels import _shift_triton

    return _shift_triton.score(first, second, order, form)


def _at_least_fp32(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
