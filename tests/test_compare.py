"""Stored runs side by side: what changed, what cannot be judged, how it is shown."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import CPU, CUDA, ON_CPU, ON_CUDA, REPSHIFT, ROUNDS, small_run

from repshift_cli import cli
from repshift_cli.analysis import comparison, paired
from repshift_cli.analysis.comparison import BETTER, OPEN, SAME, WORSE, between, exact_word, word_for
from repshift_cli.analysis.stats import Estimate
from repshift_cli.records import Measurement, Run, store
from repshift_cli.records.labels import labels, words
from repshift_cli.renderers.sheets.comparison import by_size

FLASH = dataclasses.replace(ON_CPU, attention="flash")


def slower(run: Run, factor: float, **machine: Any) -> Run:
    """The run with every time longer by the factor."""
    records = []
    for record in run.records:
        own = [
            dataclasses.replace(
                m, samples=tuple(s * (factor if m.better == "lower" else 1 / factor) for s in m.samples)
            )
            if m.metric in ("latency", "throughput")
            else m
            for m in record.measurements
        ]
        records.append(dataclasses.replace(record, measurements=tuple(own)))
    return dataclasses.replace(run, records=tuple(records), machine=dataclasses.replace(run.machine, **machine))


def compare(folder: Path, base: Run, head: Run, *arguments: str, columns: int = 120) -> tuple[int, str, str]:
    for name, run in (("base.json", base), ("head.json", head)):
        store.create(folder / name, run)
    return command(folder, "compare", "base.json", "head.json", *arguments, columns=columns)


def command(folder: Path, *arguments: str, columns: int = 120) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in the folder."""
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, COLUMNS=str(columns)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        code = cli.run(list(arguments), debug=False)
    return code, out.getvalue(), error.getvalue()


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "better", "word"),
    [
        (1.02, 1.04, "lower", WORSE),
        (1.02, 1.04, "higher", BETTER),
        (0.95, 0.97, "lower", BETTER),
        (0.95, 0.97, "higher", WORSE),
        (0.995, 1.005, "lower", SAME),
        (0.995, 1.05, "lower", OPEN),
        (1.005, 1.03, "lower", OPEN),
        (None, None, "lower", OPEN),
    ],
)
def test_the_whole_interval_decides(low: float | None, high: float | None, better: str, word: str) -> None:
    assert word_for(Estimate(1.0, low, high), better, 0.01) == word


@given(st.floats(0.5, 2), st.floats(1, 1.5), st.sampled_from(["lower", "higher"]))
def test_swapping_the_runs_swaps_the_words(low: float, width: float, better: str) -> None:
    there, back = Estimate(low, low, low * width), Estimate(1 / low, 1 / (low * width), 1 / low)
    other = {WORSE: BETTER, BETTER: WORSE}
    word = word_for(there, better, 0.01)
    assert word_for(back, better, 0.01) == other.get(word, word)


@pytest.mark.parametrize(
    ("base", "head", "better", "word"),
    [(10, 10, "lower", SAME), (10, 10.1, "lower", WORSE), (10, 10.1, "higher", BETTER), (0, 0, "lower", SAME)],
)
def test_an_exact_number_changes_or_does_not(base: float, head: float, better: str, word: str) -> None:
    assert exact_word(base, head, better, 0.0) == word


def test_a_zero_that_grows_has_no_ratio_and_is_worse() -> None:
    zero, one = (Measurement("n", "n", "", "lower", "value", "counted", (v,)) for v in (0.0, 1.0))
    found = between(FLASH, zero, one, 0.01)
    assert (found.ratio, found.word) == (None, WORSE)


# --- pairs and names --------------------------------------------------------------------------------------------------


def test_the_largest_change_comes_first() -> None:
    found, lonely = comparison.compare(small_run(), slower(small_run(), 1.05))
    words = [f.word for f in found]
    assert words == sorted(words, key=[WORSE, OPEN, SAME].index)
    assert {f.word for f in found if f.metric == "latency"} == {WORSE} and not lonely


