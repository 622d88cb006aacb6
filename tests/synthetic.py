"""A run as `repshift bench` would write it, made up: exact numbers, no torch, no clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from repshift_cli.analysis.stats import paired_ratios, round_medians
from repshift_cli.records import Case, Machine, Measurement, Record, Run

ROUNDS, PER_ROUND = 24, 3
MIB = 2**20

CPU = Machine(
    device="cpu",
    device_name="CPU",
    cpu="AMD EPYC 7763 64-Core Processor",
    cores=2,
    threads=2,
    memory=8 * 1024 * MIB,
    system="Linux 6.8",
    python="3.12.4",
    commit="3f2c1ab",
    packages={"torch": "2.13.0+cpu", "transformers": "5.23.0"},
    missing={"driver": "no NVIDIA driver here"},
)
CUDA = replace(
    CPU,
    device="cuda:0",
    device_name="NVIDIA H100 80GB HBM3",
    uuid="GPU-7b1f",
    driver="580.82.07",
    cuda="13.0",
    capability="9.0",
    device_memory=80 * 1024 * MIB,
    packages={"torch": "2.13.0", "transformers": "5.23.0", "flash-attn": "2.8.3"},
    missing={},
)

ON_CPU = Case("vit_b", "random", "random", 224, None, 1, "fp32", "cpu", "vanilla")
ON_CUDA = replace(ON_CPU, batch=128, dtype="bf16", device="cuda:0")
REPSHIFT: dict[str, Any] = {
    "pruning": "repshift",
    "keep": 0.6,
    "layers": (3,),
    "options": (("operation", "mlp"), ("distance", "l2"), ("form", "update")),
}
RANDOM: dict[str, Any] = {"pruning": "random", "keep": 0.6, "layers": (3,)}
KERNELS = {"vanilla": "matmul softmax matmul", "flash": "_scaled_dot_product_flash_attention_for_cpu"}


def times(milliseconds: float, seed: int = 0) -> tuple[float, ...]:
    """Latencies of all rounds, about 1% apart."""
    noise = random.Random(seed)
    return tuple(milliseconds * (1 + 0.02 * noise.random()) for _ in range(ROUNDS * PER_ROUND))


def speedup(over: str, reference: Sequence[float] | None, own: Sequence[float]) -> Measurement:
    kind = ("x", "higher", "hodges-lehmann", "timed")
    name, label = f"speedup_vs_{over}", f"vs {over}"
    if reference is None:
        return Measurement(name, label, *kind, reason="reference: this is vanilla itself", reference=True)
    ratios = paired_ratios(round_medians(reference, PER_ROUND), round_medians(own, PER_ROUND))
    return Measurement(name, label, *kind, samples=tuple(ratios))


def exact(metric: str, label: str, unit: str, better: str, source: str, value: float, **more: bool) -> Measurement:
    return Measurement(metric, label, unit, better, "value", source, (value,), **more)


def measurements(case: Case, milliseconds: float, vanilla: float, flash: float) -> tuple[Measurement, ...]:
    own, pruned = times(milliseconds, seed=len(case.variant)), case.pruning != "none"
    against_flash = None if case.variant == "flash" else times(flash, seed=1)
    against_vanilla = None if case.variant == "vanilla" else times(vanilla, seed=2)
    reference = "reference: the unpruned model itself"
    cosine = ("fidelity_cosine", "cosine", "", "higher", "value", "compared")
    return (
        speedup("flash", against_flash, own),
        speedup("vanilla", against_vanilla, own),
        Measurement("latency", "latency", "ms", "lower", "median", "timed", own, PER_ROUND),
        Measurement(*cosine, samples=(0.98765,)) if pruned else Measurement(*cosine, reason=reference, reference=True),
        Measurement(
            "throughput",
            "img/s",
            "1/s",
            "higher",
            "median",
            "timed",
            tuple(1000 * case.batch / t for t in own),
            PER_ROUND,
        ),
        exact("macs", "MACs", "MAC", "lower", "counted", 11.5e9 if pruned else 17.56e9),
        exact("memory_peak_allocated", "peak mem", "B", "lower", "allocator", (412 if pruned else 523) * float(MIB)),
        exact("hbm_modelled", "HBM modelled", "B", "lower", "modelled", (300 if pruned else 400) * float(MIB)),
        Measurement("hbm", "HBM", "B", "lower", "value", "counter", reason="no counter was read: no NVIDIA GPU"),
        exact("memory_peak_reserved", "reserved", "B", "lower", "allocator", 600.0 * MIB, detail=True),
        Measurement(
            "sm_clock", "SM clock", "MHz", "higher", "median", "driver", reason="no NVML on a CPU", detail=True
        ),
    )


def ran(case: Case, milliseconds: float, vanilla: float, flash: float, **changes: Any) -> Record:
    record = Record(
        case,
        "ok",
        tokens=(197, 119) if case.layers else (197,),
        kernel=KERNELS.get(case.attention),
        rounds=ROUNDS,
        warmup=12,
        stopped_by="budget",
        measurements=measurements(case, milliseconds, vanilla, flash),
        warnings=("random weights: fidelity says nothing of a trained model",),
    )
    return replace(record, **changes)


def small_run(first: Case = ON_CPU, machine: Machine = CPU) -> Run:
    """The main command with a speed-up, none shown, a random control that ran out of memory, and one refused."""
    flash = replace(first, attention="flash")
    cases = (
        first,
        flash,
        replace(flash, **REPSHIFT),
        replace(flash, **RANDOM),
        replace(first, attention="cudnn", **REPSHIFT),
    )
    noisy = "3 of 72 latencies are outliers; close other programs and measure again"
    records = (
        ran(cases[0], 141.2, 141.2, 141.0),
        ran(
            cases[1], 141.0, 141.2, 141.0, warnings=("random weights: fidelity says nothing of a trained model", noisy)
        ),
        ran(cases[2], 104.6, 141.2, 141.0),
        Record(
            cases[3],
            "failed",
            "CUDA out of memory. Tried to allocate 2.00 GiB; try a smaller --batch",
            kernel=KERNELS["flash"],
        ),
        Record(cases[4], "skipped", "cudnn needs a CUDA device; this case runs on cpu"),
    )
    return Run(
        machine,
        {"models": ["vit_b"], "keep": [0.6], "budget": 20.0},
        cases,
        records,
        ("the machine was busy: load 3.1 on 2 cores",),
        "2026-11-22T05:12:00+00:00",
        "repshift 0.1.0",
    )


def sweep_run() -> Run:
    """Two models on CUDA; keep, layers, form and execution vary; one case is still to come."""
    records, planned = [], []
    for model in ("deit_s", "umt_b"):
        base = replace(ON_CUDA, model=model, frames=12 if model == "umt_b" else None)
        for execution in ("eager", "graph"):
            vanilla = replace(base, execution=execution)
            flash = replace(vanilla, attention="flash")
            planned += [vanilla, flash]
            records += [ran(vanilla, 61.8, 61.8, 40.2), ran(flash, 40.2, 61.8, 40.2)]
            for keep, layers, form in ((0.3, (3,), "update"), (0.7, (1, 4, 7), "update"), (0.7, (1, 4, 7), "paper")):
                options = (*REPSHIFT["options"][:2], ("form", form))
                case = replace(flash, **REPSHIFT | {"keep": keep, "layers": layers, "options": options})
                planned.append(case)
                records.append(ran(case, 50.1 * keep**0.5, 61.8, 40.2, tokens=(197, 158, 127, 102)[: len(layers) + 1]))
    return Run(CUDA, {}, tuple(planned), tuple(records[:-1]), (), "2026-11-22T05:12:00+00:00", "repshift 0.1.0")
