"""Our numbers in other dashboards' formats, held against what those document."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from synthetic import CPU, small_run, sweep_run
from typer.testing import CliRunner

from repshift_cli.analysis.stats import estimate
from repshift_cli.cli import app
from repshift_cli.records import Run, UsageError, store
from repshift_cli.renderers import asv, bencher, document_of, github_action_benchmark

BMF = {
    "$schema": "http://json-schema.org/draft-07/schema",
    "type": "object",
    "patternProperties": {
        ".+": {
            "type": "object",
            "patternProperties": {
                ".+": {
                    "type": "object",
                    "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
                    "required": ["value"],
                    "additionalProperties": False,
                }
            },
        }
    },
}
"""The schema in Bencher's reference of its metric format, closed."""

CUSTOM = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "unit": {"type": "string"},
            "value": {"type": "number"},
            "range": {"type": "string"},
            "extra": {"type": "string"},
        },
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
    },
}
"""The table in github-action-benchmark's README."""

RUNS = [small_run(), sweep_run()]


def written(renderer: Any, run: Run, **more: str) -> Any:
    out = io.StringIO()
    renderer.render(document_of(run, **more), out)
    return json.loads(out.getvalue())


def latency(run: Run, row: int) -> Any:
    m = run.records[row].measurement("latency")
    assert m
    return estimate(m)


@pytest.mark.parametrize("run", RUNS, ids=["small", "sweep"])
def test_bencher(run: Run) -> None:
    found = written(bencher, run)
    jsonschema.validate(found, BMF)
    assert len(found) == sum(r.status == "ok" for r in run.records)
    assert all(len(case) <= 1024 for case in found)
    measures = {name for case in found.values() for name in case}
    assert all(len(name) <= 64 and name == name.lower() and "_" not in name for name in measures)
    own = found[run.records[0].case.key]["latency-ms"]
    figure = latency(run, 0)
    assert own == {"value": figure.value, "lower_value": figure.low, "upper_value": figure.high}


@pytest.mark.parametrize("run", RUNS, ids=["small", "sweep"])
def test_github_action_benchmark(run: Run) -> None:
    smaller, bigger = written(github_action_benchmark, run), written(github_action_benchmark, run, better="higher")
    for entries in (smaller, bigger):
        jsonschema.validate(entries, CUSTOM)
        names = [entry["name"] for entry in entries]
        assert len(set(names)) == len(names) > 0
    kinds = [{entry["name"].partition(":")[0] for entry in entries} for entries in (smaller, bigger)]
    assert "latency" in kinds[0] and "img/s" in kinds[1] and not kinds[0] & kinds[1]
    own = next(e for e in smaller if e["name"] == f"latency: {run.records[0].case.key}")
    figure = latency(run, 0)
    assert (own["unit"], own["value"]) == ("ms", figure.value)
    assert own["range"] == f"± {(figure.high - figure.low) / 2:.3g}"


@pytest.mark.parametrize("run", RUNS, ids=["small", "sweep"])
def test_asv(run: Run) -> None:
    """The keys of version 2 of its results file; a result's columns are the leading ones."""
    found = written(asv, run)
    keys = "version commit_hash env_name date params python requirements env_vars durations result_columns results"
    assert set(found) == set(keys.split()) and found["version"] == 2
    assert found["result_columns"][:3] == ["result", "params", "version"]
    name = next(n for n in found["results"] if n.startswith("repshift.latency."))
    values = dict(zip(found["result_columns"], found["results"][name], strict=False))
    assert values["result"] == [pytest.approx(latency(run, 0).value / 1000)], "asv counts in seconds"
    assert values["params"] == [] and isinstance(values["started_at"], int)


def test_asvs_folder_has_what_publish_reads(tmp_path: Path) -> None:
    store.create(tmp_path / "run.json", small_run())
    result = CliRunner().invoke(
        app, ["export", str(tmp_path / "run.json"), "--format", "asv", "--out", str(tmp_path / "r")]
    )
    assert result.exit_code == 0, result.output
    files = {str(p.relative_to(tmp_path / "r")): json.loads(p.read_text()) for p in (tmp_path / "r").rglob("*.json")}
    assert set(files) == {"benchmarks.json", "CPU/machine.json", "CPU/3f2c1ab-repshift-py3.12.json"}
    benchmarks = files["benchmarks.json"]
    results = files["CPU/3f2c1ab-repshift-py3.12.json"]["results"]
    assert set(benchmarks) - {"version"} == set(results) and benchmarks["version"] == 2
    for name, entry in results.items():
        assert benchmarks[name]["version"] == entry[2] and benchmarks[name]["name"] == name
    assert files["CPU/machine.json"]["version"] == 1


def test_asv_needs_a_commit() -> None:
    with pytest.raises(UsageError, match="outside a git checkout: name it with --commit"):
        asv.render(document_of(replace(small_run(), machine=replace(CPU, commit=None))), io.StringIO())


def test_a_commit_can_be_named(tmp_path: Path) -> None:
    store.create(tmp_path / "run.json", replace(small_run(), machine=replace(CPU, commit=None)))
    asked = ["export", str(tmp_path / "run.json"), "--format", "asv", "--commit"]
    done = CliRunner().invoke(app, [*asked, "0a1b2c3d4e"])
    assert done.exit_code == 0 and json.loads(done.stdout)["commit_hash"] == "0a1b2c3d4e"
    wrong = CliRunner().invoke(app, [*asked, "main"])
    assert isinstance(wrong.exception, UsageError) and "'main' is no commit's hash" in str(wrong.exception)


def test_the_command_writes_to_stdout_or_a_file_and_refuses_an_empty_run(tmp_path: Path) -> None:
    store.create(tmp_path / "run.json", small_run())
    arguments = ["export", str(tmp_path / "run.json"), "--format", "github-action-benchmark", "--better", "bigger"]
    plain = CliRunner().invoke(app, arguments)
    assert plain.exit_code == 0 and json.loads(plain.stdout)[0]["name"].startswith("vs flash: ")
    CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a" / "b.json")])
    assert (tmp_path / "a" / "b.json").read_text() == plain.stdout
    store.create(tmp_path / "empty.json", replace(small_run(), records=()))
    empty = CliRunner().invoke(app, ["export", str(tmp_path / "empty.json"), "--format", "bencher"])
    assert isinstance(empty.exception, UsageError) and "holds no figures" in str(empty.exception)
