"""The cut fused with the residual add: the same rows bit for bit, and no row added that is not kept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import tiny
import torch
from tiny import FAMILIES, Plain, case, one_thread  # noqa: F401
from torch import Tensor

from repshift_cli.attention import vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.records import call, kept
from repshift_cli.reduction import oracle, random, repshift, stride
from repshift_cli.reduction.engine import fused_add
from repshift_cli.reduction.engine.hooks import pruned


def run(plain: Plain, method: Any, keep: float) -> Tensor:
    subject = tiny.subject(plain.module, plain.inputs)
    torch.manual_seed(0)
    with torch.inference_mode(), attending(vanilla), pruned(subject, method, case(keep=keep, layers=(1, 2))):
        return plain.compared(call(plain.module, plain.inputs)).clone()


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every sum that was worked out late."""
    rows: list[int] = []
    original = fused_add.awaiting

    def awaiting(branch: Tensor, cut: Any) -> Tensor:
        watched = fused_add.Cut(cut.rows, lambda m, b: (rows.append(cut.stay), cut.added(m, b))[1], cut.stay, cut.view)
        return original(branch, watched)

    monkeypatch.setattr("repshift_cli.reduction.engine.hooks.awaiting", awaiting)
    return rows


@pytest.mark.parametrize("method", [repshift, random, stride, oracle], ids=lambda m: m.__name__[21:])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_changes_no_bit(family: str, method: Any, sums: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FAMILIES[family]()
    late = run(plain, method, 0.3)
    lengths = [n + plain.prefix for n in (plain.tokens, kept(plain.tokens, 0.3), kept(kept(plain.tokens, 0.3), 0.3))]
    expected = [b for a, b in pairwise(lengths) if method is oracle or 5 * b < 3 * a]
    assert sums == expected and expected
    monkeypatch.setattr("repshift_cli.reduction.engine.hooks.awaiting", lambda branch, cut: branch)
    assert torch.equal(late, run(plain, method, 0.3))
    assert sums == expected


def test_where_it_moves_more_bytes_the_sum_comes_first(sums: list[int]) -> None:
    plain = FAMILIES["vit"]()
    run(plain, repshift, 0.9)
    assert sums == []


class Unusual(tiny.PreNorm):
    """Adds in a way that is not followed."""

    add: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.first(x))
        return type(self).add(x, self.feed(self.second(x)))


class Scaled(Unusual):
    add = staticmethod(lambda x, y: torch.add(x, y, alpha=1))


class Stacked(Unusual):
    add = staticmethod(lambda x, y: torch.stack((x, y)).sum(0))


class InPlace(Unusual):
    add = staticmethod(lambda x, y: x.add_(y))


@pytest.mark.parametrize(("make", "late"), [(Scaled, 0), (Stacked, 0), (InPlace, 1), (tiny.PreNorm, 1)])
def test_a_block_that_adds_otherwise_is_cut_at_its_end(make: type[tiny.PreNorm], late: int, sums: list[int]) -> None:
    def made(kind: type[tiny.PreNorm]) -> Any:
        torch.manual_seed(0)
        module: Any = tiny.roughen(tiny.PlainTransformer(kind)).double()
        return Plain(module, (tiny.pixels(2, 12, tiny.WIDTH),), 1, 12, None, (), None, lambda out: out)  # type: ignore[arg-type]

    expected = run(made(tiny.PreNorm), repshift, 0.3)
    sums.clear()
    torch.testing.assert_close(run(made(make), repshift, 0.3), expected, rtol=0, atol=1e-12)
    assert len(sums) == late
