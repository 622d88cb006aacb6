"""What pruning costs and saves by block, from where it pays, what changed: exact on made-up breakdowns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic import ON_CPU, ON_CUDA, REPSHIFT

from repshift_cli.profiling import break_even
from repshift_cli.records import Case, Facts, tokens_along
from repshift_cli.records.profile import Breakdown, KernelTime, OpTime, PartTime

FACTS = Facts(depth=4, tokens=100, prefix=0)


def made(
    case: Case, per_token: float = 0.01, selection: float = 0.2, device: bool = False, depth: int = 4
) -> Breakdown:
    """A model whose blocks take `per_token` ms for each token, 1 ms outside; the selection is spread over its parts."""
    tokens = tokens_along(FACTS, case.keep, case.layers)
    parts = [PartTime("other", None, 1.0, 0.5)]
    for layer in range(1, depth + 1):
        own = per_token * tokens[min(sum(cut < layer for cut in case.layers), len(tokens) - 1)]
        parts += [PartTime("mlp", layer, own * 0.6, own * 0.06), PartTime("attention", layer, own * 0.4, own * 0.04)]
        if layer in case.layers:
            parts += [
                PartTime(p, layer, selection / 4 * n, selection / 40 * n)
                for p, n in (("score", 2), ("select", 1), ("cut", 1))
            ]
    step = sum(p.host_ms for p in parts)
    busy = sum(p.device_ms or 0 for p in parts) if device else None
    if not device:
        parts = [replace(p, device_ms=None) for p in parts]
    return Breakdown(case.variant, case, tokens=tokens, step_ms=(step, step), busy_ms=busy, parts=tuple(parts))


PLAIN = replace(ON_CPU, attention="flash")
CUT = replace(PLAIN, **REPSHIFT | {"keep": 0.5, "layers": (2,)})
REFERENCE, PRUNED = made(PLAIN), made(CUT)


def test_saved_and_won_block_by_block() -> None:
    rows = break_even.balance(PRUNED, REFERENCE)
    assert [r.saved for r in rows] == pytest.approx([0, 0, 0.5, 0.5])
    assert [r.won for r in rows] == pytest.approx([0, -0.2, 0.3, 0.8])
    assert break_even.selection(PRUNED) == pytest.approx(0.2)
    assert break_even.selection(PRUNED, layer=3) == 0


def test_the_device_counts_where_there_is_one() -> None:
    rows = break_even.balance(made(CUT, device=True), made(PLAIN, device=True))
    assert [r.won for r in rows] == pytest.approx([0, -0.02, 0.03, 0.08])


@pytest.mark.parametrize(("cost", "layer"), [(0.2, 3), (0.7, 4), (1.1, None)])
def test_the_block_from_which_pruning_pays(cost: float, layer: int | None) -> None:
    assert break_even.pays_from(made(CUT, selection=cost), REFERENCE) == layer


def test_a_second_cut_must_be_paid_for_too() -> None:
    case = replace(CUT, layers=(1, 3))
    assert break_even.pays_from(made(case, selection=0.6), REFERENCE) == 4
    pruned = made(case, selection=0.3)
    dear = [replace(p, host_ms=2.0) if (p.part, p.layer) == ("select", 3) else p for p in pruned.parts]
    assert break_even.pays_from(pruned, REFERENCE) == 2
    assert break_even.pays_from(replace(pruned, parts=tuple(dear)), REFERENCE) is None


@pytest.mark.parametrize(("cost", "keep"), [(0.2, 0.89), (0.5, 0.74), (0.0, 0.99)])
def test_the_keep_ratio_up_to_which_pruning_pays(cost: float, keep: float) -> None:
    """Two blocks behind the cut save 0.01 ms a token: 0.02 (1 - keep) 100 must exceed the cost."""
    assert break_even.break_even_keep(made(CUT, selection=cost), REFERENCE) == keep


def test_the_keep_ratio_depends_on_what_a_token_costs() -> None:
    dear = made(CUT, per_token=0.04, selection=0.8), made(PLAIN, per_token=0.04)
    assert break_even.break_even_keep(*dear) == break_even.break_even_keep(PRUNED, REFERENCE) == 0.89


def test_no_keep_ratio_pays_where_nothing_is_saved() -> None:
    slower = made(CUT, per_token=0.03)
    assert break_even.break_even_keep(slower, REFERENCE) is None
    assert break_even.break_even_keep(made(CUT, selection=5.0), REFERENCE) is None


def test_drift_is_told_by_the_blocks_that_both_run_alike() -> None:
    assert break_even.drift(PRUNED, REFERENCE) == pytest.approx(0)
    assert break_even.drift(made(CUT, per_token=0.015), REFERENCE) == pytest.approx(0.5)
    assert break_even.drift(made(CUT, selection=3.0), REFERENCE) == pytest.approx(0)


def test_tokens_entering_each_block() -> None:
    assert [break_even.tokens_in(PRUNED, n) for n in (1, 2, 3, 4)] == [100, 100, 50, 50]


def test_times_of_parts_add_up() -> None:
    assert break_even.parts_of(PRUNED) == ["attention", "mlp", "score", "select", "cut", "other"]
    assert sum(break_even.time(PRUNED, p) for p in break_even.parts_of(PRUNED)) == pytest.approx(PRUNED.step)
    inside = sum(break_even.time(PRUNED, layer=n) for n in break_even.layers_of(PRUNED))
    assert inside + break_even.outside(PRUNED) == pytest.approx(PRUNED.step)


def test_the_reference_has_the_same_attention_and_setting() -> None:
    vanilla = made(replace(ON_CPU, attention="vanilla"))
    assert break_even.reference_of(PRUNED, [vanilla, REFERENCE, PRUNED]) is REFERENCE
    assert break_even.reference_of(PRUNED, [vanilla, made(replace(PLAIN, batch=2)), PRUNED]) is None
    assert break_even.reference_of(PRUNED, [replace(REFERENCE, status="failed"), PRUNED]) is None
    assert break_even.reference_of(REFERENCE, [vanilla, REFERENCE]) is None


def test_what_a_difference_compares() -> None:
    vanilla, failed = made(replace(ON_CPU, attention="vanilla")), replace(PRUNED, status="failed")
    other = made(replace(CUT, pruning="random"))
    found = break_even.pairs([vanilla, failed, REFERENCE, PRUNED, other])
    assert found == [(vanilla, REFERENCE), (REFERENCE, PRUNED), (REFERENCE, other)]


@pytest.mark.parametrize(
    ("busy", "word"), [(None, ""), (9.7, "device-bound: the device idles 3%"), (8.0, "neither"), (4.0, "host-bound: ")]
)
def test_what_sets_the_pace(busy: float | None, word: str) -> None:
    said = break_even.bound(Breakdown("it", ON_CUDA, step_ms=(10.0,), busy_ms=busy))
    assert said.startswith(word) and (busy is None) == (said == "")


def test_changes_of_kernels_the_largest_first() -> None:
    before = Breakdown(
        "a", kernels=(KernelTime("gemm", 4, 2.0), KernelTime("softmax", 2, 1.0), KernelTime("add", 1, 0.1))
    )
    after = Breakdown("b", kernels=(KernelTime("gemm", 4, 2.5), KernelTime("flash", 2, 0.4), KernelTime("add", 1, 0.1)))
    found = [(c.name, c.what, round(c.difference, 6)) for c in break_even.changes(before, after)]
    assert found == [("softmax", "gone", -1.0), ("gemm", "more", 0.5), ("flash", "new", 0.4), ("add", "same", 0.0)]


def test_changes_of_operators_where_there_are_no_kernels() -> None:
    before, after = (Breakdown("x", ops=(OpTime("aten::bmm", 2, ms),)) for ms in (1.0, 0.4))
    (change,) = break_even.changes(before, after)
    assert (change.what, change.difference) == ("less", pytest.approx(-0.6))
