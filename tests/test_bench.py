"""`repshift bench` from options to run file and table, with tiny models of one's own.

The model keeps 16 tokens; its head sees 8 of them at keep 0.5 and 4 at keep 0.25, and there the variable TROUBLE
decides what becomes of the case.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from repshift_cli import cli
from repshift_cli.commands.shared import progress
from repshift_cli.machine import device as devices
from repshift_cli.records import Progress, Record, Run, store
from repshift_cli.records.journal import Journal

MODELS = """
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ORIGINAL = F.scaled_dot_product_attention
WITHOUT_FLASH = []


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        return self.out(self.mix(q, k, v).transpose(1, 2).reshape(x.shape))

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Handmade(Attention):
    def mix(self, q, k, v):
        return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


class VanillaFails(Attention):
    def mix(self, q, k, v):
        if F.scaled_dot_product_attention.__module__ == "repshift_cli.attention.vanilla":
            WITHOUT_FLASH.append(q.shape[2])
            raise RuntimeError("no room for the matrix")
        return super().mix(q, k, v)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(16), attention(), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, attention=Attention, end=lambda x: x):
        super().__init__()
        self.blocks = nn.ModuleList(Block(attention) for _ in range(4))
        self.head, self.end = nn.Linear(16, 5), end

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.end(x).mean(1))


def made(**changes):
    torch.manual_seed(0)
    return Model(**changes), (torch.randn(2, 16, 16),)


def tiny():
    return made()


def at_four(x):
    what = os.environ.get("TROUBLE") if x.shape[1] == 4 else None
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "sleep":
        Path("reached").touch()
        time.sleep(100)
    if what == "raise":
        raise TypeError("four is too few\\nand a second line")
    return x * float("nan") if what == "nan" else x


def troubled():
    return made(end=at_four)


def failing():
    def end(x):
        raise KeyError("lost")

    return made(end=end)


def broken():
    model, inputs = made()
    model.blocks[0].norm1 = nn.LayerNorm(17)
    return model, inputs


def nan():
    return made(end=lambda x: x * float("nan"))


def handmade():
    return made(attention=Handmade)


def vanilla_fails():
    return made(attention=VanillaFails)
"""
NAME = "models_of_test_bench"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with the models in it; the first test's copy is imported, all are alike."""
    (tmp_path / f"{NAME}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TROUBLE", raising=False)
    return tmp_path


