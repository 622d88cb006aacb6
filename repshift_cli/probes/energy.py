"""Energy of one forward: NVML's total-energy counter over a loop of several seconds, with its uncertainty."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from repshift_cli.probes import Context, Measure
from repshift_cli.records import Measurement, Metric, Step

ENERGY = Metric(
    "energy",
    "energy",
    "J",
    "lower",
    "value",
    "driver",
    "Energy that the whole card used for one forward, by NVML's counter over a loop of seconds.",
)
UNCERTAINTY = Metric(
    "energy_uncertainty",
    "energy ±",
    "J",
    "lower",
    "value",
    "driver",
    "By how much the energy may be off, for the counter is renewed every tenth of a second only.",
    gateable=False,
    detail=True,
)
PER_JOULE = Metric(
    "samples_per_joule",
    "samples/J",
    "1/J",
    "higher",
    "value",
    "driver",
    "Samples for each joule that the whole card used.",
    detail=True,
)
METRICS = (ENERGY, UNCERTAINTY, PER_JOULE)

LOOP_SECONDS = 4.0
UPDATE_SECONDS = 0.1
"""How far apart the counter's updates are: at either end it may be that old, so the loop's energy is uncertain by what
is used in that time. It counts the whole card. (NVML; power itself is sampled a quarter of the time only on A100 and
H100, arXiv 2312.02741, which this counter does not suffer from in the same way.)"""


def unavailable(device: str) -> str | None:
    """A CPU's energy is not read."""
    return None if device.startswith("cuda") else "no GPU in this run"


def make(context: Context) -> Measure:
    """A loop under the card's energy counter."""
    return EnergyProbe(context.millijoules, context.synchronize).measure


class EnergyProbe:
    """`millijoules()` reads the counter, or says why it cannot; `synchronize()` waits for the device."""

    def __init__(
        self,
        millijoules: Callable[[], int | str],
        synchronize: Callable[[], Any],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._millijoules, self._synchronize, self._now = millijoules, synchronize, now

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """Joules of one forward, their uncertainty, and samples per joule, in a pass of its own."""
        units = PER_JOULE.counting(step.subject.units)
        found = self._loop(step)
        if isinstance(found, str):
            return tuple(metric.missing(found) for metric in (ENERGY, UNCERTAINTY, units))
        joules, seconds, times = found
        uncertain = joules * UPDATE_SECONDS / seconds
        per_joule = step.case.batch * times / joules
        return ENERGY.of(joules / times), UNCERTAINTY.of(uncertain / times), units.of(per_joule)

    def _between_waits(self, step: Step) -> int:
        """How many forwards run between two waits for the device, so that it hardly idles: a tenth of a second's."""
        self._synchronize()
        begun = self._now()
        step.forward()
        self._synchronize()
        return max(1, int(0.1 / max(self._now() - begun, 1e-4)))

    def _loop(self, step: Step) -> tuple[float, float, int] | str:
        """Joules, seconds and forwards of the loop, or why there are none; no forward where nothing is told."""
        if isinstance(reason := self._millijoules(), str):
            return reason
        with step.active():
            step.forward()
            each = self._between_waits(step)
            before, begun, times = self._millijoules(), self._now(), 0
            if isinstance(before, str):
                return before
            while self._now() - begun < LOOP_SECONDS:
                for _ in range(each):
                    step.forward()
                self._synchronize()
                times += each
            after, seconds = self._millijoules(), self._now() - begun
        if isinstance(after, str):
            return after
        if after <= before:
            return "the energy counter did not move while the forward ran"
        return (after - before) / 1000, seconds, times
