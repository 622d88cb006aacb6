"""Models that misbehave without killing their process: a row each, every other case measured, nothing lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_workers import MODELS, NAME, command, rows, run, the_run

from repshift_cli import cli
from repshift_cli.records import Record, store

MORE = """
import tempfile, threading

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("not even a word")

class Odd(BaseException):
    pass

class Spoiler(Model):
    def __init__(self, honest):
        super().__init__(None)
        self.honest = honest
    def forward(self, x):
        return super().forward(x.clone().mul_(-2) if self.honest else x.mul_(-2))

def throws(error):
    def trouble():
        raise error
    return made(trouble)

def moves():
    def away():
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
    return made(away)

def closes():
    def close():
        sys.stdout.close()
        for descriptor in (1, 2):
            try:
                os.close(descriptor)
            except OSError:
                pass
        sys.stderr = None
        sys.excepthook = None
    return made(close)

def lingers():
    threading.Thread(target=lambda: [time.sleep(0.1) for _ in range(10**6)]).start()
    return made()

def surrogate(): return throws(RuntimeError("half a \\ud800 sign \\x1b[31m"))
def mute(): return throws(Mute())
def odd(): return throws(Odd("odd"))
def generator_exit(): return throws(GeneratorExit())
def keyboard(): return throws(KeyboardInterrupt())
def raises_at_once(): raise RuntimeError("no model today")
def exits_at_once(): sys.exit(0)
def dies_at_once(): os.kill(os.getpid(), 11)
def no_blocks(): return nn.Linear(16, 16), (torch.randn(1, 16),)

def spoils():
    torch.manual_seed(0)
    return Spoiler(False).eval(), (torch.randn(1, 16, 16),)

def honest():
    torch.manual_seed(0)
    return Spoiler(True).eval(), (torch.randn(1, 16, 16),)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / f"{NAME}.py").write_text(MODELS + MORE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


UNPLANNED = {
    "raises_at_once": ("failed", "RuntimeError: no model today"),
    "exits_at_once": ("failed", "SystemExit: 0"),
    "dies_at_once": ("failed", "signal 11 (segmentation fault) while it was planned"),
    "no_blocks": ("skipped", "has no repeated block"),
}
RAISING = {
    "surrogate": r"RuntimeError: half a \ud800 sign \x1b[31m",
    "mute": "Mute: Mute",
    "odd": "Odd: odd",
    "generator_exit": "GeneratorExit: GeneratorExit",
    "keyboard": "KeyboardInterrupt: KeyboardInterrupt",
}
RUNNING = ("moves", "closes", "lingers", "prints", "ok")


@pytest.mark.slow
def test_each_gets_a_row_and_the_others_are_measured(here: Path) -> None:
    done = run(command(",".join([*UNPLANNED, *RAISING, *RUNNING])))
    found = rows(the_run())
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
    for name, (status, reason) in UNPLANNED.items():
        assert found[name, "flash"][0] == status and reason in found.pop((name, "flash"))[1]
    for name, reason in RAISING.items():
        assert found.pop((name, "flash")) == ("ok", "")
        assert found.pop((name, "flash+repshift")) == ("failed", reason)
    for name in RUNNING:
        for variant in ("flash", "flash+repshift"):
            assert found.pop((name, variant)) == ("ok", ""), name
    assert not found and "by python" in done.stderr, "what was closed is open again for the next"
    listed = run(command("raises_at_once,dies_at_once,no_blocks,ok", "--dry-run"))
    assert listed.returncode == 0 and "2 cases to measure, 1 refused, 2 failed" in listed.stdout
    assert "failed: " in listed.stdout and "while it was planned" in listed.stdout


# --- inputs changed in place ------------------------------------------------------------------------------------------


def measured(model: str, *more: str) -> dict[str, Record]:
    out = Path(f"{model}.json")
    options = ["--keep", "0.375,0.75", "--variant", "flash,flash+repshift", "--rounds", "2", "--device", "cpu", *more]
    assert cli.run(["bench", "--model", f"{NAME}:{model}", "--out", str(out), "--in-process", *options], False) == 0
    return {f"{r.case.variant} {r.case.keep}": r for r in store.load(out).records}


@pytest.mark.slow
def test_inputs_changed_in_place_are_put_back_and_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    spoilt, right = measured("spoils"), measured("honest")
    assert spoilt.keys() == right.keys() and len(spoilt) == 3
    for name, record in right.items():
        assert any("changes its inputs in place (1)" in w for w in spoilt[name].warnings), name
        assert not any("in place" in w for w in record.warnings)
        for metric in ("fidelity_cosine", "macs"):
            assert spoilt[name].measurement(metric) == record.measurement(metric), (name, metric)
        assert spoilt[name].output == record.output is not None