class Output(str):
    """What went to stdout; `code` is the exit code and `errors` what went to stderr."""

    code: int
    errors: str


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other make a forward of 1 ms one of 100 ms where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def repshift(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Output:
        capsys.readouterr()
        code = cli.run([str(a) for a in arguments], debug=False)
        captured = capsys.readouterr()
        output = Output(captured.out)
        output.code, output.errors = code, captured.err
        return output

    return call


def bench(model: str, *more: object) -> tuple[object, ...]:
    models = ",".join(f"{NAME}:{name}" for name in model.split(","))
    return ("bench", "--model", models, "--device", "cpu", "--rounds", "6", "--out", "run.json", *more)


def own(model: str) -> tuple[str, str]:
    """The word with which a run file's own model may be imported again."""
    return "--model", f"{NAME}:{model}"


def environment(**more: str) -> dict[str, str]:
    """For a process in another directory: the very package that is tested here."""
    return os.environ | {"PYTHONPATH": str(Path(cli.__file__).parent.parent), "OMP_NUM_THREADS": "1", **more}


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "repshift_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


def the_run(path: str = "run.json") -> Run:
    return store.load(Path(path))


def outcomes(run: Run) -> list[tuple[str, float, str]]:
    return [(r.case.variant, r.case.keep, r.status) for r in run.records]


def one_sentence(output: Output) -> str:
    """The only line that a user's mistake gives."""
    assert output.code == 2 and output == ""
    (line,) = output.errors.strip().splitlines()
    assert line.startswith("error: ") and "Traceback" not in line
    return line.removeprefix("error: ")


THREE = ["vanilla", "flash", "flash+repshift"]

# --- what comes out ---------------------------------------------------------------------------------------------------


def test_the_main_job_end_to_end(repshift: Any) -> None:
    table = repshift(*bench("tiny", "--keep", 0.5, "--wide"))
    assert table.code == 0
    assert all(variant in table for variant in THREE) and "16 → 8" in table and "vs flash" in table
    assert "run file: run.json" in table.errors and "\x1b" not in table + table.errors
    run = the_run()
    assert [r.case.variant for r in run.records] == THREE == [c.variant for c in run.planned]
    for record in run.records:
        assert (record.status, record.rounds, record.stopped_by) == ("ok", 6, "rounds")
        latency = record.measurement("latency")
        assert latency is not None and len(latency.samples) == 6 * latency.per_round and min(latency.samples) > 0
        assert {"macs", "memory_peak_allocated", "hbm_modelled", "throughput"} <= {
            m.metric for m in record.measurements
        }
    kernels = [record.kernel or "" for record in run.records]
    assert "softmax" in kernels[0] and "flash_attention_for_cpu" in kernels[1] == kernels[2]
    assert run.records[2].tokens == (16, 8) and run.records[2].case.layers == (1,)
    ratio = run.records[2].measurement("speedup_vs_flash")
    assert ratio is not None and len(ratio.samples) == 6


def test_the_options_that_applied_are_in_the_run(repshift: Any) -> None:
    repshift(*bench("tiny", "--variant", "flash", "--budget", 3))
    options = the_run().options
    assert (options["model"], options["rounds"], options["budget"]) == ([f"{NAME}:tiny"], 6, 3.0)
    assert options["precision"] == 0.01  # the default of a CPU, which was not given


@pytest.mark.slow
def test_stdout_holds_the_format_asked_for_and_nothing_else(repshift: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(repshift(*bench("tiny", "--csv", "-")))))
    assert [row["variant"] for row in rows] == THREE
    Path("run.json").unlink()
    text = repshift(*bench("tiny", "--markdown", "-", "--csv", "t.csv"))
    assert text.startswith("**") and "| flash" in text and Path("t.csv").read_text().count("\n") == 4


@pytest.mark.slow
def test_json_on_the_stdout_of_a_process_is_the_run_file(here: Path) -> None:
    done = process(*bench("tiny", "--json", "-"))
    assert done.returncode == 0 and done.stdout == Path("run.json").read_text()
    assert [r["case"]["attention"] for r in json.loads(done.stdout)["records"]] == ["vanilla", "flash", "flash"]
    assert done.stderr.endswith("\nrun file: run.json\n")


def test_the_default_place_of_the_run_file(repshift: Any, here: Path) -> None:
    arguments = [a for a in bench("tiny", "--variant", "flash") if a not in ("--out", "run.json")]
    assert repshift(*arguments).code == 0
    (path,) = (here / "repshift-runs").iterdir()
    assert outcomes(the_run(str(path))) == [("flash", 1.0, "ok")]


