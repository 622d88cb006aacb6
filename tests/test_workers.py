"""Sweeps over models that misbehave in every way: the others are measured, and each gets a row with the reason."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from repshift_cli.benchmark import obituary
from repshift_cli.records import Record, Run, store

ROOT = Path(__file__).parent.parent
MODELS = """
import ctypes, os, resource, subprocess, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 1, 16)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

class Block(nn.Module):
    def __init__(self, trouble):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(16), Attention()
        self.norm2, self.mlp = nn.LayerNorm(16), nn.Linear(16, 16)
        self.trouble = trouble
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        if self.trouble and x.shape[1] == 6:  # behind the cut
            self.trouble()
        return x + self.mlp(self.norm2(x))

class Model(nn.Module):
    def __init__(self, trouble):
        super().__init__()
        self.blocks = nn.ModuleList(Block(trouble) for _ in range(3))
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

def made(trouble=None):
    torch.manual_seed(0)
    return Model(trouble).eval(), (torch.randn(1, 16, 16),)

def hang():
    Path("hung").write_text(str(os.getpid()))
    subprocess.Popen(["sleep", "987"])
    while True:
        time.sleep(0.05)

def hang_in_c():
    ctypes.PyDLL(None).sleep(1000)  # it holds the interpreter's lock

def eat():
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    torch.empty(2**35, dtype=torch.uint8)

def wait():
    Path("reached").touch()
    time.sleep(0.2)

def ok(): return made()
def segfault(): return made(lambda: ctypes.string_at(0))
def exit_3(): return made(lambda: os._exit(3))
def exit_0(): return made(lambda: os._exit(0))
def sys_exit(): return made(lambda: sys.exit(0))
def hangs(): return made(hang)
def hangs_in_c(): return made(hang_in_c)
def eats(): return made(eat)
def waits(): return made(wait)

def dies_while_built():
    if Path("planned").exists():
        os.kill(os.getpid(), 11)
    Path("planned").touch()
    return made()

def raises_when_built_again():
    if Path("planned-too").exists():
        raise RuntimeError("no second time")
    Path("planned-too").touch()
    return made()

def prints():
    print("made, by python")
    return made(lambda: (print("by python"), os.write(1, b"by the system"), ctypes.CDLL(None).puts(b"by C")))

def changes():
    torch.set_default_dtype(torch.float64)
    os.environ["SMUGGLED"] = "1"
    os.chdir("/")
    sys.excepthook = print
    torch.set_default_dtype(torch.float32)
    def more():
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        sys.stdout = None
    return made(more)
"""
NAME = "models_of_test_workers"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / f"{NAME}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(models: str, *more: object, rounds: int = 2) -> list[str]:
    named = ",".join(f"{NAME}:{name}" for name in models.split(","))
    options = ["--model", named, "--device", "cpu", "--keep", "0.375", "--variant", "flash,flash+repshift"]
    options += ["--rounds", str(rounds), "--timing-only", "--out", "run.json", *map(str, more)]
    return [sys.executable, "-m", "repshift_cli", "bench", *options]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=280)


def the_run() -> Run:
    return store.load(Path("run.json"))


def rows(run: Run) -> dict[tuple[str, str], tuple[str, str]]:
    return {(r.case.model.partition(":")[2], r.case.variant): (r.status, r.reason or "") for r in run.records}


@pytest.mark.slow
def test_a_crash_costs_one_row_and_prints_and_changes_touch_nothing(here: Path) -> None:
    done = run(command("segfault,prints,changes,ok", "--json", "-"))
    found = rows(the_run())
    assert done.returncode == 1 and len(found) == 8
    assert found.pop(("segfault", "flash+repshift")) == (
        "failed",
        "the process died of signal 11 (segmentation fault)",
    )
    assert {status for status, _ in found.values()} == {"ok"}
    assert json.loads(done.stdout)["records"] and not any(
        w in done.stdout for w in ("by python", "by C", "by the system")
    )
    assert "by python" in done.stderr and "by C" in done.stderr and "by the system" in done.stderr
    crashed = next(r for r in the_run().records if r.status == "failed")
    assert crashed.deaths == 1 and "in string_at" in (crashed.stack or "") and crashed.tokens == (16, 6)
    changed = [w for r in the_run().records if r.case.model.endswith("changes") for w in r.warnings]
    for what in ("default dtype from torch.float32 to torch.float64", "threads from 1 to 3", "environment (SMUGGLED)"):
        assert any(what in w for w in changed), what
    assert any("current folder" in w for w in changed) and any("sys.excepthook" in w for w in changed)
    assert not [w for r in the_run().records if r.case.model.endswith(":ok") for w in r.warnings if "changed" in w]

    again = run([*command("ok")[:4], "--resume", "run.json", "--retry-failed", "--model", the_models()])
    assert again.returncode == 1
    crashed = next(r for r in the_run().records if r.status == "failed")
    assert crashed.deaths == 2
    third = run([*command("ok")[:4], "--resume", "run.json", "--retry-failed", "--model", the_models()])
    assert third.returncode == 1 and next(r for r in the_run().records if r.status == "failed") == crashed


def the_models() -> str:
    """The run file's models, named again so that they may be imported."""
    return ",".join(dict.fromkeys(r.case.model for r in the_run().records))


