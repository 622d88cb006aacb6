"""Cases over time: series per machine, steps where the level changes and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
from synthetic import CPU, ON_CPU, ran, small_run
from test_compare import command

from repshift_cli.analysis import history
from repshift_cli.analysis.history import Point, steps
from repshift_cli.records import Run, store
from repshift_cli.renderers.sheets import history as sheet_of

FLASH = dataclasses.replace(ON_CPU, attention="flash")
needs_ruptures = pytest.mark.skipif(history.why_no_steps() is not None, reason="ruptures is not installed")


def points(values: list[float]) -> list[Point]:
    return [Point(f"2026-11-{i + 1:02d}T00:00:00+00:00", f"{i:040x}", v) for i, v in enumerate(values)]


def noisy(levels: list[float], noise: float = 0.005, seed: int = 0) -> list[Point]:
    order = random.Random(seed)
    return points([level * (1 + order.gauss(0, noise)) for level in levels])


def runs(factors: list[float], torch: str = "2.13.0") -> list[Run]:
    machine = dataclasses.replace(CPU, packages={"torch": torch})
    return [
        Run(
            dataclasses.replace(machine, commit=f"{i:040x}"),
            {},
            (FLASH,),
            (ran(FLASH, 10 * factor, 20, 10),),
            created=f"2026-11-{i + 1:02d}T05:12:00+00:00",
        )
        for i, factor in enumerate(factors)
    ]


@needs_ruptures
@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_found_where_it_is(seed: int) -> None:
    found = steps(noisy([10.0] * 12 + [10.5] * 10, seed=seed))
    assert found is not None
    assert [(s.index, round(s.ratio, 2)) for s in found] == [(12, 1.05)]


@needs_ruptures
def test_two_steps() -> None:
    found = steps(noisy([10.0] * 8 + [12.0] * 8 + [10.0] * 8))
    assert found is not None and [s.index for s in found] == [8, 16]


@needs_ruptures
def test_noise_alone_has_steps_rarely() -> None:
    """Forty series without a step, of noise that would hide none of 2%."""
    found = [steps(noisy([10.0] * 20, 0.004, seed)) for seed in range(40)]
    assert sum(map(bool, found)) <= 2


@needs_ruptures
@pytest.mark.parametrize("values", [[10.0] * 5, [10.0] * 20, [10.0] * 10 + [10.05] * 10, [0.0] * 10])
def test_too_few_runs_no_change_or_a_small_one_is_no_step(values: list[float]) -> None:
    assert steps(points(values)) == ()


def test_without_ruptures_the_rest_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "is_installed", lambda name: False)
    (own,) = history.series(runs([1.0] * 8), ["latency"])
    assert own.steps is None and "ruptures>=1.1.10" in (history.why_no_steps() or "")
    (sheet,) = sheet_of.sheets([own], [])
    assert next(c for c in sheet.columns if c.title == "steps").cells[0].text == "–"


def test_each_machine_has_a_series_of_its_own_oldest_first() -> None:
    mixed = [*reversed(runs([1.0, 1.1])), *runs([2.0], torch="2.12.0")]
    found = history.series(mixed, ["latency"])
    assert sorted([round(p.value) for p in s.points] for s in found) == [[10, 11], [20]]
    assert {s.machine.rpartition("torch ")[2] for s in found} == {"2.13.0", "2.12.0"}


def test_the_sparkline_spans_the_range_and_marks_steps() -> None:
    (own,) = history.series(runs([1.0, 1.5, 2.0]), ["latency"])
    own = dataclasses.replace(own, steps=(history.Step(own.points[2], 2, 1.33),))
    text = sheet_of.sparkline(own)
    assert text[0] == "▁" and text[-1] == "█" and text[2] == "|" and len(text) == 4
    flat = dataclasses.replace(own, points=own.points[:1] * 3, steps=())
    assert sheet_of.sparkline(flat) == "▁▁▁"


def test_a_long_history_shows_its_end() -> None:
    (own,) = history.series(runs([1.0] * 9), ["latency"])
    long = dataclasses.replace(own, points=(*own.points * 8, dataclasses.replace(own.points[0], value=99.0)), steps=())
    assert len(sheet_of.sparkline(long)) == sheet_of.WIDEST and sheet_of.sparkline(long)[-1] == "█"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, run in enumerate(runs([1.0] * 10 + [1.05] * 10)):
        store.create(tmp_path / "runs" / f"{i}.json", run)
    store.create(tmp_path / "runs" / "gate-1" / "head.json", runs([1.05] * 21)[-1])
    store.create(tmp_path / "runs" / "gate-1" / "rounds" / "base-001.json", small_run())
    return tmp_path


@needs_ruptures
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_folder_with_a_gate_and_a_step(folder: Path, columns: int) -> None:
    code, out, error = command(folder, "history", "runs", columns=columns)
    assert (code, error) == (0, "")
    assert "▁" in out and "|" in out and "+5.0%" in out
    assert "step at 2026-11-11 (0000000000): flash +5.0%" in " ".join(out.split())
    assert "21" in out and "\x1b" not in out, "20 runs and the gate's head, none of its rounds"
    assert max(len(line.rstrip()) for line in out.splitlines()) <= columns


def test_markdown_cases_and_metrics(folder: Path) -> None:
    _, out, _ = command(folder, "history", "runs", "--markdown", "--case", "flash", "--metric", "MACs")
    assert out.startswith("**MACs G") and "| flash | 21 |" in out
    code, _, error = command(folder, "history", "runs", "--case", "flash+repshift")
    assert code == 2 and "no case of 21 runs has latency and flash+repshift" in error


def test_json_has_every_point(folder: Path) -> None:
    _, out, _ = command(folder, "history", "runs", "--case", "flash", "--json", "-")
    series = json.loads(out)
    assert [len(own["points"]) for own in series] == [21] and series[0]["case"]["attention"] == "flash"


def test_what_is_no_run_is_named_and_left_out(folder: Path) -> None:
    (folder / "runs" / "noise.json").write_text('{"runners": []}')
    code, out, _ = command(folder, "history", "runs")
    assert code == 0 and "left out: runs/noise.json is JSON but no repshift run file" in out
    code, _, error = command(folder, "history", "absent")
    assert code == 2 and "absent does not exist" in error
