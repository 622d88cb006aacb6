"""A disk that takes no more, or a folder that goes, in the middle of a sweep: the table so far, and resume."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_hostile_models import here  # noqa: F401
from test_workers import NAME

from repshift_cli import cli
from repshift_cli.commands.shared import output
from repshift_cli.records import store

FOLDER = Path("runs")
BENCH = ["bench", "--model", f"{NAME}:ok", "--device", "cpu", "--keep", "0.375,0.75", "--rounds", "1", "--timing-only"]
BENCH += ["--variant", "flash,flash+repshift", "--in-process"]
OPERATORS = ["operators", "--operator", "flash,math", "--tokens", "16", "--device", "cpu", "--in-process"]


def failing(code: int) -> Callable[[int], None]:
    def fail(records: int) -> None:
        if records > 1:
            raise OSError(code, os.strerror(code))

    return fail


def go(records: int) -> None:
    """The folder goes, and a file comes in its place."""
    if records == 2 and FOLDER.is_dir():
        shutil.rmtree(FOLDER)
        FOLDER.write_text("in the way")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [
        (failing(errno.ENOSPC), "No space left on device"),
        (failing(errno.EROFS), "Read-only file system"),
        (go, "Not a directory"),
    ],
    ids=["full", "read-only", "deleted"],
)
@pytest.mark.parametrize("command", [BENCH, OPERATORS], ids=lambda c: c[0])
def test_what_was_measured_is_shown_and_resume_goes_on(
    command: list[str],
    what: Callable[[int], None],
    words: str,
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    real, count = os.pwrite, 0

    def pwrite(file: int, data: Any, place: int) -> int:
        nonlocal count
        count += b'"record"' in bytes(data[:10])
        what(count)
        return real(file, data, place)

    def write_text(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        patch.setattr(output, "write_text", write_text)
        assert cli.run([*command, "--out", "runs/run.json", "--csv", "figures.csv"], False) == 1
    out, said = capsys.readouterr()
    last = said.strip().splitlines()[-3:]
    assert "flash" in out and "latency" in out and "Traceback" not in said
    assert last[0].startswith("stopped; ") and " are in the run file" in last[0]
    assert last[1].startswith(f"go on with: repshift {command[0]} --resume runs/run.json")
    assert last[2].startswith("error: cannot write runs/run.json: ") and words in last[2]
    if FOLDER.is_dir():
        stored = store.load(FOLDER / "run.json")
        assert f"stopped; {len(stored.records)} of {len(stored.planned)} " in last[0]
        again = last[1].removeprefix("go on with: repshift ").split()
        assert cli.run([*again, *(["--in-process"] if command[0] == "bench" else [])], False) == 0
        assert len(store.load(FOLDER / "run.json").records) == len(stored.planned)
        assert store.load(FOLDER / "run.json").records[: len(stored.records)] == stored.records


def test_a_file_that_cannot_be_written_keeps_nothing_else_back(
    here: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = output.write_text

    def write_text(path: Path, text: str) -> None:
        if path.suffix == ".csv":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, text)

    monkeypatch.setattr(output, "write_text", write_text)
    run = str(Path(__file__).parent / "data" / "run-schema-3.json")
    assert cli.run(["show", run, "--csv", "figures.csv", "--markdown", "page.md"], False) == 1
    out, said = capsys.readouterr()
    assert "latency" in out and said == "error: cannot write figures.csv: No space left on device\n"
    assert "latency" in Path("page.md").read_text()
