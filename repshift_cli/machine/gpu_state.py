"""The state of the machine beside every timing: clocks, temperature, power and throttling, and what it means in words.

Pure: from readings (`machine.Reading`, the first one before the timed rounds, then one after each) to measurements and
warnings.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from repshift_cli.records import Measurement, Metric


def _state(name: str, unit: str, better: str, description: str, label: str | None = None) -> Metric:
    """What NVML says before the timed rounds and after each: it explains figures and is none to be judged."""
    shared = (unit, better, "median", "driver", description)
    return Metric(name, label or name.replace("_", " "), *shared, gateable=False, detail=True)


SM_CLOCK = _state(
    "sm_clock", "MHz", "higher", "Clock of the GPU's multiprocessors beside the timed rounds.", "SM clock"
)
MEMORY_CLOCK = _state("memory_clock", "MHz", "higher", "Clock of the GPU's memory beside the timed rounds.")
TEMPERATURE = _state("temperature", "C", "lower", "Temperature of the GPU beside the timed rounds.")
POWER = _state("power", "W", "lower", "Power that the whole card drew beside the timed rounds.")
THROTTLING = _state(
    "clocks_event_reasons", "", "lower", "NVML's bit mask of what held the clocks down beside the timed rounds."
)
"""NVML's bit mask as it stood at each reading; `machine.EVENT_REASONS` has the bits that slow a GPU down."""

FIELDS = (
    (SM_CLOCK, "sm_clock"),
    (MEMORY_CLOCK, "memory_clock"),
    (TEMPERATURE, "temperature"),
    (POWER, "power"),
    (THROTTLING, "events"),
)
METRICS = tuple(metric for metric, _ in FIELDS)
DRIFT = 0.05
"""SM clocks further apart than this share are worth a warning."""

ADVICE = {
    "software power cap": "the power limit held the clocks down",
    "software thermal slowdown": "the GPU was too warm for its full clocks; cool it and measure again",
}


def measurements(readings: Sequence[Any]) -> Iterator[Measurement]:
    """What the readings tell, one sample for each that told it."""
    told = [r for r in readings if r is not None]
    for metric, name in FIELDS:
        values = [v for r in told if (v := getattr(r, name, None)) is not None]
        if values:
            yield metric.of(*values)


def warnings(readings: Sequence[Any]) -> Iterator[str]:
    """What a person should know about how the device was while it was timed."""
    told = [r for r in readings if r is not None]
    during = [r for r in readings[1:] if r is not None]
    if throttled(readings):
        yield "the device was throttled by hardware in rounds that count; cool it and measure again"
    causes = Counter(cause for r in during for cause in r.throttle)
    for cause, words in ADVICE.items():
        if causes[cause]:
            yield f"{words} ({cause} in {causes[cause]} of {len(during)} readings{_clocks(during)})"
    yield from _drift(during)
    others = dict.fromkeys(name for r in told for name in getattr(r, "others", ()))
    if others:
        yield f"not alone on the GPU while it was timed: {', '.join(others)}; stop them and measure again"


def throttled(readings: Sequence[Any]) -> bool:
    """Whether hardware slowed the device down in rounds that count."""
    return any(r.hardware_throttled for r in readings[1:] if r is not None)


def _clocks(readings: Sequence[Any]) -> str:
    clocks = [r.sm_clock for r in readings if r.sm_clock is not None]
    return f", SM clock {statistics.median(clocks):.0f} MHz" if clocks else ""


def _drift(readings: Sequence[Any]) -> Iterator[str]:
    clocks = [r.sm_clock for r in readings if r.sm_clock is not None]
    if clocks and max(clocks) - min(clocks) > DRIFT * max(clocks):
        yield (
            f"the SM clock moved between {min(clocks)} and {max(clocks)} MHz: ratios within a round hold, latencies "
            "vary (`nvidia-smi --lock-gpu-clocks` holds it still)"
        )
