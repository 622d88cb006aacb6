"""What the tool itself costs, as ratios within one run: `python tests/benchmarks/overhead.py` (about five minutes).

1. `repshift --help`: seconds of a whole process, median of 9.
2. The runner against a bare loop over the same forward, vit_b at batch 1: the times it reports, and the wall time of
   its timed rounds for each second of forwards in them. Target: within 1.02.
3. repshift against the oracle (a plain slice) at equal token counts, vit_b and deit_s at batch 8. Target: within 1.05.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from repshift_cli.analysis import stats
from repshift_cli.benchmark import builder, runner
from repshift_cli.machine import device as devices
from repshift_cli.machine.describe import describe
from repshift_cli.records import Case, Progress, Step, call, tokens_along
from repshift_cli.sweep.plan import default_layers


def main() -> None:
    """Print every figure with its interval."""
    device = devices.choose_device("auto")
    print(f"device: {describe(device).device_name}, torch {torch.__version__}")
    print(f"repshift --help: {help_seconds():.3f} s")
    step_builder = builder.StepBuilder(device)
    step = step_builder.prepare(_case("vit_b", 1, device))
    show("reported latency / bare loop", reported_over_bare(step, step_builder.parts.timer))
    print(f"wall time of the timed rounds / forwards in them: {wall_over_forwards(step, step_builder.parts):.4f}")
    for model in ("vit_b", "deit_s"):
        show(f"{model}, batch 8: repshift / oracle", over_oracle(model, device))


def show(what: str, ratios: list[float]) -> None:
    """One line: the typical paired ratio with its interval."""
    value = stats.hodges_lehmann(ratios)
    print(f"{what}: {value.value:.4f} ({value.low:.4f} to {value.high:.4f}, {len(ratios)} pairs)", flush=True)


def help_seconds() -> float:
    """Median wall time of `repshift --help`."""
    times = []
    for _ in range(9):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "repshift_cli", "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def reported_over_bare(step: Step, timer: runner.Timer, pairs: int = 40) -> list[float]:
    """What the runner's timed region takes over a bare loop around the module, pair by pair in alternating order."""
    module, inputs = step.subject.module, step.subject.inputs

    def bare() -> float:
        with torch.inference_mode():
            return _loop(lambda: call(module, inputs), step.case.device)

    def timed() -> float:
        with step.active():
            return statistics.fmean(timer.time(step.forward, 3))

    bare(), timed()
    ratios = []
    for i in range(pairs):
        if i % 2:
            b, t = bare(), timed()
        else:
            t, b = timed(), bare()
        ratios.append(t / b)
    return ratios


def _loop(forward: Callable[[], Any], device: str, count: int = 3) -> float:
    begun = time.perf_counter()
    for _ in range(count):
        forward()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun) / count


def wall_over_forwards(step: Step, parts: runner.Parts, rounds: int = 40) -> float:
    """Seconds that the timed rounds take for each second of forwards in them: what lies between the forwards."""
    began: list[float] = []

    def note(word: Progress) -> None:
        if word.phase == "timing":
            began.append(time.perf_counter())

    only_timing = replace(parts, prepare=lambda case: step, verify=lambda s: "", probes=lambda s: ())
    tokens = (step.subject.tokens + step.subject.protected,)
    settings = runner.Settings(precision=1e-9, budget=1.0, rounds=rounds)
    (record,) = runner.compare([(step.case, tokens)], {step.case}, only_timing, settings, note)
    latency = record.measurement("latency")
    assert latency is not None
    counted = latency.samples[latency.per_round :]
    settling = (1 if latency.per_round > 1 else 0) * (rounds - 1) * statistics.fmean(counted)
    return (began[-1] - began[0]) / ((sum(counted) + settling) / 1000)


def over_oracle(model: str, device: str) -> list[float]:
    """Per round, the time of flash+repshift over flash+oracle at the default schedule and keep 0.6."""
    step_builder = builder.StepBuilder(device)
    facts = builder.facts_of(None, model, None, None)
    layers = default_layers(facts.depth)
    base = replace(_case(model, 8, device), keep=0.6, layers=layers)
    shift = replace(base, pruning="repshift").with_options(operation="mlp", distance="l2", form="paper")
    cases = [(case, tokens_along(facts, 0.6, layers)) for case in (shift, replace(base, pruning="oracle"))]
    only_timing = replace(step_builder.parts, verify=lambda s: "", probes=lambda s: ())
    settings = runner.Settings(precision=0.005, budget=30.0)
    record = next(iter(runner.compare(cases, {shift}, only_timing, settings)))
    measured = record.measurement("time_vs_oracle")
    assert measured is not None
    return list(measured.samples)


def _case(model: str, batch: int, device: str) -> Case:
    dtype = "bf16" if device.startswith("cuda") else "fp32"
    facts = builder.facts_of(None, model, None, None)
    return Case(model, "random", "random", facts.image_size, facts.frames, batch, dtype, device, "flash")


if __name__ == "__main__":
    main()
