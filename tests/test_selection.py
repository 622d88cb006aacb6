"""Which rows stay, held against plain Python: protected ends, a token in the middle, padding, ties, several cuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from repshift_cli.kernels.select import top
from repshift_cli.records import Subject, dropped_share
from repshift_cli.reduction import stride
from repshift_cli.reduction.engine.selection import Cut, fixed, marked, marked_choice, scored
from repshift_cli.reduction.engine.state import Dropped

NAN = float("nan")


def subject(prefix: int = 0, suffix: int = 0, central: int = 0, marks: int = 0, free: int = 9) -> Subject:
    given: Any = {"module": None, "inputs": {}, "evaluation": (), "sites": (), "logits": None, "pooled": None}
    return Subject(
        **given, prefix=prefix, tokens=free, units="img", suffix=suffix, central=central, marked=marks
    )  # fmt: skip


def places(cut: Cut, length: int, batch: int = 1) -> list[list[int]]:
    """The rows that a cut keeps of `length` numbered ones."""
    kept: list[list[int]] = cut.rows(torch.arange(length).view(1, -1, 1).repeat(batch, 1, 1)).squeeze(-1).tolist()
    return kept


def count_of(free: int, keep: float) -> int:
    return max(1, free - free * (1000 - round(1000 * keep)) // 1000)


def highest(scores: Sequence[float], keep: float) -> list[int]:
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    return sorted(ranked[: count_of(len(scores), keep)])


def with_centre(chosen: list[int], free: int) -> list[int]:
    """Places among free tokens with one more in the middle: it goes behind half of those that stay."""
    own = [i + (i >= free // 2) for i in chosen]
    return [*own[: len(own) // 2], free // 2, *own[len(own) // 2 :]]


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("free", [1, 2, 7, 8])
@pytest.mark.parametrize(("prefix", "suffix"), [(0, 0), (2, 0), (0, 3), (1, 2)])
def test_the_highest_scores_between_the_protected_ends(prefix: int, suffix: int, free: int, keep: float) -> None:
    scores = torch.randn(3, free, generator=torch.Generator().manual_seed(free))
    length = prefix + free + suffix
    got = places(scored(scores, subject(prefix, suffix, free=free), length, dropped_share(keep)), length, 3)
    tail = list(range(length - suffix, length))
    assert got == [[*range(prefix), *(prefix + i for i in highest(s, keep)), *tail] for s in scores.tolist()]


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.77])
@pytest.mark.parametrize("free", [1, 2, 3, 4, 7, 8, 12, 13])
def test_a_token_in_the_middle(free: int, keep: float) -> None:
    """Whatever its own score, it stays, and stands in the middle of what stays."""
    rest = torch.randn(2, free, generator=torch.Generator().manual_seed(free))
    for own in (-1e9, 1e9, NAN):
        middle = torch.full((2, 1), own)
        scores = torch.cat((rest[:, : free // 2], middle, rest[:, free // 2 :]), 1)
        got = places(scored(scores, subject(central=1, free=free), free + 1, dropped_share(keep)), free + 1, 2)
        assert got == [with_centre(highest(s, keep), free) for s in rest.tolist()]
        assert all(row[len(row) // 2 if len(row) % 2 else (len(row) - 1) // 2] == free // 2 for row in got)


@pytest.mark.parametrize("free", [1, 2, 7, 8, 13])
def test_a_fixed_choice_around_a_token_in_the_middle(free: int) -> None:
    chosen = stride.choose(free, count_of(free, 0.5))
    got = places(fixed(chosen, subject(central=1, free=free), free + 1), free + 1)
    assert got == [with_centre(list(chosen), free)]


def test_fixed_choices_are_views_where_they_can_be() -> None:
    rows = torch.randn(2, 12, 4)
    view = fixed(range(5), subject(prefix=2), 12).rows(rows)
    assert view.data_ptr() == rows.data_ptr()
    assert torch.equal(view, rows[:, :7])
    with_tail = fixed(range(5), subject(prefix=2, suffix=1), 12).rows(rows)
    assert torch.equal(with_tail, rows[:, [0, 1, 2, 3, 4, 5, 6, 11]])
    assert torch.equal(fixed([1, 3], subject(prefix=2), 12).rows(rows), rows[:, [0, 1, 3, 5]])


def test_ties_keep_the_count_and_the_order() -> None:
    for scores in (torch.zeros(2, 9), torch.tensor([[1.0, 0, 1, 0, 1, 0, 1, 0, 1]] * 2)):
        got = places(scored(scores, subject(), 9, dropped_share(0.5)), 9, 2)
        assert got[0] == sorted(set(got[0]))
        assert len(got[0]) == 5
    assert got[0] == [0, 2, 4, 6, 8], "the five ones go before the zeros"


def test_nan_stays_and_so_shows() -> None:
    scores = torch.tensor([[0.1, NAN, 0.3, 0.2, NAN, 9.0]])
    assert top(scores, 3).tolist() == [[1, 4, 5]]
    assert places(scored(scores, subject(), 6, dropped_share(0.5)), 6) == [[1, 4, 5]]


# --- samples of their own lengths -------------------------------------------------------------------------------------

INF = math.inf
ROLES = torch.tensor(
    [
        [INF, 0, 0, 0, 0, 0, 0, 0, 0, INF],
        [INF, 0, 0, 0, INF, -INF, -INF, -INF, -INF, -INF],
        [INF, 0, 0, 0, 0, 0, INF, -INF, -INF, -INF],
    ]
)
"""BERT-like: [CLS], words, [SEP], padding."""


def alone(scores: list[float], roles: list[float], keep: float) -> list[int]:
    """What one sample keeps without its padding."""
    words = [i for i, role in enumerate(roles) if role == 0]
    chosen = {words[i] for i in highest([scores[i] for i in words], keep)}
    return [i for i, role in enumerate(roles) if role == INF or i in chosen]


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.77, 0.9])
def test_a_padded_batch_keeps_what_each_sample_keeps_alone(keep: float) -> None:
    """Twice in a row; the scores of padding are the highest of all, and change nothing."""
    scores = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    scores[ROLES == -INF] = 1e9
    roles, given, kept = ROLES, scores, [list(range(10))] * 3
    for _ in range(2):
        cut, shorter = marked(given, roles, subject(marks=2, free=8), dropped_share(keep))
        rows = places(cut, given.shape[1], 3)
        assert shorter.tolist() == [[r[i] for i in row] for r, row in zip(roles.tolist(), rows, strict=True)]
        for sample, row in enumerate(rows):
            mine = [i for i in row if roles[sample, i] != -INF]
            assert mine == alone(given[sample].tolist(), roles[sample].tolist(), keep)
            assert row == sorted(row)
        kept = [[k[i] for i in row] for k, row in zip(kept, rows, strict=True)]
        given, roles = torch.stack([given[b, row] for b, row in enumerate(rows)]), shorter
    assert len({len(row) for row in kept}) == 1
    assert len(kept[0]) == 2 + count_of(count_of(8, keep), keep), "what the longest sample needs"


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.9])
def test_a_fixed_choice_counts_each_samples_own_tokens(keep: float) -> None:
    scores = marked_choice(stride.choose, ROLES, dropped_share(keep))
    cut, roles = marked(scores, ROLES, subject(marks=2, free=8), dropped_share(keep))
    for sample, row in enumerate(places(cut, 10, 3)):
        words = [i for i, role in enumerate(ROLES[sample].tolist()) if role == 0]
        expected = [words[i] for i in stride.choose(len(words), count_of(len(words), keep))]
        assert [i for i in row if ROLES[sample, i] == 0] == expected
    assert (roles == INF).sum(1).tolist() == [2, 2, 2]


# --- several cuts -----------------------------------------------------------------------------------------------------


class Reads(nn.Module):
    def forward(self, x: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("cuts", [("scored", "scored"), ("fixed", "scored"), ("scored", "fixed"), ("fixed", "fixed")])
def test_later_blocks_are_told_the_places_at_the_first(cuts: tuple[str, str]) -> None:
    batch, length = tiny.BATCH, 11
    given = subject(prefix=1, suffix=1)
    dropped = Dropped(given)
    dropped.begin(None, (), {})
    expected = [list(range(length))] * batch
    for seed, kind in enumerate(cuts):
        now = len(expected[0])
        free = now - 2
        scores = torch.randn(batch, free, generator=torch.Generator().manual_seed(seed))
        cut = scored(scores, given, now, dropped_share(0.6)) if kind == "scored" else fixed([0, 2, 3], given, now)
        chosen = [highest(s, 0.6) if kind == "scored" else [0, 2, 3] for s in scores.tolist()]
        rows = [[0, *(i + 1 for i in c), now - 1] for c in chosen]
        expected = [[e[i] for i in row] for e, row in zip(expected, rows, strict=True)]
        dropped.add(cut, torch.zeros(batch, now, 4))
    x, mask = torch.zeros(batch, len(expected[0]), 4), torch.randn(batch, length)
    (same, shorter), names = dropped.rest(Reads(), (x, mask), {"ids": torch.arange(length)[None]})
    assert same is x
    assert torch.equal(shorter, torch.stack([mask[b, row] for b, row in enumerate(expected)]))
    assert names["ids"].expand(batch, -1).tolist() == expected


def test_a_new_forward_has_dropped_nothing() -> None:
    dropped = Dropped(subject())
    dropped.begin(None, (), {})
    dropped.add(fixed([0], subject(), 9), torch.zeros(1, 9, 4))
    dropped.begin(None, (), {})
    assert dropped.rest(Reads(), (torch.zeros(1, 9, 4), torch.zeros(1, 9)), {}) is None
