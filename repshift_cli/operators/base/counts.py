"""What an operator costs by formula: multiply-accumulates, elements moved, elements held."""

from __future__ import annotations

from repshift_cli.kernels.bands import block_of
from repshift_cli.operators.base.masks import band_pairs, pairs
from repshift_cli.operators.base.spec import Cost, Shape, Spec


def full_macs(shape: Shape, causal: bool) -> int:
    """Full attention's: 2 d for every pair of query and key that is seen."""
    seen = shape.tokens if shape.queries == 1 else pairs(shape.tokens, causal)
    return shape.batch * shape.heads * seen * 2 * shape.head_dim


def fused(shape: Shape, spec: Spec) -> Cost:
    """Exact attention that keeps its scores on the chip: q, k, v and the output move once."""
    return Cost(full_macs(shape, spec.causal), shape.given)


def materialised(shape: Shape, spec: Spec) -> Cost:
    """Exact attention with its scores in memory: written, read and written by the softmax, read again."""
    scores = shape.batch * shape.heads * shape.queries * shape.tokens
    return Cost(full_macs(shape, spec.causal), shape.given + 4 * scores, 2 * scores)


def in_rows(shape: Shape, spec: Spec, macs: int, scores_per_row: int, held_rows: int) -> Cost:
    """Attention by runs of rows with changed scores: each moves six times, but only those of a run are held."""
    scores = shape.batch * shape.heads * shape.queries * scores_per_row
    held = shape.batch * shape.heads * min(held_rows, shape.queries) * scores_per_row
    return Cost(macs, shape.given + 6 * scores, 3 * held)


def band_cost(shape: Shape, left: int, right: int, extra_pairs: int = 0) -> Cost:
    """The pairs of the band by formula; what is computed and moved are the whole blocks."""
    n, rows = shape.tokens, shape.batch * shape.heads
    size = block_of(min(left, n - 1), min(right, n - 1))
    scores = rows * n * (min(left, n - 1) + min(right, n - 1) + size) + rows * extra_pairs
    macs = rows * (band_pairs(n, left, right) + extra_pairs) * 2 * shape.head_dim
    return Cost(macs, shape.given + 4 * scores, 3 * scores)
