"""Every figure that the pages claim of a GPU, made in stages, each by a call of this script.

A stage is a list of jobs, each a command of the tool in a process of its own that writes the tool's own JSON: a run
file after every case. What is in DIR already is not made again, an interrupted run goes on; a job that would not end
within the stage's nine minutes is left for the next call of the same stage, and one that takes longer than that is
ended, and tried again when all others are there. Estimates are for one H100 and not yet seen on one; most of a
comparison's time goes into energy, over four seconds a case. Into half an hour goes one call each of stages 1, 3 (whose
first job is the headline) and 2.

    python tests/benchmarks/evidence.py --stage 2 --dry-run
    python tests/benchmarks/evidence.py --stage 2 --out profiles/baselines/h100
    python tests/generated.py --write

On a machine that keeps ignored files alone from call to call, and gives back what lies in $OUT: leave --out as it is
and say `--copy "$OUT"`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LIMIT = 540
"""Seconds of a stage in which a job may begin: GPU machines are lent for ten minutes a command."""
END, GRACE = 560, 20
"""Seconds after which the running job is asked to stop, and then is ended."""
TOO_LONG = 124
"""The exit code of a job that was ended, as `timeout` has it."""
ANSWERED = (0, 1, 3)
"""Exit codes with an answer: all well, some case or test failed, or the noise leaves the gate's verdict open."""
VARIANTS = "vanilla,flash,efficient,cudnn,flash+repshift,flash+random,flash+oracle"
FEW = "flash,flash+repshift"
PAPER = {"deit_s": "1,4,7", "deit_b": "1,4,7", "vit_l": "1,8,15", "umt_b": "1,2,3"}
"""After which blocks 20% are dropped."""
GATE = """title = "For the evidence of the gate: one small model"
model = "deit_t"
{size}batch = {batch}
keep = [0.6]
layers = [[3]]
variant = ["flash", "flash+repshift"]
budget = 1

[thresholds]
rounds = {rounds}
most-rounds = {rounds}
latency = 0.02
"""


@dataclass(frozen=True)
class Job:
    """A command that makes the file or folder `makes` in DIR, in about so many seconds; `{out}` stands for DIR."""

    makes: str
    command: tuple[str, ...]
    seconds: int

    @property
    def is_bench(self) -> bool:
        return "bench" in self.command[:4]

    @property
    def is_sweep(self) -> bool:
        return self.is_bench or "operators" in self.command[:4]

    def line(self, out: Path) -> list[str]:
        """What is run: an interrupted run file goes on where it stopped."""
        if self.is_sweep and (out / self.makes).exists():
            return [*TOOL, self.command[3], "--resume", str(out / self.makes)]
        return [part.replace("{out}", str(out)) for part in self.command]


TOOL = (sys.executable, "-m", "repshift_cli")
TINY = ("--image-size", "32", "--rounds", "1", "--hbm", "off", "--device", "cpu")


def bench(model: str, batch: int, seconds: int, tiny: bool, *more: str, name: str = "") -> Job:
    """One comparison of all variants, eager and as a graph: one process, so that nothing has profiled before."""
    makes = f"{name or f'{model}-batch-{batch}'}.json"
    own = ("--model", model, "--batch", str(batch), "--keep", "0.8", "--layers", PAPER[model], "--variant", VARIANTS)
    if tiny:
        own = ("--model", "vit_t", "--batch", "1", "--keep", "0.8", "--layers", "1", "--variant", FEW, *TINY)
    measured = () if tiny else ("--cuda-graph", "--budget", "1.5", "--hbm", "model", *more)
    return Job(makes, (*TOOL, "bench", *own, *measured, "--out", f"{{out}}/{makes}"), seconds)


def gpu_tests(tiny: bool) -> Iterator[Job]:
    """What passed, what failed, what could not be checked; and the counters against known bytes."""
    counters = () if tiny else ("--counters",)
    yield Job("doctor.json", (*TOOL, "doctor", *counters, "--json", "{out}/doctor.json"), 120)
    files = {"test_kernels_triton": 60, "test_machine": 15, "test_launches": 15, "test_scan": 15, "test_cnn": 30}
    files |= {"test_pruning": 20, "test_gpu": 150, "test_profile_gpu": 40, "test_gpu_counters": 300}
    for file, seconds in {"test_launches": 15}.items() if tiny else files.items():
        tests = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"tests/{file}.py")
        makes = f"{file}.xml"
        yield Job(makes, (sys.executable, *tests, f"--junitxml={{out}}/{makes}"), seconds)


def deit(tiny: bool) -> Iterator[Job]:
    """The paper's classifiers."""
    for model in ("deit_s", "deit_b"):
        for batch in (1, 32, 256):
            yield bench(model, batch, 130, tiny)