@pytest.mark.slow
def test_every_other_way_to_misbehave(here: Path) -> None:
    ways = "exit_3,exit_0,sys_exit,hangs,hangs_in_c,eats,dies_while_built,raises_when_built_again,ok"
    done = run(command(ways, "--case-timeout", 15))
    found = rows(the_run())
    assert done.returncode == 1 and "Traceback" not in done.stderr and the_run().options["case_timeout"] == 15
    reasons = {
        "exit_3": "the process ended with exit code 3",
        "exit_0": "the process ended with exit code 0; the model ended it",
        "sys_exit": "SystemExit: 0",
        "hangs": "it hung: no step was finished in 15 s (--case-timeout)",
        "hangs_in_c": "it hung: no step was finished in 15 s (--case-timeout)",
        "eats": "out of memory: ",
    }
    for name, reason in reasons.items():
        assert found.pop((name, "flash")) == ("ok", "")
        status, said = found.pop((name, "flash+repshift"))
        assert status == "failed" and said.startswith(reason), (name, said)
    for variant in ("flash", "flash+repshift"):
        status, said = found.pop(("dies_while_built", variant))
        assert status == "failed" and said.endswith("(segmentation fault) while the model was being built")
        status, said = found.pop(("raises_when_built_again", variant))
        assert status == "failed" and "no second time" in said
        assert found.pop(("ok", variant)) == ("ok", "")
    assert not found
    stacks = {r.case.model.partition(":")[2]: r.stack or "" for r in the_run().records if r.deaths}
    assert "in hang\n" in stacks["hangs"] and "in hang_in_c" in stacks["hangs_in_c"]
    assert not alive("sleep", "987"), "its children are gone too"


@pytest.mark.slow
def test_what_dies_while_it_is_planned_is_a_sentence(here: Path) -> None:
    Path("planned").touch()
    done = run(command("dies_while_built"))
    assert (done.returncode, done.stdout) == (2, "") and not Path("run.json").exists()
    assert done.stderr.strip().splitlines()[-1].startswith("error: this cannot be planned: the process died of signal")


# --- signals ----------------------------------------------------------------------------------------------------------


def alive(*words: str) -> list[int]:
    """The processes in the current folder with these words on their command line."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            here = (line.parent / "cwd").resolve() == Path.cwd().resolve()
            if here and all(word.encode() in line.read_bytes().split(b"\0") for word in words):
                found.append(int(line.parent.name))
        except OSError:
            continue
    return found


def workers_of(process: int) -> list[int]:
    """The children of a process, read from Linux."""
    return [int(n) for f in Path(f"/proc/{process}/task").glob("*/children") for n in f.read_text().split()]


def gone(process: int) -> bool:
    """Whether a process is no more, or is a zombie that nobody reaps."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def stopped_by(*signals: int, model: str = "waits", rounds: int = 500, mark: str = "reached") -> tuple[Any, list[int]]:
    """A sweep that is measuring when these signals arrive: how it ended, and its workers."""
    running = subprocess.Popen(
        command(model, rounds=rounds), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        until = time.monotonic() + 120
        while not Path(mark).exists() and running.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        workers = workers_of(running.pid)
        for number in signals:
            running.send_signal(number)
            time.sleep(0.1)
        out, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    until = time.monotonic() + 10
    while not all(map(gone, workers)) and time.monotonic() < until:
        time.sleep(0.02)
    return subprocess.CompletedProcess([], running.returncode, out, errors), [w for w in workers if not gone(w)]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGINT,), 130),
        ((signal.SIGINT, signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM,), 143),
        ((signal.SIGKILL,), -9),
    ],
)
def test_no_signal_leaves_an_orphan_and_resume_goes_on(here: Path, signals: tuple[int, ...], code: int) -> None:
    ended, orphans = stopped_by(*signals)
    assert ended.returncode == code and ended.stdout == "" and "Traceback" not in ended.stderr
    assert not orphans
    if code > 0:
        assert "interrupted; 0 of 2 cases are in the run file" in ended.stderr
        assert "go on with: repshift bench --resume run.json" in ended.stderr
    assert the_run().records == () and len(the_run().planned) == 2 and the_run().options["timing_only"] is True


