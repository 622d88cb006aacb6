"""Streams closed, full or left, Ctrl-C again and again, threads that never end: codes that say what was measured."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_hostile_models import here  # noqa: F401
from test_workers import NAME, environment

from repshift_cli.records import store

SHOW = f"'{sys.executable}' -m repshift_cli show '{Path(__file__).parent / 'data' / 'run-schema-3.json'}'"
BENCH = (
    f"'{sys.executable}' -m repshift_cli bench --model {NAME}:MODEL --device cpu --keep 0.375 --rounds 1 --timing-only "
    "--variant flash,flash+repshift --out run.json"
)


def shell(line: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A line of bash, its code that of the first command of a pipe."""
    line = f"{line}; exit ${{PIPESTATUS[0]}}"
    command = ["bash", "-c", line]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=timeout)


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("--json - | head -1", 0, ""),
        ("--json - | true", 0, ""),
        (">/dev/full", 1, "error: cannot write to stdout: No space left on device; the output is not whole\n"),
        ("--json - 2>&- >/dev/full", 1, ""),
    ],
)
def test_a_stream_that_takes_nothing_is_no_traceback(redirected: str, code: int, said: str) -> None:
    done = shell(f"{SHOW} {redirected}")
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.slow
def test_what_was_measured_is_kept_and_the_code_is_0(here: Path) -> None:  # noqa: F811
    done = shell(f"{BENCH.replace('MODEL', 'prints')} <&- >&-")
    assert done.returncode == 0, done.stderr
    assert {r.status for r in store.load(Path("run.json")).records} == {"ok"}
    Path("run.json").unlink()
    done = shell(f"{BENCH.replace('MODEL', 'ok')} 2>&1 --json - | head -1")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stdout
    assert {r.status for r in store.load(Path("run.json")).records} == {"ok"}


@pytest.mark.slow
def test_threads_that_never_end_do_not_keep_the_command(here: Path) -> None:  # noqa: F811
    begun = time.monotonic()
    done = shell(f"{BENCH.replace('MODEL', 'lingers')} --in-process")
    assert done.returncode == 0 and "run file: run.json" in done.stderr
    assert time.monotonic() - begun < 100, "the thread would sleep for a day"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["profile", "bench --in-process"])
def test_three_interrupts_in_a_row_are_no_traceback(command: str, here: Path) -> None:  # noqa: F811
    line = [sys.executable, "-m", "repshift_cli", *command.split(), "--model", f"{NAME}:waits", "--device", "cpu"]
    line += ["--keep", "0.375", "--variant", "flash+repshift"]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        while not Path("reached").exists() and running.poll() is None:
            time.sleep(0.02)
        for _ in range(3):
            running.send_signal(signal.SIGINT)
            time.sleep(0.05)
        errors = running.communicate(timeout=60)[1]
    finally:
        running.kill()
    assert running.returncode == 130 and "Traceback" not in errors and "interrupted" in errors, errors