def larger(tiny: bool) -> Iterator[Job]:
    """ViT-L, and UMT-B at 12 frames: the headline is at batch 20."""
    frames = ("--frames", "12")
    yield bench("umt_b", 20, 170, tiny, *frames, name="umt_b-headline")
    for batch in (1, 32, 256):
        yield bench("vit_l", batch, 150, tiny)


def videos(tiny: bool) -> Iterator[Job]:
    """UMT-B at the other batches; vanilla may run out of memory at the largest, and its row says so."""
    for batch in (1, 32, 256):
        yield bench("umt_b", batch, 200, tiny, "--frames", "12")


def why(tiny: bool) -> Iterator[Job]:
    """What each kernel of pruning brings, where pruning pays, and where the time goes."""
    models, batches, rounds = ("vit_t", "1", "1") if tiny else ("deit_s,deit_b", "1,32", "30")
    what = ("--model", models, "--batch", batches, "--rounds", rounds)
    script = str(ROOT / "tests" / "benchmarks" / "ablation.py")
    yield Job("ablation.json", (sys.executable, script, *what, "--out", "{out}/ablation.json"), 150)
    sizes = ("--model", "vit_t", "--image-size", "32,48", "--batch", "1", "--keep", "0.5", *TINY[2:])
    of_map = sizes if tiny else ("--profile", "break-even", "--budget", "1", "--batch", "1,8", "--timing-only")
    variants = ("--variant", FEW)
    yield Job("break-even.json", (*TOOL, "bench", *of_map, *variants, "--out", "{out}/break-even.json"), 240)
    for model in ("vit_t",) if tiny else ("deit_b", "umt_b"):
        own = ("--image-size", "32", "--steps", "1", "--device", "cpu") if tiny else ("--cuda-graph",)
        asked = ("--model", model, "--keep", "0.8", "--layers", PAPER.get(model, "1"), *variants, *own)
        yield Job(f"profile-{model}.json", (*TOOL, "profile", *asked, "--summary", f"{{out}}/profile-{model}.json"), 60)


def gates(tiny: bool) -> Iterator[Job]:
    """Ten gates of the tree against its own commit, and the gate's self-test; call this stage until all are there.

    The tree must be a git checkout without changes (`git init; git add -A; git commit` where it is a bare copy).
    """
    own = ("--profile", "{out}/gate.toml", "--noise", "{out}/noise.json")
    for number in range(1, 2 if tiny else 11):
        makes = f"gate-a-a-{number}.json"
        outputs = ("--json", f"{{out}}/{makes}", "--out", f"{{out}}/a-a-{number}")
        yield Job(makes, (*TOOL, "gate", "--base", "HEAD", *own, *outputs), 220)
    outputs = ("--json", "{out}/gate-self-test.json", "--out", "{out}/self-test")
    yield Job("gate-self-test.json", (*TOOL, "gate", "--self-test", *own, *outputs), 440)


def operators(tiny: bool) -> Iterator[Job]:
    """Attention operators: at the shapes of FlashAttention-3's figure, then from 1k to 64k tokens, both ways."""

    def job(makes: str, seconds: int, *asked: str) -> Job:
        if tiny:
            asked = ("--operator", "softmax,flash", "--tokens", "64", "--heads", "2", "--no-causal", *TINY[2:])
        return Job(makes, (*TOOL, "operators", *asked, "--out", f"{{out}}/{makes}"), seconds)

    packages = ("--operator", "softmax,flash,flash_attn2,cudnn,flash_attn3,flash_attn4", "--no-causal")
    for tokens, batch in ((512, 32), (2048, 8), (16384, 1)):
        for dim, heads in ((64, 32), (128, 16)):
            sizes = ("--tokens", str(tokens), "--batch", str(batch), "--heads", str(heads), "--head-dim", str(dim))
            figure = ("--dtype", "fp16", "--input", "gaussian", "--hbm", "model", "--budget", "1")
            yield job(f"operators-{tokens}-dim-{dim}.json", 50, *packages, *sizes, *figure)
    some = "softmax,flash,efficient,cudnn,flex,sliding,longformer,streaming,block_sparse,linear,gqa,mla"
    lengths = ("--operator", some, "--tokens", "1k:64k:x4", "--heads", "16", "--causal")
    for dim in ("64", "128"):
        for name, more in (("forward", ()), ("backward", ("--backward",))):
            asked = (*lengths, "--head-dim", dim, "--hbm", "model", "--budget", "0.5", *more)
            yield job(f"operators-{name}-dim-{dim}.json", 400, *asked)


