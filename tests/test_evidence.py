"""The kit that makes a GPU's figures, run on a CPU with the smallest of everything, and its real commands planned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import results
import typer
from sham import ROOT
from typer.testing import CliRunner

from repshift_cli.cli import app
from repshift_cli.records import store

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import evidence as kit


def evidence(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, kit.__file__, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2", "3", "4", "5", "7", "8"])
def test_every_stage_runs_on_a_cpu(stage: str, tmp_path: Path) -> None:
    done = evidence("--stage", stage, "--tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads((tmp_path / f"stage-{stage}.json").read_text())
    assert entries and all(e["code"] == 0 and (tmp_path / e["makes"]).exists() for e in entries)
    for entry in entries:
        if " bench " in entry["command"] or " operators " in entry["command"]:
            assert any(r.status == "ok" for r in store.load(tmp_path / entry["makes"]).records)
    if stage == "2":
        again = evidence("--stage", stage, "--tiny", "--out", str(tmp_path))
        assert again.returncode == 0 and "==" not in again.stdout, "what is there is not made again"


@pytest.mark.parametrize("stage", kit.STAGES)
def test_every_command_is_one_that_the_tool_takes(stage: int) -> None:
    """The gates of stage 6 take minutes of processes: their options are held here, the gate itself by its own tests."""
    commands: Any = typer.main.get_command(app)
    for job in kit.STAGES[stage](False):
        if job.command[:3] == kit.TOOL:
            name, *rest = job.command[3:]
            commands.commands[name].make_context(name, rest)
        assert job.seconds <= kit.LIMIT


@pytest.mark.slow
def test_the_comparisons_can_be_planned() -> None:
    """Once for each model: its schedule fits, and every variant is known."""
    jobs = [job for stage in (2, 3, 4) for job in kit.STAGES[stage](False)]
    for job in {job.command[5]: job for job in jobs}.values():
        done = CliRunner().invoke(app, [*job.command[3:], "--dry-run"])
        assert done.exit_code == 0, done.output
        refused = [line.partition("refused: ")[2] for line in done.output.splitlines() if "refused: " in line]
        assert "flash+oracle" in done.output and all("CUDA only" in reason for reason in refused), done.output


def test_a_job_that_hangs_costs_no_other_and_comes_last_in_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is copied behind each job; one that failed without an answer is tried again."""
    monkeypatch.setattr(kit, "END", 0)

    def job(name: str, code: str) -> kit.Job:
        return kit.Job(
            name, (sys.executable, "-c", f"print({name!r}, file=open({str(tmp_path / 'ran')!r}, 'a')); {code}"), 1
        )

    jobs = [job("hangs", "import time; time.sleep(60)"), job("fails", "raise SystemExit(2)"), job("works", "")]
    for _ in range(2):
        assert kit._run(jobs, tmp_path, tmp_path / "stage.json", tmp_path.with_suffix(".copy")) == 1
    assert (tmp_path / "ran").read_text().split() == ["hangs", "fails", "works", "fails", "hangs"]
    kept = json.loads((tmp_path.with_suffix(".copy") / "stage.json").read_text())
    assert {e["makes"]: e["code"] for e in kept} == {"hangs": kit.TOO_LONG, "fails": 2, "works": 0}


def test_a_dry_run_lists_the_jobs() -> None:
    done = evidence("--stage", "6", "--dry-run")
    assert done.returncode == 0 and done.stdout.count("gate --base HEAD") == 10, done.stderr
    assert "what does not fit into 540 s waits for the next call" in done.stdout


def test_a_run_of_a_gpu_gets_a_table_with_its_device_and_without_one_the_gap_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert results.gpu().startswith("No run of a GPU lies here yet")
    (tmp_path / "h100").mkdir()
    kept = ROOT / "profiles" / "baselines" / "cpu" / "deit-s-methods.json"
    (tmp_path / "h100" / "deit.json").write_text(kept.read_text().replace('"device_name": "', '"device_name": "H100, '))
    (tmp_path / "h100" / "stage-2.json").write_text("[]")
    table = results.gpu()
    assert table.startswith("### deit, on H100, ") and "flash+repshift" in table and "h100/deit.json" in table
