"""The plain answer: which row it names, against what, at what loss, beside which control, and what it says to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from synthetic import CPU, ON_CPU, ON_CUDA, ran, small_run, sweep_run
from tiny import WIDTH, PlainTransformer, pixels, roughen

from repshift_cli import prune
from repshift_cli.analysis import answer as answers
from repshift_cli.analysis.answer import answer
from repshift_cli.records import OPERATORS, Case, Measurement, Record, Run
from repshift_cli.renderers.sheets.answer import closing, code_of, sentence

FLASH = replace(ON_CPU, attention="flash", weights="hf:x")
SHIFT = replace(FLASH, pruning="repshift", keep=0.5, layers=(3,), options=(("operation", "mlp"), ("form", "paper")))


def ratio(over: str, *samples: float) -> Measurement:
    kind = ("x", "higher", "hodges-lehmann", "timed")
    return Measurement(f"speedup_vs_{over}", f"vs {over}", *kind, samples * (12 // len(samples)))


def one(metric: str, value: float, unit: str = "") -> Measurement:
    label = metric.partition("_")[2].upper() or metric
    return Measurement(metric, label, unit, "lower", "value", "compared", (value,))


def row(case: Case, *found: Measurement, **more: Any) -> Record:
    return Record(case, "ok", tokens=(197, 99), rounds=12, measurements=found, **more)


def run_of(*records: Record) -> Run:
    return Run(CPU, {}, tuple(r.case for r in records), records)


def method(name: str, **changes: Any) -> Case:
    return replace(SHIFT, pruning=name, options=(), **changes)


def told(*records: Record) -> str:
    return closing(run_of(*records))[1]


def test_the_better_unpruned_variant_is_the_one_that_is_gained_least_on() -> None:
    found = answer(run_of(row(SHIFT, ratio("flash", 1.3), ratio("vanilla", 1.2, 1.22), one("fidelity_kl", 0.01))))
    assert found is not None and found.best is not None
    assert (found.verdict, found.best.over, found.best.among) == (answers.PAYS, "vanilla", 2)
    assert 1.2 <= found.best.speedup.value <= 1.22


def test_of_what_drops_alike_the_row_that_loses_least_is_named_and_no_control_or_limit() -> None:
    rows = [
        row(SHIFT, ratio("flash", 1.2), one("fidelity_kl", 0.03)),
        row(method("norm"), ratio("flash", 1.25), one("fidelity_kl", 0.04)),
        row(method("random"), ratio("flash", 1.5), one("fidelity_kl", 0.02)),
        row(method("oracle"), ratio("flash", 1.6), one("fidelity_kl", 0.9)),
    ]
    found = answer(run_of(*rows))
    assert found is not None and found.best is not None and found.best.case == SHIFT
    assert [(c.method, c.as_well) for c in found.controls] == [("random", True)]
    assert found.next == (answers.LAYERS,)
    said = told(*rows)
    assert "random dropping does as well: KL 0.02000" in said and "KL 0.03000" in said


@pytest.mark.parametrize(("loss", "as_well"), [(0.0315, True), (0.032, False)])
def test_a_control_does_as_well_up_to_a_twentieth_more_loss(loss: float, as_well: bool) -> None:
    rows = row(SHIFT, ratio("flash", 1.2), one("fidelity_kl", 0.03)), row(method("stride"), one("fidelity_kl", loss))
    found = answer(run_of(*rows))
    assert found is not None and [c.as_well for c in found.controls] == [as_well]
    assert found.next == ((answers.LAYERS,) if as_well else (answers.APPLY,))


def test_the_cosine_is_a_loss_by_its_distance_from_1() -> None:
    rows = [
        row(SHIFT, ratio("flash", 1.2), one("fidelity_cosine", 0.98)),
        row(method("norm", keep=0.9), ratio("flash", 1.1), one("fidelity_cosine", 0.99)),
        row(method("random"), one("fidelity_cosine", 0.9)),
    ]
    found = answer(run_of(*rows))
    assert found is not None and found.best and found.mildest
    assert found.best.case.keep == 0.5 and found.mildest.case.keep == 0.9 and not found.controls[0].as_well


def test_random_weights_show_no_loss_and_that_is_the_next_step() -> None:
    found = answer(small_run())
    assert found is not None and found.best and found.best.loss == () and found.next == (answers.WEIGHTS,)
    assert "at a loss that random weights cannot show" in sentence(found, [r.case for r in small_run().records])


def test_settings_are_counted_and_the_row_is_named_by_what_tells_it_apart() -> None:
    row = "the best of 8 rows, deit_s flash+repshift keep 0.3 at 3 update eager, is 1.47x"
    assert closing(sweep_run())[1].startswith(f"Pruning pays in 4 of 4 settings: {row}")


def test_the_luckiest_of_many_rows_that_gain_nothing_does_not_pay() -> None:
    """Six rounds that all gain have p = 1/64: enough alone, and among rows that gain as surely, not as one of nine."""
    lucky = replace(ratio("flash", 1.02, 1.05), samples=(1.02, 1.05) * 3)
    gaining, nothing = row(SHIFT, lucky), replace(lucky, samples=(0.95, 1.04) * 3)
    others = [replace(SHIFT, keep=keep / 10) for keep in range(1, 10) if keep != 5]
    assert answer(run_of(gaining)).verdict == answers.PAYS  # type: ignore[union-attr]
    assert answer(run_of(gaining, *(row(case, lucky) for case in others))).verdict == answers.PAYS  # type: ignore[union-attr]
    among = (gaining, *(row(case, nothing) for case in others))
    found = answer(run_of(*among))
    assert found is not None and (found.verdict, found.next[-1]) == (answers.OPEN, answers.BUDGET)
    assert "(1.02–1.05) the speed of unpruned flash, as the luckiest of 9 rows may by chance. Next:" in told(*among)


@pytest.mark.parametrize(
    ("samples", "verdict", "words"),
    [
        ((0.97, 1.04), answers.OPEN, "Nothing was shown to pay at batch 1"),
        ((0.9, 0.91), answers.SLOWER, "Pruning is slower here"),
    ],
)
def test_no_gain_says_what_to_try(samples: tuple[float, ...], verdict: str, words: str) -> None:
    rows = [row(SHIFT, ratio("flash", *samples))]
    found = answer(run_of(*rows))
    assert found is not None and found.verdict == verdict and found.next == (answers.GROW,)
    assert told(*rows).startswith(words) and "try --batch 32" in told(*rows) and closing(run_of(*rows))[0] == ""


def test_where_the_host_sets_the_pace_a_graph_is_the_way() -> None:
    latency = Measurement("latency", "latency", "ms", "lower", "median", "timed", (3.0,) * 12)
    on_gpu = replace(SHIFT, device="cuda:0")
    waiting = row(on_gpu, ratio("flash", 0.98, 1.03), latency, one("device_busy", 1.0, "ms"))
    assert "the host sets the pace; try --batch 32 or --cuda-graph" in told(waiting)
    busy = row(on_gpu, ratio("flash", 0.98, 1.03), latency, one("device_busy", 2.9, "ms"))
    assert "the host" not in told(busy)
    graph = replace(waiting, case=replace(on_gpu, execution="graph"))
    assert "the host" not in told(graph)


def test_a_wide_interval_asks_for_more_time() -> None:
    assert "a longer --budget narrows the interval" in told(row(SHIFT, ratio("flash", 0.9, 1.2)))


def test_why_there_is_no_verdict() -> None:
    few = Measurement("speedup_vs_flash", "vs flash", "x", "higher", "hodges-lehmann", "timed", (2.0, 2.0))
    assert "too few rounds" in told(row(SHIFT, few))
    assert "the machine was busy" in told(row(SHIFT, ratio("flash", 2.0), unfit="busy"))
    assert "add flash to --variant" in told(row(SHIFT, one("fidelity_kl", 0.1)))
    assert told(row(FLASH)) == "Nothing was pruned here. Next: add flash+repshift to --variant."
    assert closing(run_of(Record(SHIFT, "failed", "no"))) == ("", "")
    assert closing(run_of(row(replace(FLASH, model=OPERATORS), ratio("flash", 2.0)))) == ("", "")


def test_a_control_alone_is_answered_for() -> None:
    alone = ran(replace(ON_CUDA, attention="flash", pruning="random", keep=0.6, layers=(3,)), 20.0, 61.8, 40.2)
    assert "flash+random keep 0.6 at 3 is 2.0" in told(alone)


@pytest.mark.parametrize(
    "options", [{"method": "repshift", "form": "update", "operation": "block"}, {"method": "norm"}]
)
def test_the_lines_below_a_table_apply_that_row(options: dict[str, str]) -> None:
    torch.manual_seed(0)
    model, example = roughen(PlainTransformer(depth=7)), (pixels(2, 12, WIDTH).float(),)
    own = {name: value for name, value in options.items() if name != "method"}
    case = replace(
        SHIFT, pruning=options["method"], options=tuple(own.items()), layers=(1, 4), protect="first:2,last:1"
    )
    with torch.inference_mode():
        with prune(model, inputs=example, keep=0.5, layers=[1, 4], protect="first:2,last:1", **options) as expected:
            model(*example)
        given: dict[str, Any] = {"model": model, "example": example}
        exec(code_of(case), given)
        model(*example)
    given["handle"].remove()
    assert [k.tolist() for k in given["handle"].kept] == [k.tolist() for k in expected.kept]
    assert all(len(line) <= 80 for line in code_of(case).splitlines())