def rivals(tiny: bool) -> Iterator[Job]:
    """The shift beside other methods of token reduction, at equal numbers of tokens: images, clips, prefill."""
    for profile, batch in (("rivals-image", "32"), ("rivals-video", "8"), ("rivals-prefill", "1")):
        makes = f"{profile}.json"
        asked = ("--profile", profile, "--batch", batch, "--budget", "1.5", "--hbm", "model")
        if tiny:
            variants = ("--variant", "flash,flash+tome,flash+evit")
            asked = ("--model", "vit_t", "--batch", "1", "--keep", "0.8", "--layers", "1", *variants, *TINY)
        yield Job(makes, (*TOOL, "bench", *asked, "--out", f"{{out}}/{makes}"), 280)


def counted(tiny: bool) -> Iterator[Job]:
    """Every instrument of HBM traffic, and the model beside each, on three models."""
    shared = ("--keep", "0.8", "--variant", "vanilla,flash,flash+repshift", "--rounds", "5")
    for instrument in () if tiny else ("cupti", "ncu", "gpm"):
        for model, batch in (("deit_b", 32), ("vit_l", 32), ("umt_b", 8)):
            own = ("--model", model, "--batch", str(batch), "--layers", PAPER[model], "--hbm", instrument)
            frames = ("--frames", "12") if model == "umt_b" else ()
            makes = f"hbm-{instrument}-{model}.json"
            yield Job(makes, (*TOOL, "bench", *own, *shared, *frames, "--out", f"{{out}}/{makes}"), 110)


STAGES: dict[int, Callable[[bool], Iterator[Job]]] = dict(
    enumerate((gpu_tests, deit, larger, videos, why, gates, operators, rivals, counted), start=1)
)


def main() -> int:
    """Run the stage or list it; the exit code is 0 where every job that was begun gave an answer."""
    asked = _arguments()
    jobs = list(STAGES[asked.stage](asked.tiny))
    if asked.tiny:  # jobs that differ by the model alone are the same then
        jobs = list({job.command[: -2 if job.is_sweep else None]: job for job in jobs}.values())
    if asked.dry_run:
        return _listed(jobs)
    asked.out.mkdir(parents=True, exist_ok=True)
    size, batch, rounds = ("image-size = 32\n", 1, 8) if asked.tiny else ("", 32, 8)
    (asked.out / "gate.toml").write_text(GATE.format(size=size, batch=batch, rounds=rounds), encoding="utf-8")
    return _run(jobs, asked.out, asked.out / f"stage-{asked.stage}.json", asked.copy)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stage", type=int, required=True, choices=STAGES)
    parser.add_argument("--out", type=Path, default=ROOT / "repshift-runs" / "evidence")
    parser.add_argument("--copy", type=Path, help="a folder that all of it is copied to as well, after each job")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs and the cases of each")
    parser.add_argument("--tiny", action="store_true", help="the same on a CPU with the smallest of everything")
    return parser.parse_args()


def _listed(jobs: list[Job]) -> int:
    for job in jobs:
        print(f"{job.makes}, about {job.seconds} s: {shlex.join(job.command)}", flush=True)
        if job.is_sweep:
            subprocess.run([*_without_out(job.command), "--dry-run"], cwd=ROOT, env=_environment())
    print(
        f"about {sum(job.seconds for job in jobs)} s in all; what does not fit into {LIMIT} s waits for the next call"
    )
    return 0


def _without_out(command: tuple[str, ...]) -> list[str]:
    return list(command[: command.index("--out")])


def _run(jobs: list[Job], out: Path, summary: Path, copy: Path | None = None) -> int:
    """Every job that is not done and still fits into the stage's time; what became of it is written behind each."""
    done: list[dict[str, object]] = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else []
    code_of = {entry["makes"]: entry["code"] for entry in done}
    begun, codes = time.monotonic(), []
    for job in sorted(jobs, key=lambda job: code_of.get(job.makes) == TOO_LONG):
        if code_of.get(job.makes) in ANSWERED:
            continue
        started = time.monotonic()
        if started - begun + job.seconds > LIMIT:
            print(f"left for the next call of this stage: {job.makes} and what comes behind it")
            break
        line = job.line(out)
        print(f"== {job.makes}: {shlex.join(line)}", flush=True)
        codes.append(_ended(line, max(1.0, END - (started - begun))))
        entry = {"makes": job.makes, "command": shlex.join(line[1:]), "code": codes[-1]}
        done = [e for e in done if e["makes"] != job.makes] + [{**entry, "seconds": round(time.monotonic() - started)}]
        summary.write_text(json.dumps(done, indent=1), encoding="utf-8")
        if copy is not None:
            shutil.copytree(out, copy, dirs_exist_ok=True)
    return 1 if set(codes) - {*ANSWERED} else 0


def _ended(line: list[str], seconds: float) -> int:
    """The exit code of the command, TOO_LONG where it does not end in time; whatever it has started ends with it."""
    with subprocess.Popen(line, cwd=ROOT, env=_environment(), start_new_session=True) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return TOO_LONG
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    sys.exit(main())
