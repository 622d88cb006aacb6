"""Metrics describe themselves: flags instead of ranks, in files old and new, and one order of columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import small_run

from repshift_cli.records import Measurement, Metric, Record, Run, store
from repshift_cli.records.json_codec import to_plain
from repshift_cli.renderers.sheets.metric_columns import exported, metrics_of
from repshift_cli.renderers.sheets.order import HEADLINES, OTHERS, rank_of
from repshift_cli.renderers.sheets.run import sheets

PACE = Metric("pace", "samples/lap", "1/s", "higher", "median", "timed", "Laps of a second.")


def test_a_metric_makes_measurements_that_describe_themselves() -> None:
    hidden = replace(PACE, gateable=False, detail=True, provider="ncu")
    taken, missing = hidden.of(1, 2, per_round=2), hidden.missing("nobody ran", reference=True)
    shared = ("pace", "samples/lap", "1/s", "higher", "median", "timed")
    assert taken == Measurement(*shared, (1.0, 2.0), 2, provider="ncu", gateable=False, detail=True)
    assert (missing.samples, missing.reason, missing.reference) == ((), "nobody ran", True)
    assert PACE.counting("img").label == "img/lap"


def as_written_before_schema_4(measurement: Measurement, rank: int) -> dict[str, object]:
    plain = to_plain(measurement)
    return {k: v for k, v in plain.items() if k not in ("gateable", "detail", "reference")} | {"rank": rank}


@pytest.mark.parametrize(
    ("rank", "statistic", "reason", "flags"),
    [
        (12, "median", None, (True, False, False)),
        (120, "median", None, (False, True, False)),
        (101, "value", None, (True, True, False)),
        (10, "hodges-lehmann", "reference: this is flash itself", (True, False, True)),
        (10, "hodges-lehmann", "no flash in this run", (True, False, False)),
    ],
)
def test_an_older_file_has_its_flags_from_rank_and_reason(
    tmp_path: Path, rank: int, statistic: str, reason: str | None, flags: tuple[bool, ...]
) -> None:
    made = Measurement("pace", "pace", "x", "higher", statistic, "timed", () if reason else (1.0,), reason=reason)
    plain = to_plain(small_run()) | {"schema": 3}
    plain["records"] = plain["records"][:1]
    plain["records"][0]["measurements"] = [as_written_before_schema_4(made, rank)]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(plain))
    (read,) = store.load(path).records[0].measurements
    assert (read.gateable, read.detail, read.reference) == flags
    assert replace(read, gateable=True, detail=False, reference=False) == made


@pytest.mark.parametrize(
    ("warnings", "throttled"), [(["2 rounds under a hardware throttle were repeated (heat)"], True), (["warm"], False)]
)
def test_an_older_record_says_by_its_warnings_that_it_was_throttled(
    tmp_path: Path, warnings: list[str], throttled: bool
) -> None:
    plain = to_plain(small_run()) | {"schema": 3}
    plain["records"] = [{k: v for k, v in plain["records"][0].items() if k != "throttled"} | {"warnings": warnings}]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(plain))
    assert store.load(path).records[0].throttled is throttled


def with_metrics(*made: Measurement) -> Run:
    case = small_run().planned[0]
    return replace(small_run(), planned=(case,), records=(Record(case, "ok", measurements=made),))


def test_columns_stand_in_the_one_order_and_the_unknown_after_them() -> None:
    known = [Metric(n, n, "", "lower", "value", "counted", "") for n in ("graph_breaks", "latency", "macs")]
    run = with_metrics(PACE.of(1), *(metric.of(1) for metric in known))
    assert [m.metric for m in metrics_of(run.records)] == ["latency", "macs", "graph_breaks", "pace"]
    ranks = {c.title: c.rank for c in sheets(run)[0].columns}
    assert ranks["latency"] < ranks["macs"] < ranks["graph_breaks"] < ranks["samples/lap"]
    assert len({*HEADLINES, *OTHERS}) == len(HEADLINES) + len(OTHERS)
    assert rank_of("kernels") < rank_of("anything else") == rank_of("pace")


def test_details_are_in_no_table_and_no_dashboard() -> None:
    run = with_metrics(replace(PACE, detail=True).of(1), replace(PACE, name="lap", label="lap").of(2))
    assert [c.title for c in sheets(run)[0].columns if c.metric] == ["lap"]
    assert [m.metric for _, m, _ in exported(run)] == ["lap"]


def test_the_reference_is_known_by_its_flag_not_by_its_words() -> None:
    run = with_metrics(PACE.missing("reference: but no flag"), PACE.of(1))
    flagged = with_metrics(replace(PACE, name="lap").missing("any words", reference=True), PACE.of(1))
    assert any("reference: but no flag" in note for note in sheets(run)[0].notes)
    assert not any("any words" in note for note in sheets(flagged)[0].notes)


def test_all_metrics_are_listed_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    from repshift_cli import cli

    assert cli.run(["metrics", "--json", "-"], False) == 0
    found = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert {"latency", "macs", "fidelity_kl", "hbm_modelled", "energy", "err_own", "cpu_time", "sm_clock"} <= set(found)
    assert all(m["description"].endswith(".") and m["description"][0].isupper() for m in found.values())
    assert found["latency"]["gateable"] and not found["sm_clock"]["gateable"]
    assert {*HEADLINES, *OTHERS} - {"keep", "layers", "tokens"} == set(found), "the one order has each of them"
    assert cli.run(["metrics"], False) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert found["latency"]["description"] in shown and "latency in ms, timed, median, less is better, gates" in shown


@pytest.mark.slow
def test_what_a_run_holds_is_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Whatever a real run writes has its description among the metrics."""
    from repshift_cli import cli
    from repshift_cli.benchmark.metrics import all_metrics

    out = tmp_path / "run.json"
    command = ["bench", "--model", "vit_t", "--image-size", "32", "--keep", "0.5", "--rounds", "1", "--in-process"]
    assert cli.run([*command, "--device", "cpu", "--out", str(out)], False) == 0
    held = {m.metric for record in store.load(out).records for m in record.measurements}
    assert held <= {metric.name for metric in all_metrics()}