def test_what_changed_comes_first_by_its_share_of_its_own_noise() -> None:
    """A tenth of a percent that is ten times its noise stands before one percent that is twice its own."""

    def timed(name: str, *samples: float) -> Measurement:
        return Measurement(name, name, "ms", "lower", "median", "timed", samples)

    def counted(name: str, value: float, source: str = "counted") -> Measurement:
        return Measurement(name, name, "B", "lower", "value", source, (value,))

    noise = [1 + 0.0001 * (-1) ** i for i in range(12)]
    wide = [1 + 0.01 * (-1) ** i for i in range(12)]
    pairs = [
        (timed("wide", *wide), timed("wide", *(1.08 * n for n in wide))),
        (timed("same", *noise), timed("same", *noise)),
        (timed("sharp", *noise), timed("sharp", *(1.02 * n for n in noise))),
        (counted("process", 1000, "driver"), counted("process", 1000.6, "driver")),
        (counted("much", 1000, "driver"), counted("much", 1100, "driver")),
        (counted("macs", 1000), counted("macs", 1001)),
    ]
    found = by_size([between(FLASH, old, new, 0.01) for old, new in pairs])
    assert [f.metric for f in found] == ["macs", "sharp", "wide", "much", "process", "same"]
    assert [f.word for f in found] == [WORSE] * 4 + [SAME] * 2


def test_cases_of_one_side_are_listed_with_what_the_other_says() -> None:
    run = small_run()
    fewer = dataclasses.replace(run, records=run.records[1:])
    failed = dataclasses.replace(run.records[1], status="failed", reason="out of\nmemory", measurements=())
    head = dataclasses.replace(fewer, records=(failed, *fewer.records[1:]))
    _, lonely = comparison.compare(run, head)
    assert [(one.case.variant, one.side, one.reason) for one in lonely] == [
        ("vanilla", "base", "it has no such case"),
        ("flash", "base", "failed: out of memory"),
    ]


def test_a_case_is_called_by_what_tells_it_apart() -> None:
    pruned = dataclasses.replace(FLASH, **REPSHIFT)
    assert list(labels([FLASH]).values()) == ["flash"]
    protected = dataclasses.replace(FLASH, protect="first:2")
    assert list(labels([FLASH, protected]).values()) == ["flash", "flash protect first:2"]
    half = dataclasses.replace(pruned, keep=0.5, layers=(1, 4))
    assert labels([FLASH, pruned, half])[half] == "flash+repshift keep 0.5 at 1,4"
    assert labels([FLASH, dataclasses.replace(FLASH, model="deit_s", dtype="bf16")])[FLASH] == "vit_b flash fp32"


def test_fields_that_do_not_say_what_they_are_are_named() -> None:
    larger = dataclasses.replace(FLASH, batch=64, image_size=384)
    assert labels([FLASH, larger])[larger] == "flash 384 px batch 64"
    assert words(larger, ["length", "batch", "keep"]) == ["batch 64"]


# --- machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device_name": "NVIDIA A100"}, "GPU NVIDIA H100 80GB HBM3 and NVIDIA A100"),
        ({"driver": "570.1"}, "driver 580 and 570"),
        ({"packages": {"torch": "2.12.0"}}, "torch 2.13.0 and 2.12.0"),
        ({"cpu": None}, "CPU AMD EPYC 7763 64-Core Processor and none"),
    ],
)
def test_a_difference_of_machines_is_named(changes: dict[str, Any], words: str) -> None:
    assert list(comparison.differences(CUDA, dataclasses.replace(CUDA, **changes)).values()) == [words]


def test_a_minor_driver_and_another_card_of_the_model_do_not_differ() -> None:
    assert comparison.differences(CUDA, dataclasses.replace(CUDA, driver="580.99", uuid="GPU-other")) == {}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_it_says_worse_in_words_without_colour_and_fits(tmp_path: Path, columns: int) -> None:
    code, out, error = compare(tmp_path, small_run(), slower(small_run(), 1.05), columns=columns)
    assert (code, error) == (0, "")
    assert "worse" in out and "\x1b" not in out and "+5.0%" in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= columns