@pytest.mark.slow
def test_a_hang_outside_of_python_does_not_outlive_the_command(here: Path) -> None:
    ended, orphans = stopped_by(signal.SIGKILL, model="hangs", mark="hung")
    assert ended.returncode == -9 and not orphans
    time.sleep(0.2)
    assert not alive("sleep", "987")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_killed_at_random_moments_nothing_measured_is_lost(here: Path, request: pytest.FixtureRequest) -> None:
    """Now the command, now its worker; `--kills 200` for the whole campaign."""
    dice, run_file = random.Random(0), Path("run.json")
    keeps = ",".join(str(n / 16) for n in range(4, 15))
    first = [*command("ok", "--timing-only"), "--keep", keeps]
    first = [a for i, a in enumerate(first) if not (a == "--keep" and first[i + 1] == "0.375") and a != "0.375"]
    resume = [*first[:4], "--resume", "run.json", "--model", f"{NAME}:ok"]
    before: dict[str, Record] = {}
    for kill in range(request.config.getoption("--kills")):
        if len(before) == 12:
            run_file.unlink()
            before = {}
        size = run_file.stat().st_size if run_file.exists() else 0
        running = subprocess.Popen(
            resume if size else first, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(), text=True
        )
        try:
            while running.poll() is None and (run_file.stat().st_size if run_file.exists() else 0) == size:
                time.sleep(0.002)
            time.sleep(dice.random() * 0.5)
            for victim in [running.pid] if kill % 2 else workers_of(running.pid):
                os.kill(victim, signal.SIGKILL)
            errors = running.communicate(timeout=100)[1]
        finally:
            running.kill()
        assert "Traceback" not in errors
        stored = the_run()
        keys = [r.case.key for r in stored.records]
        now = {r.case.key: r for r in stored.records}
        assert len(keys) == len(now) and len(stored.planned) == 12
        assert all(now[key] == record for key, record in before.items()), "what was measured stays as it was"
        lost = [r.reason for key, r in now.items() if key not in before and r.status == "failed"]
        assert len(lost) <= 2 and all("signal 9" in (r or "") or "crashed" in (r or "") for r in lost)
        before = now
    assert run(resume).returncode in (0, 1)
    assert {r.case.key for r in the_run().records} == {case.key for case in the_run().planned}


@pytest.mark.slow
def test_two_workers_measure_what_one_does(here: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    more = [*command("ok,prints")[1:], "--hbm", "model"]
    more = [a for a in more if a != "--timing-only"]
    made = {}
    for name, where in (("one", ["--in-process"]), ("worker", ["--timing"]), ("two", ["--parallel", "2"])):
        made[name] = run([sys.executable, *[f"{name}.json" if a == "run.json" else a for a in more], *where])
        assert made[name].returncode == 0, made[name].stderr
    one, worker, two = (store.load(Path(f"{name}.json")) for name in made)
    assert {r.place for r in two.records} == {"cpu:0", "cpu:1"} and {r.place for r in worker.records} == {None}
    assert {m.cores for m in two.machines.values()} == {len(os.sched_getaffinity(0)) // 2}, "each has its own"
    assert "timing: " in made["worker"].stderr and "; 1 worker started, ready after " in made["worker"].stderr
    assert "models built 2 times in 2 comparisons" in made["worker"].stderr
    assert deterministic(one) == deterministic(worker) == deterministic(two)
    assert any(metric == "macs" for record in deterministic(one).values() for metric, _ in record[3:])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_two_that_share_a_core_are_noticed(here: Path) -> None:
    """What `--parallel` keeps apart: without cores of their own both lose time, and say so instead of a speed-up."""
    core = min(os.sched_getaffinity(0))
    arguments = command("ok", rounds=300)
    started = [
        subprocess.Popen(
            [f"{n}.json" if word == "run.json" else word for word in arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        for n in range(2)
    ]
    assert all(p.communicate(timeout=250)[1] is not None and p.returncode == 0 for p in started)
    for n in range(2):
        records = store.load(Path(f"{n}.json")).records
        assert all(any("the machine was busy" in w for w in r.warnings) and r.unfit for r in records)


def deterministic(stored: Run) -> dict[str, tuple[Any, ...]]:
    """Of each case what no clock has a part in."""
    sources = {"counted", "modelled", "compared"}
    return {
        r.case.key: (
            r.status,
            r.tokens,
            r.kernel,
            *((m.metric, m.samples) for m in r.measurements if m.source in sources),
        )
        for r in stored.records
    }


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_death_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obituary, "memory_limit", lambda: 23 * 2**30)
    assert obituary.reason(-11, 0, False) == "the process died of signal 11 (segmentation fault)"
    assert obituary.reason(3, 0, False) == "the process ended with exit code 3"
    most = obituary.reason(-9, 21 * 2**30, False)
    assert most == "the process was killed, most likely for memory: 21.0 of 23.0 GiB in use; try a smaller batch"
    assert "most likely for memory" in obituary.reason(-9, 2**30, True), "the kernel counted a kill"
    assert obituary.reason(-9, 2**30, False) == "the process died of signal 9 (killed from outside)"
    assert obituary.reason(-63, 0, False).startswith("the process died of signal 63")