def test_the_file_is_written_after_every_case(repshift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written, add = [], Journal.add

    def watched(journal: Journal, record: Record) -> None:
        add(journal, record)
        written.append(outcomes(the_run()))

    monkeypatch.setattr(Journal, "add", watched)
    repshift(*bench("tiny", "--keep", "0.5,0.25", "--variant", "cudnn,flash,flash+repshift"))
    all_of_them = [
        ("cudnn", 1.0, "skipped"),
        ("flash", 1.0, "ok"),
        ("flash+repshift", 0.5, "ok"),
        ("flash+repshift", 0.25, "ok"),
    ]
    assert written == [all_of_them[:n] for n in (2, 3, 4)]
    assert json.loads(Path("run.json").read_text())["records"][3]["status"] == "ok", "at the end it is one document"


@pytest.mark.slow
def test_a_sweep_measures_each_case_once_and_the_references_with_every_schedule(repshift: Any) -> None:
    output = repshift(*bench("tiny", "--keep", "0.5:0.75:0.25", "--layers", "1:2"))
    assert output.code == 0
    run = the_run()
    assert len(run.records) == 2 + 4 and {r.case for r in run.records} == set(run.planned)
    pruned = [r for r in run.records if r.case.layers]
    assert [(r.case.keep, r.case.layers) for r in pruned] == [(0.5, (1,)), (0.5, (2,)), (0.75, (1,)), (0.75, (2,))]
    samples = [m.samples for r in pruned if (m := r.measurement("speedup_vs_vanilla"))]
    assert len(set(samples)) == 4 and all(len(s) == 6 for s in samples)


def test_two_models_are_two_tables(repshift: Any) -> None:
    table = repshift(*bench("tiny,troubled", "--variant", "flash"))
    assert f"{NAME}:tiny ·" in table and f"{NAME}:troubled ·" in table
    assert len(the_run().records) == 2


def test_a_profile_and_what_is_given_beside_it(repshift: Any) -> None:
    Path("own.toml").write_text(
        f'title = "t"\nmodel = "{NAME}:tiny"\nkeep = [0.5]\nvariant = "flash+random"\nrounds = 9\n'
    )
    assert repshift("bench", "--profile", "own.toml", "--keep", 0.25, "--out", "run.json", "--device", "cpu").code == 0
    (record,) = the_run().records
    assert (record.case.variant, record.case.keep, record.rounds) == ("flash+random", 0.25, 9)


# --- dry run ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_counts_and_refuses_aloud_and_writes_nothing(repshift: Any, here: Path) -> None:
    dry = ("bench", "--model", f"{NAME}:tiny", "--device", "cpu", "--dry-run", "--variant")
    output = repshift(*dry, "flash,flash+repshift,cudnn+random", "--keep", "0.5,0.25")
    assert output.code == 0 and output.splitlines()[-1] == "3 cases to measure, 2 refused"
    refused = [line for line in output.splitlines()[:-1] if line.rstrip().endswith(" refused")]
    assert len(refused) == 2 and all("cudnn+random" in line for line in refused)
    assert "· 2 refused: exists on CUDA only" in output.splitlines()
    assert "16 → 4" in output
    assert [p.name for p in here.iterdir() if p.name != "__pycache__"] == [f"{NAME}.py"]
    assert repshift(*dry, "flash").splitlines()[-1] == "1 case to measure, 0 refused"


def test_a_dry_run_as_json_and_a_model_without_its_option(repshift: Any) -> None:
    dry = ("bench", "--model", f"{NAME}:tiny", "--device", "cpu", "--dry-run", "--variant", "flash,cudnn")
    cases = json.loads(repshift(*dry, "--dtype", "float32", "--json", "-"))["cases"]
    assert [(c["attention"], c["dtype"], c["tokens"], c["refused"] is None) for c in cases] == [
        ("flash", "fp32", [16], True),
        ("cudnn", "fp32", [16], False),
    ]
    assert one_sentence(repshift("bench", "vit_t")).endswith("a model is named with --model vit_t")


def test_a_dry_run_when_piped_has_one_line_for_each_case(repshift: Any) -> None:
    more = ("--device", "cpu", "--dry-run", "--variant", "flash+repshift", "--layers", "1,2,3,4")
    output = repshift("bench", "--model", f"{NAME}:tiny", *more)
    assert "16 → 10 → 6 → 4 → 3" in output and "mlp l2 " in output and len(output.splitlines()) == 3


# --- what fails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("failing", "KeyError: 'lost'"),
        ("nan", "the output holds NaN or infinity"),
    ],
)
def test_a_model_that_cannot_be_measured_fails_its_rows_and_no_others(repshift: Any, model: str, reason: str) -> None:
    table = repshift(*bench(f"{model},tiny"))
    run = the_run()
    assert table.code == 1 and [r.status for r in run.records] == ["failed"] * 3 + ["ok"] * 3
    assert all((r.reason or "").startswith(reason) for r in run.records[:3])
    assert reason in " ".join(table.split()) and "Traceback" not in table + table.errors


def test_attention_written_by_hand_is_measured_without_a_back_end(repshift: Any) -> None:
    table = " ".join(repshift(*bench("handmade")).split())
    assert [(r.case.variant, r.status) for r in the_run().records] == [("none", "ok"), ("none+repshift", "ok")]
    assert "--variant none,none+repshift" in table