def test_only_changed_and_metric_select(tmp_path: Path) -> None:
    head = slower(small_run(), 1.05)
    _, everything, _ = compare(tmp_path, small_run(), head, "--all")
    _, default, _ = compare(tmp_path, small_run(), head)
    _, changed, _ = compare(tmp_path, small_run(), head, "--only-changed")
    rows = [text.partition("·  ")[0].partition("\n· ")[0] for text in (everything, default, changed)]
    assert "MACs" in rows[0] and "MACs" not in rows[1] + rows[2] and "img/s" in rows[1] and "img/s" in rows[2]
    assert "17 more are same (vs flash, vs vanilla, cosine, MACs," in default.replace("\n  ", " ")
    _, one, _ = compare(tmp_path, small_run(), head, "--metric", "latency")
    assert one.startswith("latency · ") and "img/s" not in one
    code, _, error = compare(tmp_path, small_run(), head, "--metric", "speed")
    assert code == 2 and "no case has 'speed' on both sides; there are" in error


def test_what_only_explains_stands_below_the_table(tmp_path: Path) -> None:
    """The machine's state is no result: whatever it did, it comes after all that is one, named in a line."""
    first, runs = small_run().records[0], []
    m = dataclasses.replace(first.measurements[0], metric="cpu_steal", label="steal", gateable=False, detail=True)
    for times in (1, 9):
        steal = dataclasses.replace(m, samples=tuple(times * s for s in m.samples))
        record = dataclasses.replace(first, measurements=(steal, *first.measurements))
        runs.append(dataclasses.replace(small_run(), records=(record,)))
    _, out, _ = compare(tmp_path, *runs)
    assert "1 more only explain the others (steal); --all shows them" in " ".join(out.split())
    assert "steal" not in out.partition("· ")[0].partition("change")[2].partition("\n· change")[0]
    _, everything, _ = compare(tmp_path, *runs, "--all")
    assert any(line.split()[:2] == ["vanilla", "steal"] for line in everything.splitlines())


def test_a_delta_makes_small_changes_none(tmp_path: Path) -> None:
    _, out, _ = compare(tmp_path, small_run(), slower(small_run(), 1.05), "--delta", "0.1", "--only-changed")
    assert "worse" not in out


def test_markdown_is_a_table_for_a_comment(tmp_path: Path) -> None:
    _, out, _ = compare(tmp_path, small_run(), slower(small_run(), 1.05), "--markdown", "--metric", "latency")
    assert "| case | base | head | change | head is |" in out
    assert re.search(r"\| flash \| 142\.\d ms \| 149\.\d ms \| \+5\.0% \(", out)


def test_json_has_every_finding(tmp_path: Path) -> None:
    _, out, _ = compare(tmp_path, small_run(), slower(small_run(), 1.05), "--metric", "latency", "--json", "-")
    (pair,) = json.loads(out)
    assert {f["word"] for f in pair["findings"]} == {"worse"} and pair["differences"] == []
    assert all(f["ratio"]["value"] == pytest.approx(1.05, abs=0.01) for f in pair["findings"])


def test_other_machines_are_refused_and_across_only_describes(tmp_path: Path) -> None:
    head = slower(small_run(), 1.05, packages={"torch": "2.12.0"})
    code, out, error = compare(tmp_path, small_run(), head)
    assert (code, out) == (4, "") and "differ in torch 2.13.0+cpu and 2.12.0; --across describes only" in error
    code, out, _ = compare(tmp_path, small_run(), head, "--across")
    assert code == 0 and "changed" in out and "worse" not in out
    assert "not judged, for the machines differ in torch 2.13.0+cpu and 2.12.0" in out


def test_across_pairs_a_cpu_with_a_gpu(tmp_path: Path) -> None:
    there = small_run(dataclasses.replace(ON_CUDA, batch=1), CUDA)
    code, out, _ = compare(tmp_path, small_run(), there, "--across", "--metric", "latency")
    assert code == 0 and "flash+repshift" in out and "only on" not in out
    assert "dtype fp32 and bf16" in out


def test_more_runs_give_more_tables(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 1.05), ("c", 0.9)):
        store.create(tmp_path / f"{name}.json", slower(small_run(), factor))
    code, out, _ = command(tmp_path, "compare", "a.json", "b.json", "c.json", "--metric", "latency")
    assert code == 0 and out.count("base: a.json") == 2 and "head: c.json" in out


