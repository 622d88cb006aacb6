"""Which instrument measures a run's HBM traffic: what was asked for, or the best that passes its calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from repshift_cli.counters.base import calibration, instruments
from repshift_cli.counters.base.traffic import Traffic
from repshift_cli.records import Calibration, Case, UsageError

RANGES = 3
"""Forwards counted per case, each in a range of its own."""


@dataclass(frozen=True)
class Choice:
    """The instrument of a run, or the reason why there is none; `modelled` says whether the model is wanted."""

    instrument: str | None
    reason: str
    calibrations: tuple[Calibration, ...] = ()
    modelled: bool = True

    @property
    def label(self) -> str:
        """`counter` or `sampled`: what the instrument's figures are."""
        label: str = instruments.load(self.instrument).LABEL if self.instrument else "counter"
        return label

    def count(self, case: Case) -> list[Traffic]:
        """The traffic of some forwards of the case, counted in a child; CounterError where that fails."""
        return instruments.run(instruments.load(self.instrument or ""), case.device, case, RANGES)


def choose(asked: str, device: str, observe: Callable[[str], None] = lambda _: None) -> Choice:
    """The choice for `--hbm`; UsageError where an instrument that was named cannot be used."""
    if asked in ("model", "off"):
        return Choice(None, f"not asked for (--hbm {asked})", modelled=asked == "model")
    if not device.startswith("cuda"):
        if asked != "auto":
            raise UsageError(f"--hbm {asked} counts on a GPU, and this run is on the CPU; use --hbm auto or model")
        return Choice(None, "no GPU in this run")
    tried = []
    for name in instruments.ORDER if asked == "auto" else (asked,):
        found = _tried(name, device, observe)
        tried.append(found)
        if found.passed:
            return Choice(name, "", tuple(tried))
    reasons = "; ".join(f"{c.provider}: {c.reason}" for c in tried)
    if asked != "auto":
        raise UsageError(f"--hbm {reasons}")
    return Choice(None, reasons, tuple(tried))


def _tried(name: str, device: str, observe: Callable[[str], None]) -> Calibration:
    """The instrument's calibration; what plainly cannot count is asked each time, the rest comes from the cache."""
    instrument = instruments.load(name)
    if reason := instrument.unavailable(device):
        return Calibration(name, instrument.LABEL, False, reason)
    observe(f"calibrating {name}")
    found = calibration.known_or_new(name, device)
    if found.passed:
        return found
    return dataclasses.replace(found, reason=f"{found.reason} (`repshift doctor --counters` calibrates again)")