@pytest.mark.parametrize(
    ("trouble", "reason"), [("raise", "TypeError: four is too few"), ("nan", "the output holds NaN or infinity")]
)
def test_one_failing_case_leaves_the_others(
    repshift: Any, monkeypatch: pytest.MonkeyPatch, trouble: str, reason: str
) -> None:
    monkeypatch.setenv("TROUBLE", trouble)
    assert repshift(*bench("troubled", "--keep", "0.25,0.5", "--variant", "flash,flash+repshift")).code == 1
    run = the_run()
    assert outcomes(run) == [("flash", 1, "ok"), ("flash+repshift", 0.25, "failed"), ("flash+repshift", 0.5, "ok")]
    assert run.records[1].reason == reason and run.records[1].tokens == (16, 4)


@pytest.mark.slow
def test_a_reference_that_failed_is_not_tried_again(repshift: Any) -> None:
    assert repshift(*bench("vanilla_fails", "--keep", "0.25,0.5,0.75")).code == 1
    run = the_run()
    assert [r.status for r in run.records] == ["failed", "ok", "ok", "ok", "ok"]
    assert run.records[0].reason == "RuntimeError: no room for the matrix"
    reasons = {m.reason for r in run.records[1:] if (m := r.measurement("speedup_vs_vanilla"))}
    assert reasons == {"vanilla failed, so nothing can be compared with it"}
    forwards = len(sys.modules[NAME].WITHOUT_FLASH)
    assert forwards == 2, "the memory pass and the warm-up of the first comparison; none in the two others"


def test_nothing_to_measure_is_exit_code_5(repshift: Any) -> None:
    table = repshift(*bench("tiny", "--variant", "cudnn"))
    assert table.code == 5 and "exists on CUDA only" in table
    assert outcomes(the_run()) == [("cudnn", 1.0, "skipped")]


# --- interrupted and resumed ------------------------------------------------------------------------------------------


def resume_command(errors: str) -> list[str]:
    (line,) = [line for line in errors.splitlines() if line.startswith("go on with: repshift ")]
    return shlex.split(line.removeprefix("go on with: repshift "))


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_done_and_resume_finishes(repshift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUBLE", "interrupt")
    stopped = repshift(*bench("troubled", "--keep", "0.5,0.25"))
    before = the_run()
    assert stopped.code == 130 and stopped == "" and "interrupted; 3 of 4 cases are in the run file" in stopped.errors
    assert outcomes(before) == [("vanilla", 1, "ok"), ("flash", 1, "ok"), ("flash+repshift", 0.5, "ok")]
    monkeypatch.delenv("TROUBLE")
    table = repshift(*resume_command(stopped.errors))
    after = the_run()
    assert table.code == 0 and after.records[:3] == before.records and after.planned == before.planned
    assert outcomes(after)[3] == ("flash+repshift", 0.25, "ok") and after.records[3].rounds == 6
    ratio = after.records[3].measurement("speedup_vs_vanilla")
    assert ratio is not None and len(ratio.samples) == 6
    assert repshift(*resume_command(stopped.errors)).code == 0 and the_run() == after


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGINT")
def test_a_real_interrupt_of_a_process(here: Path) -> None:
    command = [sys.executable, "-m", "repshift_cli", *map(str, bench("troubled", "--keep", "0.5,0.25"))]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(TROUBLE="sleep")
    )
    try:
        while not Path("reached").exists() and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and out == "" and "Traceback" not in errors
    assert len(the_run().records) == 3
    finished = process(*resume_command(errors))
    assert finished.returncode == 0 and [s for _, _, s in outcomes(the_run())] == ["ok"] * 4