def test_a_run_against_itself_is_the_same() -> None:
    found, _ = comparison.compare(small_run(), small_run())
    assert ROUNDS >= 10 and {f.word for f in found} == {SAME}


def test_machines_of_the_fixtures_differ() -> None:
    assert comparison.differences(CPU, CUDA)


@pytest.mark.parametrize(
    ("right", "word"), [((80, 80), "same"), ((80, 84), "inconclusive"), ((80, 98), "better"), ((80, 55), "worse")]
)
def test_accuracies_are_compared_with_their_intervals(right: tuple[int, int], word: str) -> None:
    base, head = (
        Measurement("top1", "top-1", "%", "higher", "wilson", "labelled", (100.0,) * k + (0.0,) * (100 - k))
        for k in right
    )
    assert comparison.between(ON_CPU, base, head, 0.01).word == word


# --- evaluations ------------------------------------------------------------------------------------------------------


def evaluated(seed: int, places: list[int], right: dict[int, bool], listing: str = "digits") -> Run:
    """An evaluation of these samples, in the order in which that seed shows them, right or wrong each by itself."""
    top1 = Measurement("top1", "top-1", "%", "higher", "wilson", "labelled", tuple(100.0 * right[p] for p in places))
    drawn = Measurement("recall", "R@1", "%", "higher", "bootstrap", "labelled", (50.0 + seed, 40.0 + seed, 60.0, 55.0))
    run = small_run()
    case = dataclasses.replace(ON_CPU, weights="folder", seed=seed)
    record = dataclasses.replace(run.records[0], case=case, status="ok", measurements=(top1, drawn))
    about = {"samples": len(places), "metrics": ["top1"], "seen": {"listing": listing, "places": places}}
    return dataclasses.replace(run, records=(record,), planned=(case,), options={"seed": seed, "evaluation": about})


RIGHT = {place: place % 3 > 0 for place in range(90)}
WORSENED = RIGHT | {place: False for place in (1, 2, 4, 5, 7, 8)}
"""Six samples more are wrong, none more is right."""


def test_evaluations_of_two_seeds_are_paired_by_their_samples(tmp_path: Path) -> None:
    base, head = evaluated(0, list(range(90)), RIGHT), evaluated(5, list(range(89, -1, -1)), WORSENED)
    (top1, recall), lonely = comparison.compare(base, head)
    assert lonely == []
    if top1.metric != "top1":
        top1, recall = recall, top1
    change = top1.difference
    assert change is not None and change.low is not None and change.high is not None
    assert (change.value, change.low, change.high) == pytest.approx(paired.tango([-100.0] * 6 + [0.0] * 84))
    assert change.high < 0 and top1.word == WORSE
    alone = comparison.between(ON_CPU, base.records[0].measurements[0], head.records[0].measurements[0], 0.01)
    assert alone.difference is not None and alone.difference.spans(0) and alone.word == OPEN, "unpaired it is wider"
    assert recall.difference is not None and recall.difference.low != -5.0, "other draws are not paired"
    code, out, _ = compare(tmp_path, base, head)
    told = " ".join(out.split())
    assert code == 0 and "-6.7 points" in out and "rounds" not in told, told
    assert "paired on the 90 samples that both runs saw (bootstrapped ones are not: their seeds differ)" in told
    same = comparison.compare(base, evaluated(0, list(range(90)), WORSENED))[0]
    assert next(f for f in same if f.metric == "recall").difference == Estimate(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (evaluated(1, list(range(30, 90)), WORSENED), "of 90 and 60 samples 60 are the same"),
        (evaluated(1, list(range(90)), WORSENED, "letters"), "their data differ"),
    ],
)
def test_why_evaluations_are_not_paired_is_said(head: Run, words: str, tmp_path: Path) -> None:
    code, out, _ = compare(tmp_path, evaluated(0, list(range(90)), RIGHT), head, "--json", "told.json")
    assert code == 0 and words in " ".join(out.split()) and "points" in out
    told = json.loads((tmp_path / "told.json").read_text())
    told = told[0] if isinstance(told, list) else told
    assert words in told["unpaired_because"] and not told["paired"]
