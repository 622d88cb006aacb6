"""The instruments on a real GPU: each against known bytes, against each other, and against what the paper says."""

from __future__ import annotations

import statistics
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny import case

from repshift_cli.counters.base import calibration, instruments
from repshift_cli.counters.base.traffic import CounterError
from repshift_cli.machine import nvml
from repshift_cli.records import Calibration, Case

pytestmark = pytest.mark.gpu

RANGES = 3


@cache
def calibrated(name: str) -> Calibration:
    """The instrument's calibration, taken once."""
    return calibration.calibrate(name, "cuda")


def believed() -> list[str]:
    return [name for name in instruments.ORDER if calibrated(name).passed]


@pytest.mark.parametrize("name", instruments.ORDER)
def test_an_instrument_counts_known_bytes(name: str) -> None:
    """Skipped where it cannot count here, failed where it counts wrongly."""
    found = calibrated(name)
    if found.total is None:
        pytest.skip(f"{name}: {found.reason}")
    assert found.passed, found


def deit(attention: str, **changes: Any) -> Case:
    given = {"model": "deit_s", "image_size": 224, "batch": 64, "dtype": "bf16", "device": "cuda"}
    return case(attention=attention, **{**given, **changes})


PRUNED: dict[str, Any] = {
    "pruning": "repshift",
    "keep": 0.6,
    "layers": (3,),
    "options": (("operation", "mlp"), ("distance", "l2"), ("form", "update")),
}


@cache
def counted(name: str, what: Case) -> float:
    """The median over the ranges; each case once, since every count is a child process with a model of its own."""
    return statistics.median(t.total for t in instruments.run(instruments.load(name), "cuda", what, RANGES))


@pytest.mark.parametrize("name", instruments.ORDER)
def test_flash_moves_fewer_bytes_than_vanilla_and_pruning_fewer_still(name: str) -> None:
    if not calibrated(name).passed:
        pytest.skip(f"{name} is not believed: {calibrated(name).reason}")
    vanilla, flash, pruned = (counted(name, c) for c in (deit("vanilla"), deit("flash"), deit("flash", **PRUNED)))
    assert vanilla > flash > pruned > 0


def test_two_instruments_agree() -> None:
    names = believed()[:2]
    if len(names) < 2:
        pytest.skip(f"only {names or 'none'} can be believed here")
    first, second = (counted(name, deit("flash")) for name in names)
    assert abs(first / second - 1) < 0.1


def test_bytes_over_time_stay_below_the_peak() -> None:
    import torch

    from repshift_cli.benchmark.builder import lone_step
    from repshift_cli.benchmark.timers import CudaTimer

    peak = nvml.peak_bandwidth("cuda")
    if isinstance(peak, str) or not believed():
        pytest.skip(f"nothing to compare: {peak}, {believed()}")
    step = lone_step(deit("vanilla"))
    with step.active():
        milliseconds = statistics.median(CudaTimer().time(step.forward, 20)[5:])
    torch.cuda.empty_cache()
    assert counted(believed()[0], step.case) / (milliseconds / 1000) < 1.02 * peak.bytes_per_second


def test_a_case_that_does_not_fit_is_one_reason() -> None:
    name = next((n for n in instruments.ORDER if instruments.load(n).unavailable("cuda") is None), None)
    if name is None:
        pytest.skip("no instrument to try")
    with pytest.raises(CounterError):
        instruments.run(instruments.load(name), "cuda", deit("vanilla", batch=10**6), RANGES)


def test_energy_is_measured() -> None:
    import torch

    from repshift_cli.benchmark.builder import lone_step
    from repshift_cli.probes.energy import EnergyProbe

    if isinstance(reason := nvml.millijoules("cuda"), str):
        pytest.skip(reason)
    probe = EnergyProbe(lambda: nvml.millijoules("cuda"), torch.cuda.synchronize)
    found = {m.metric: m for m in probe.measure(lone_step(deit("flash")))}
    joules, uncertain = (found[name].samples[0] for name in ("energy", "energy_uncertainty"))
    assert 0 < uncertain < 0.05 * joules


def test_memory_is_nested_and_a_snapshot_is_written(tmp_path: Path) -> None:
    from functools import partial

    from repshift_cli.benchmark.builder import lone_step
    from repshift_cli.probes.memory import MemoryProbe
    from repshift_cli.probes.snapshot import recorded

    step = lone_step(deit("flash"))
    probe = MemoryProbe(partial(nvml.process_bytes, "cuda"), partial(nvml.card_bytes, "cuda"))
    found = {m.metric: m for m in probe.measure(step)}
    told = [found[f"memory_{n}"] for n in ("resting", "peak_allocated", "peak_reserved", "process", "card")]
    values = [m.samples[0] for m in told if m.samples]
    assert values == sorted(values) and len(values) >= 3
    recorded(lambda _: tmp_path / "snapshot.pickle", step)
    assert (tmp_path / "snapshot.pickle").stat().st_size > 0