@pytest.mark.slow
def test_retry_failed_repeats_what_failed_and_nothing_else(repshift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUBLE", "raise")
    assert repshift(*bench("troubled", "--keep", "0.25,0.5")).code == 1
    before = the_run()
    assert [r.status for r in before.records] == ["ok", "ok", "failed", "ok"]
    assert repshift("bench", "--resume", "run.json", *own("troubled")).code == 1 and the_run() == before

    monkeypatch.setenv("TROUBLE", "interrupt")
    stopped = repshift("bench", "--resume", "run.json", *own("troubled"), "--retry-failed")
    assert stopped.code == 130 and the_run() == before, "the failure and its reason are still there"
    assert "3 of 4 cases" in stopped.errors and "--retry-failed" in resume_command(stopped.errors)

    monkeypatch.delenv("TROUBLE")
    assert repshift(*resume_command(stopped.errors)).code == 0
    after = the_run()
    assert [r.status for r in after.records] == ["ok"] * 4
    assert [r for r in after.records if r.case.keep != 0.25] == [r for r in before.records if r.case.keep != 0.25]


def changed(place: tuple[str, ...], value: object) -> None:
    plain = json.loads(Path("run.json").read_text())
    inner = plain
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    Path("run.json").write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("machine", "cpu"), "Cray-1", "run.json was begun on another machine (cpu: Cray-1)"),
        (("machine", "device_name"), "Tesla", "run.json was begun on another machine (device_name: Tesla)"),
        (("machine", "packages", "torch"), "1.0", "run.json was begun with torch 1.0; use that, or a new run"),
        (("options", "keep"), [0.75], "run.json has other cases than its options give now: the model or repshift"),
        (("options", "keep"), [7], "--keep: 7 is outside (0, 1]"),
    ],
)
def test_what_resume_refuses(repshift: Any, place: tuple[str, ...], value: object, sentence: str) -> None:
    repshift(*bench("tiny", "--variant", "flash+random"))
    changed(place, value)
    before = Path("run.json").read_text()
    assert one_sentence(repshift("bench", "--resume", "run.json", *own("tiny"))).startswith(sentence)
    assert Path("run.json").read_text() == before


def test_resume_takes_its_options_from_the_file(repshift: Any) -> None:
    repshift(*bench("tiny", "--variant", "flash"))
    for more, name in ((("--keep", "0.5"), "--keep"), (("--profile", "quick"), "--profile"), (("--out", "x"), "--out")):
        said = one_sentence(repshift("bench", "--resume", "run.json", *own("tiny"), *more))
        assert said == f"--resume takes the options of the run file; leave out {name}"
    assert repshift("bench", "--resume", "run.json", *own("tiny"), "--csv", "-").startswith("variant,")


