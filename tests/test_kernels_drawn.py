"""The Triton kernels against their plain twins on drawn inputs, in Triton's interpreter: see test_kernels_triton."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernels_triton import DTYPES, KINDS, close, interpreter, kernel, needs_triton, normal, twin

from repshift_cli.kernels.cut import gather, gather_add
from repshift_cli.kernels.select import top
from repshift_cli.kernels.shift import distance, length, moved_from

SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-40, float("inf"), float("-inf"), float("nan"))


@needs_triton
@interpreter
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 70)),
    prefix=st.integers(0, 2),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_scores(shape: tuple[int, int, int], prefix: int, kind: str, dtype: torch.dtype, seed: int) -> None:
    """Slices after a prefix, as the hooks see them, against the twin in float64."""
    batch, tokens, width = shape
    a, b = (normal(batch, prefix + tokens, width, dtype=dtype, seed=s)[:, prefix:] for s in (seed, 500))
    close(kernel(distance, a, b, kind), twin(distance, a.double(), b.double(), kind))
    close(kernel(moved_from, a, b, kind), twin(moved_from, a.double(), b.double(), kind))
    if kind != "cosine":
        close(kernel(length, a, kind), twin(length, a.double(), kind))


values = st.one_of(st.sampled_from(SPECIAL), st.floats(width=16))
rows = st.integers(1, 40).flatmap(
    lambda n: st.tuples(st.lists(st.lists(values, min_size=n, max_size=n), min_size=1, max_size=3), st.integers(1, n))
)


@needs_triton
@interpreter
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)
@given(drawn=rows, dtype=st.sampled_from(DTYPES))
def test_selection(drawn: tuple[list[list[float]], int], dtype: torch.dtype) -> None:
    """NaN counts as +inf, -0.0 as 0.0, and of equal scores the lower position is kept."""
    scores = torch.tensor(drawn[0]).to(dtype)
    if dtype == torch.bfloat16:  # the interpreter takes its subnormal numbers for zero
        scores[scores.abs() < 1e-37] = 0.0
    expected = [
        sorted(sorted(range(len(row)), key=lambda i, r=row: float("-inf") if r[i] != r[i] else -r[i])[: drawn[1]])
        for row in scores.tolist()
    ]
    assert kernel(top, scores, drawn[1]).tolist() == expected
    assert twin(top, scores, drawn[1]).tolist() == expected


@needs_triton
@interpreter
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 3, 8, 1025])),
    prefix=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_cuts(shape: tuple[int, int, int], prefix: int, dtype: torch.dtype, data: Any) -> None:
    batch, tokens, width = shape
    count = data.draw(st.integers(1, tokens))
    indices = twin(top, normal(batch, tokens, seed=data.draw(st.integers(0, 99))), count)
    whole = [normal(prefix + tokens, batch, width, seed=s) for s in (1, 2)]
    if dtype == torch.bfloat16:  # where the interpreter truncates, the device rounds
        whole = [(8 * t).round() for t in whole]
    middle, branch = (t.to(dtype).transpose(0, 1) for t in whole)
    assert torch.equal(kernel(gather, middle, prefix, indices), twin(gather, middle, prefix, indices))
    expected = twin(gather, middle + branch, prefix, indices)
    assert torch.equal(kernel(gather_add, middle, branch, prefix, indices), expected)
    assert torch.equal(twin(gather_add, middle, branch, prefix, indices), expected)
