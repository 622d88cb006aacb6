"""Distances, selection and gathering against the same thing written out row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from repshift_cli.kernels import paths
from repshift_cli.kernels.cut import gather, gather_add
from repshift_cli.kernels.select import not_finite, top
from repshift_cli.kernels.shift import distance, length, moved_from
from repshift_cli.records import UsageError

KINDS = ("l2", "l1", "cosine")


def by_hand(moved: Tensor, origin: Tensor, kind: str) -> list[list[float]]:
    def one(m: list[float], o: list[float]) -> float:
        if kind == "l1":
            return math.fsum(abs(a - b) for a, b in zip(m, o, strict=True))
        if kind == "l2":
            return math.dist(m, o)
        return 1 - math.fsum(a * b for a, b in zip(m, o, strict=True)) / (math.hypot(*m) * math.hypot(*o))

    return [
        [one(m, o) for m, o in zip(ms, os, strict=True)] for ms, os in zip(moved.tolist(), origin.tolist(), strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.06), (torch.float16, 0.01)],
)
def test_distances_are_as_written(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    moved, origin = (torch.randn(2, 5, 7, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    scores = distance(moved, origin, kind)
    assert scores.shape == (2, 5)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.tensor(by_hand(moved.double(), origin.double(), kind), dtype=torch.float64)
    torch.testing.assert_close(scores.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "value"), [("l2", 5.0), ("l1", 7.0)])
def test_lengths_by_hand(kind: str, value: float) -> None:
    update = torch.tensor([[[3.0, -4.0], [0.0, 0.0]]])
    assert length(update, kind).tolist() == [[value, 0.0]]
    assert distance(update + 2, torch.full_like(update, 2.0), kind).tolist() == [[value, 0.0]]


def test_cosine_by_hand() -> None:
    origin = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    moved = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    torch.testing.assert_close(distance(moved, origin, "cosine"), torch.tensor([[0.0, 1.0, 2.0]]))


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_low_precision_is_summed_in_fp32(kind: str) -> None:
    """Summed in bf16, 4096 ones would stop growing at 256; squares of fp16 would overflow."""
    ones = torch.ones(1, 1, 4096, dtype=torch.bfloat16)
    assert length(ones, kind).item() == {"l2": 64, "l1": 4096}[kind]
    large = torch.full((1, 1, 1024), 1000.0, dtype=torch.float16)
    assert length(large, kind).item() == {"l2": 32000, "l1": 1024000}[kind]


def test_an_unknown_distance_is_an_error() -> None:
    with pytest.raises(KeyError):
        length(torch.ones(1, 1, 1), "l3")


# --- selection --------------------------------------------------------------------------------------------------------

rows = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.permutations(range(n)), min_size=1, max_size=4), st.integers(1, n), st.integers(0, 3)
    )
)


@settings(deadline=None, max_examples=100)
@given(rows)
def test_selection_and_gathering_are_as_written(drawn: tuple[list[list[int]], int, int]) -> None:
    """Any ranking of distinct scores, any count, any prefix, every sample by itself."""
    scores, count, prefix = drawn
    indices = top(torch.tensor(scores, dtype=torch.float32), count)
    expected = [sorted(sorted(range(len(s)), key=lambda i, s=s: -s[i])[:count]) for s in scores]
    assert indices.tolist() == expected
    batch, tokens = len(scores), len(scores[0])
    hidden = torch.arange(batch * (prefix + tokens) * 2).view(batch, prefix + tokens, 2)
    kept = gather(hidden, prefix, indices)
    assert kept.shape == (batch, prefix + count, 2)
    for sample, wanted, out in zip(hidden, expected, kept, strict=True):
        assert torch.equal(out, sample[[*range(prefix), *(prefix + i for i in wanted)]])


def test_gathering_from_a_view() -> None:
    whole = torch.randn(6, 3, 4)
    hidden = whole.transpose(0, 1)[:, 1:]
    assert not hidden.is_contiguous()
    indices = torch.tensor([[0, 3], [1, 2], [2, 3]])
    expected = torch.stack([torch.cat((h[:1], h[1:][i])) for h, i in zip(hidden, indices, strict=True)])
    assert torch.equal(gather(hidden, 1, indices), expected)


def test_gathering_copies() -> None:
    hidden = torch.randn(1, 4, 2)
    kept = gather(hidden, 1, torch.tensor([[0, 1, 2]]))
    assert torch.equal(kept, hidden)
    assert kept.data_ptr() != hidden.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_is_nan_is_kept(dtype: torch.dtype) -> None:
    scores = torch.tensor([[1.0, 5.0, float("nan"), 3.0], [float("inf"), 0.0, 2.0, float("nan")]], dtype=dtype)
    assert top(scores, 2).tolist() == [[1, 2], [0, 3]]


def test_equal_scores_give_as_many_different_tokens() -> None:
    indices = top(torch.zeros(3, 50), 20)
    assert indices.shape == (3, 20)
    assert all(len(set(row)) == 20 and row == sorted(row) for row in indices.tolist())


def test_shapes_never_depend_on_values() -> None:
    """Nothing is read back from the device: the whole chain runs on tensors without values."""
    with torch.device("meta"):
        hidden: Any = torch.empty(2, 11, 8)
        kept = gather(hidden, 1, top(distance(hidden[:, 1:], hidden[:, 1:], "l2"), 4))
    assert kept.shape == (2, 5, 8)
    assert kept.device.type == "meta"


@pytest.mark.parametrize("tokens", [50, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_of_equal_scores_the_lower_position_is_kept(tokens: int, dtype: torch.dtype) -> None:
    """Short rows are sorted, long ones cut at a threshold; NaN counts as +inf, -0.0 as 0.0."""
    kinds = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.0, -3.0], dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    scores = kinds[torch.randint(len(kinds), (3, tokens), generator=generator)]
    rank = [[math.inf if s != s else s for s in row] for row in scores.tolist()]
    for count in (1, tokens // 3, tokens - 1, tokens, tokens + 5):
        expected = [sorted(sorted(range(tokens), key=lambda i, r=row: -r[i])[:count]) for row in rank]
        assert top(scores, count).tolist() == expected


def test_scores_that_are_not_finite_are_counted() -> None:
    scores = torch.tensor([[1.0, math.nan, math.inf], [0.0, 2.0, -math.inf], [1.0, 2.0, 3.0]])
    assert not_finite(scores).tolist() == [2, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_moved_is_summed_without_rounding(dtype: torch.dtype) -> None:
    before = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], dtype=dtype)
    branch = torch.tensor([[[-1.0, 2.0], [3e-4, 0.0]]], dtype=dtype)
    assert moved_from(before, branch, "cosine").tolist() == [[1.0, 0.0]]
    assert moved_from(before, branch, "l1")[0, 0] == 3
    large = torch.full((1, 1, 1), 6e4, dtype=dtype)
    assert distance(large, -large, "l1").item() == 120000


def test_adding_only_what_is_kept() -> None:
    middle, branch = torch.randn(2, 3, 6, 4).to(torch.bfloat16)
    indices = torch.tensor([[0, 3], [1, 2], [2, 4]])
    assert torch.equal(gather_add(middle, branch, 1, indices), gather(middle + branch, 1, indices))


def test_the_path_on_a_cpu() -> None:
    """Plain torch, seen as such; Triton is refused in a sentence, also where it is installed."""
    with paths.seen() as ran, paths.seen() as inner:
        top(torch.zeros(1, 3), 2)
        length(torch.zeros(1, 3, 2), "l2")
    assert ran == inner == ["score:torch", "select:torch"]
    with paths.using("triton", "select"):
        length(torch.zeros(1, 3, 2), "l2")
        with paths.using("torch"):
            top(torch.zeros(1, 3), 2)
        with pytest.raises(UsageError, match="TRITON_INTERPRET=1"):
            top(torch.zeros(1, 3), 2)
    top(torch.zeros(1, 3), 2)
    with pytest.raises(UsageError, match="unknown kernel path"), paths.using("cuda"):
        pass


def test_compiles_without_a_break() -> None:
    def chain(middle: Tensor, branch: Tensor) -> Tensor:
        return gather_add(middle, branch, 1, top(moved_from(middle[:, 1:], branch[:, 1:], "cosine"), 5))

    middle, branch = torch.randn(2, 2, 9, 4)
    with torch.inference_mode():
        compiled = torch.compile(chain, backend="eager", fullgraph=True)
        assert torch.equal(compiled(middle, branch), chain(middle, branch))


class Launches(TorchDispatchMode):
    """Counts operators that compute: no views, no allocations, nothing about types."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = f(*args, **(kwargs or {}))
        free = out is args[0] and f.overloadpacket is torch.ops.aten.to
        alias = any(r.alias_info is not None and not r.alias_info.is_write for r in f._schema.returns)
        view = alias and isinstance(out, Tensor) and any(isinstance(a, Tensor) and out.dtype == a.dtype for a in args)
        named = f.name().startswith(("aten::empty", "aten::new_empty", "aten::promote_types"))
        self.count += not (free or view or named)
        return out


ROWS = torch.zeros(1, 5, 3)
HALF = ROWS.bfloat16()
LONG = torch.zeros(1, 300)
SOME = torch.zeros(1, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("launches", "call"),
    [
        (2, lambda: distance(ROWS, ROWS, "l2")),
        (3, lambda: distance(HALF, HALF, "l2")),
        (9, lambda: distance(ROWS, ROWS, "cosine")),
        (11, lambda: distance(HALF, HALF, "cosine")),
        (10, lambda: moved_from(ROWS, ROWS, "cosine")),
        (11, lambda: moved_from(HALF, HALF, "cosine")),
        (1, lambda: length(ROWS, "l2")),
        (3, lambda: top(ROWS[..., 0], 2)),
        (14, lambda: top(LONG, 2)),
        (3, lambda: gather(ROWS, 0, SOME)),
        (6, lambda: gather(ROWS, 2, SOME)),
        (5, lambda: gather_add(ROWS, ROWS, 0, SOME)),
    ],
)
def test_launches_are_as_documented(launches: int, call: Any) -> None:
    with torch.inference_mode(), Launches() as seen:
        call()
    assert seen.count == launches
