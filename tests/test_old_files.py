"""Files of every schema there ever was are read by all that reads files.

`data/run-schema-N.json` were written by the code of their time: ViT-T on 64 pixels, 20% dropped after blocks 1, 4, 7,
on a CPU, with a protected token since the third; `data/profile-schema-2.json` is a profile of the same. None may be
written anew once its schema is released: a new schema adds a file.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from repshift_cli.cli import app
from repshift_cli.records import SCHEMA_VERSION

DATA = Path(__file__).parent / "data"
RUNS = [DATA / f"run-schema-{number}.json" for number in (1, 2, 3, 4)]
PROFILE = DATA / "profile-schema-2.json"
VARIANTS = ["vanilla", "flash", "flash+repshift"]

every_run = pytest.mark.parametrize("file", RUNS, ids=lambda path: path.stem)


def out(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "240"})
    assert done.exit_code == 0, done.output or done.exception
    return done.stdout


def samples(file: Path, record: int, metric: str) -> list[float]:
    """Read as plain JSON, without this package."""
    measurements = json.loads(file.read_text())["records"][record]["measurements"]
    return next(m["samples"] for m in measurements if m["metric"] == metric)


def latency(file: Path, record: int) -> float:
    """The median of the rounds' medians, in milliseconds."""
    plain = json.loads(file.read_text())["records"][record]
    taken = next(m for m in plain["measurements"] if m["metric"] == "latency")
    each, values = taken["per_round"], taken["samples"]
    assert len(values) == each * plain["rounds"]
    return statistics.median(statistics.median(values[i : i + each]) for i in range(0, len(values), each))


def test_there_is_a_file_of_every_schema() -> None:
    assert [json.loads(file.read_text())["schema"] for file in RUNS] == list(range(1, SCHEMA_VERSION + 1))


@every_run
def test_the_table(file: Path) -> None:
    text = out("show", file)
    (pruned,) = (line for line in text.splitlines() if line.startswith("flash+repshift"))
    assert "17 → 14 → 12 → 10" in pruned and "67.39" in pruned and "flash_attention_for_cpu ×12" in pruned
    assert f"{latency(file, 2):#.3g}".rstrip(".") in pruned
    assert "vit_t" in text and "94.13" in text and "operation mlp, distance l2, form paper" in text


@every_run
def test_json(file: Path) -> None:
    """All that the file says is said again, in today's schema, but ranks; the rest has its default."""
    before, after = json.loads(file.read_text()), json.loads(out("show", file, "--json", "-"))
    assert after["schema"] == SCHEMA_VERSION
    if before["schema"] < 4:
        assert all(m.pop("rank") for record in before["records"] for m in record["measurements"])
    assert _part_of(before, after)


MOVED = ("operation", "distance", "form")
"""Fields of a case that became its `options` with the fourth schema of runs and the third of profiles."""


def _part_of(old: Any, new: Any) -> bool:
    if isinstance(old, dict):
        if "options" in new and "pruning" in new:
            new = {**dict.fromkeys(MOVED), **new, **new["options"]}
        return all(key in new and _part_of(value, new[key]) for key, value in old.items() if key != "schema")
    if isinstance(old, list):
        return len(old) == len(new) and all(map(_part_of, old, new))
    return bool(old == new)


@every_run
def test_csv(file: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(out("show", file, "--csv", "-"))))
    assert [row["variant"] for row in rows] == VARIANTS
    for number, row in enumerate(rows):
        assert float(row["macs"]) == samples(file, number, "macs")[0]
        assert float(row["hbm_modelled_bytes"]) == samples(file, number, "hbm_modelled")[0]
        assert float(row["fidelity_kl_nat"]) == pytest.approx(samples(file, number, "fidelity_kl")[0])
        assert float(row["latency_ms"]) == pytest.approx(latency(file, number))


@every_run
def test_markdown(file: Path) -> None:
    text = out("show", file, "--markdown", "-")
    (pruned,) = (line for line in text.splitlines() if line.startswith("| flash+repshift"))
    assert text.startswith("**vit\\_t") and "| 67.39 |" in pruned


@every_run
def test_traffic(file: Path) -> None:
    """The first schema says nothing of operators and blocks."""
    text = out("show", file, "--traffic")
    assert ("aten." in text or "addmm" in text) == (file != RUNS[0])


@every_run
def test_compared_with_itself_nothing_changed(file: Path) -> None:
    text = out("compare", file, file, "--all")
    assert (
        "better" not in text.partition("metrics of cases")[2] and "worse" not in text.partition("metrics of cases")[2]
    )
    assert "67.39" in text


def test_compared_across_schemas() -> None:
    text = out("compare", RUNS[0], RUNS[1], "--across", "--metric", "macs", "--metric", "hbm_modelled")
    figures = [samples(file, 2, "hbm_modelled")[0] / 2**20 for file in RUNS[:2]]
    assert "67.39" in text and all(f"{figure:.2f}" in text for figure in figures)
    assert out("compare", RUNS[1], RUNS[2], "--across")
    text = out("compare", RUNS[2], RUNS[3], "--across", "--metric", "macs")
    assert "67.39" in text and "it has no such case" not in text


def test_history_over_all_of_them() -> None:
    text = out("history", *RUNS)
    assert "vanilla" in text and "flash+repshift" in text and "left out" not in text
    macs = out("history", *RUNS, "--metric", "macs")
    assert "67.39" in macs and "94.13" in macs


@every_run
def test_export(file: Path) -> None:
    found = json.loads(out("export", file, "--format", "bencher"))
    assert len(found) == len(VARIANTS)
    for number, case in enumerate(found.values()):
        assert case["latency-ms"]["value"] == pytest.approx(latency(file, number))
    smaller = json.loads(out("export", file, "--format", "github-action-benchmark"))
    (entry,) = (e for e in smaller if e["name"].startswith("latency: ") and "pruning=repshift" in e["name"])
    assert entry["value"] == pytest.approx(latency(file, 2)) and entry["unit"] == "ms"


def test_a_profile() -> None:
    breakdowns = json.loads(PROFILE.read_text())["breakdowns"]
    text = out("show", PROFILE)
    step = statistics.mean(breakdowns[1]["step_ms"])
    assert "flash+repshift · keep 0.8 · layers 1,4,7" in text and f"{step:.2f}" in text
    rows = list(csv.DictReader(io.StringIO(out("show", PROFILE, "--csv", "-"))))
    assert rows and _part_of(json.loads(PROFILE.read_text()), json.loads(out("show", PROFILE, "--json", "-")))
    for view in ("layer", "op"):
        assert "flash+repshift" in out("show", PROFILE, "--by", view)
    assert "|" in out("show", PROFILE, "--markdown", "-") and out("show", PROFILE, "--diff") != text


@pytest.mark.slow
@every_run
def test_an_older_run_is_resumed(file: Path, tmp_path: Path) -> None:
    """Its cases are those that its options give today: with all of them measured, nothing is left to do."""
    from repshift_cli.machine.describe import describe
    from repshift_cli.records.json_codec import to_plain

    plain = json.loads(file.read_text())
    here = to_plain(describe("cpu"))
    path = tmp_path / "run.json"
    path.write_text(json.dumps(plain | {"machine": here}))
    done = CliRunner().invoke(app, ["bench", "--resume", str(path), "--json", "-"])
    assert done.exit_code == 0, done.output
    assert [r["measurements"][0]["samples"] for r in json.loads(done.stdout)["records"]] == [
        samples(file, number, "latency") for number in range(3)
    ]