def test_a_files_own_model_is_not_imported_unasked(repshift: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's file could name os:abort; here the module would leave a mark."""
    repshift(*bench("tiny", "--variant", "flash"))
    Path("marked.py").write_text("open('ran', 'w').close()\ndef model(): raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(".")
    text = Path("run.json").read_text()
    Path("run.json").write_text(text.replace(f"{NAME}:tiny", "marked:model"))
    said = one_sentence(repshift("bench", "--resume", "run.json"))
    assert said.startswith("run.json names marked:model, and going on imports that module and runs it; if you want")
    assert one_sentence(repshift("bench", "--resume", "run.json", "--model", "vit_t")).endswith("has no model vit_t")
    assert repshift("show", "run.json").code == 0 and not Path("ran").exists()
    Path("p.toml").write_text('title = "theirs"\nmodel = "marked:model"\n')
    assert (
        "profile p.toml imports and runs marked:model" in repshift("bench", "--profile", "p.toml", "--dry-run").errors
    )


# --- bad input --------------------------------------------------------------------------------------------------------

LIGHT = {
    "--model vit_bb": "unknown model 'vit_bb': did you mean vit_b",
    "--model resnet5000": "unknown model 'resnet5000': ",
    "--variant flash+dash --operation block": "--operation applies to methods that take it",
    "--variant flsh": "unknown attention back end 'flsh': did you mean flash",
    "--variant flash+repshfit": "unknown pruning method 'repshfit': did you mean repshift",
    "--keep 0": "--keep: 0 is outside (0, 1]",
    "--keep 1.5": "--keep: 1.5 is outside (0, 1]",
    "--keep abc": "--keep: 'abc' is not a number",
    "--data nophoto.jpg": "--data: no such file or folder: nophoto.jpg",
    "--batch 0": "--batch: 0 is too small; it must be at least 1",
    "--layers 0": "--layers: 0 has a layer below 1; layers count blocks from 1",
    "--rounds 0": "--rounds: 0 is too small",
    "--budget 0": "--budget: 0 is not above 0",
    "--dtype fp8": "--dtype: unknown value 'fp8'",
    "--profile nosuch": "unknown profile 'nosuch': `repshift profiles` lists all of them",
    "--profile malformed.toml": "malformed.toml:3: layers: malformed TOML: ",
    "--profile mistaken.toml": "mistaken.toml:2: keep: 2 is outside (0, 1]",
    "--resume damaged.json": "damaged.json is not JSON, or was cut short",
    "--resume foreign.json": "foreign.json is JSON but no repshift run file",
    "--resume nosuch.json": "nosuch.json does not exist",
    "--out /proc/none/run.json": "cannot write /proc/none/run.json: ",
    "--out .": "cannot write .: it is a folder; name a file in it",
    "--csv - --json -": "--csv and --json both write to stdout (-)",
    "--out t.csv --csv t.csv": "--out and --csv both write to t.csv; give one of them another file",
    "--out damaged.json": "damaged.json exists already; go on with it by --resume damaged.json",
    "--variant flash --keep 0.5": "--keep applies to pruning, and no variant prunes",
    "--keep 0.001:1:0.001 --batch 1:1000": "this is a sweep of up to 1,002,000 cases; give",
    "--on locl:0": "unknown launcher 'locl': did you mean local?",
    "--on local:0,x": "--on local:0,x names no GPUs; write their numbers, like local:0,1",
    "--in-process --on process": "--on needs another process than the command's; leave out --in-process",
    "--max-cases 2": "this is a sweep of up to 3 cases; give fewer values, or --max-cases 3",
    "--retry-failed": "--retry-failed goes with --resume RUN",
    "--weights x.safetensors --model vit_t,vit_s": "--weights fits one model",
}
"""What is found out before anything heavy is imported."""

SEVERAL = """
import contextlib, io, json, shlex, sys
from repshift_cli import cli
said = {}
for line in json.load(sys.stdin):
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.run(["bench", *shlex.split(line)], debug=False)
    said[line] = [code, out.getvalue(), errors.getvalue(), "torch" in sys.modules]
print(json.dumps(said))
"""


def test_bad_input_gets_one_sentence_before_torch_is_imported(here: Path) -> None:
    (here / "malformed.toml").write_text('title = "t"\nkeep = 0.5\nlayers = [1, 4\n')
    (here / "mistaken.toml").write_text('title = "t"\nkeep = 2\n')
    (here / "damaged.json").write_text('{"schema": 1, "mach')
    (here / "foreign.json").write_text('{"name": "package", "version": 3}')
    before = {p.name for p in here.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        input=json.dumps(list(LIGHT)),
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    said = json.loads(done.stdout)
    for line, sentence in LIGHT.items():
        code, out, errors, torch_was_imported = said[line]
        assert (code, out) == (2, ""), line
        assert errors.startswith(f"error: {sentence}") and errors.count("\n") == 1, errors
        assert not torch_was_imported, line
    assert {p.name for p in here.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--layers 5", f"--layers 5 is beyond the depth of {NAME}:tiny, which has 4 blocks"),
        ("--image-size 32", f"--image-size does not apply to {NAME}:tiny"),
        (
            "--data photo.png",
            f"--data gives {NAME}:tiny pictures, and its inputs hold no pixels",
        ),
        (f"--model {NAME}:nosuch", f"cannot import {NAME}:nosuch: "),
        ("--model nosuch.module:f", "cannot import nosuch.module:f: No module named 'nosuch'"),
        (f"--model {NAME}:broken", f"{NAME}:broken cannot be built or run: RuntimeError: "),
        ("--model vit_t --frames 4", "vit_t takes images: --frames does not apply to it"),
        ("--model vit_t --tokens 16", "vit_t takes no sequence of tokens: --tokens does not apply to it"),
        ("--model vit_t --layers 13", "--layers 13 is beyond the depth of vit_t, which has 12 blocks"),
        ("--model vit_t --weights w.pt", "w.pt is a pickle, and loading one can run any code"),
    ],
)
def test_bad_input_that_the_model_or_the_device_tells(repshift: Any, here: Path, arguments: str, sentence: str) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save("photo.png")
    Path("w.pt").touch()
    words = shlex.split(arguments)
    model = () if "--model" in words else ("--model", f"{NAME}:tiny")
    said = one_sentence(repshift("bench", "--device", "cpu", "--out", "run.json", *model, *words))
    assert said.startswith(sentence) and not Path("run.json").exists()


def test_cuda_where_there_is_none(repshift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "why_no_cuda", lambda: "the GPU was sold")
    said = one_sentence(repshift("bench", "--model", f"{NAME}:tiny", "--device", "cuda"))
    assert said == "CUDA was asked for, but the GPU was sold; --device cpu runs without"


# --- the bar ----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """In the place of stderr, with the clock that the bar reads."""

    seconds = 0.0

    def isatty(self) -> bool:
        return True

    @property
    def last(self) -> str:
        """The newest frame."""
        return self.getvalue().rpartition("\r")[2]


def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in place; no fixture, because pytest puts its own stderr back before the test begins."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: screen.seconds))
    return screen


def test_the_bar_shows_the_estimate_and_the_time_left_of_the_whole_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    with progress.Bar(3) as bar:
        bar.phase("building pkg.mod:smile:")
        assert "1/3 building pkg.mod:smile:" in terminal.last and "left" not in terminal.last
        terminal.seconds = 10
        bar.update(Progress("timing", 0.5, 5.0, "flash 1.20x vs vanilla"))
        assert "1/3 flash 1.20x vs vanilla" in terminal.last
        assert "about 35 s left" in terminal.last, "5 s here and twice 15 s"
        terminal.seconds = 20
        bar.next()
        bar.phase("building")
        assert "2/3" in terminal.last and "33%" in terminal.last and "about 40 s left" in terminal.last
        terminal.seconds = 26
        bar.update(Progress("flash: passes", 0.1))
        assert "about 34 s left" in terminal.last
        terminal.seconds = 50
        bar.update(Progress("timing", 0.9, 100.0, "x"))
        assert "about 2:00 min left" in terminal.last


def test_the_bar_is_drawn_between_the_timed_regions_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    threads = threading.active_count()
    with progress.Bar(1) as bar:
        assert threading.active_count() == threads, "a thread that draws would be timed"
        terminal.seconds = 1
        bar.update(Progress("timing", 0.5, 9.0, "first"))
        terminal.seconds = 1.1
        bar.update(Progress("timing", 0.6, 8.0, "second"))
        assert "first" in terminal.last and "about 9 s left" in terminal.last
        terminal.seconds = 1.3
        bar.update(Progress("timing", 0.6, 7.0, "third"))
        assert "third" in terminal.last and "1/1" not in terminal.last


@pytest.mark.slow
def test_plain_lines_where_nobody_watches_and_none_when_quiet(repshift: Any, here: Path) -> None:
    done = repshift(*bench("tiny", "--variant", "flash"))
    assert re.fullmatch(r"flash [\d.]+ ms · \d+ s\nrun file: run.json\n", done.errors)
    (here / "run.json").unlink()
    quiet = repshift(*bench("tiny", "--variant", "flash", "--quiet"))
    assert quiet.errors == "" and "·" not in quiet.partition("\n\n")[2], "no note below the table"
    (here / "run.json").unlink()
    assert "flash: warm-up\n" in repshift(*bench("tiny", "--variant", "flash", "--verbose")).errors


def test_a_long_comparison_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    with progress.Bar(2) as bar:
        for clock.seconds in (5.0, 21.0, 30.0, 42.0):
            bar.update(Progress("timing", 0.5, 50.0, f"flash {clock.seconds:g} ms"))
        bar.next()
    assert capsys.readouterr().err.splitlines() == [
        "1/2 flash 21 ms · about 2:01 min left",
        "1/2 flash 42 ms · about 2:22 min left",
        "1/2 flash 42 ms · 42 s",
    ]
