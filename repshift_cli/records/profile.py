"""What a profile says of each variant, as frozen records: where a step's time goes, by part, kernel and operator.

A profile file is one `ProfileRun` as JSON; its cases and its machine are the records of a run file. All times are
milliseconds per step, means over the recorded steps, so that parts add up to the step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.records import Case, Machine

PROFILE_SCHEMA_VERSION = 3
"""Version of the profile file. History: 1 the first; 2 adds `protect` and `removal` of a case; 3 has `options` of a
case, where `operation`, `distance` and `form` were fields of their own."""

OTHER = "other"
WAIT = "wait"
"""The host's part in which it waits for the device (a synchronising call)."""


@dataclass(frozen=True)
class PartTime:
    """One part of one block (`layer` from 1, None outside the blocks): `host_ms` is what it adds on the host's main
    thread without the parts inside it; `device_ms` what its kernels add on the device, an instant that several streams
    share split between them, so that it counts once. No device: None.
    """

    part: str
    layer: int | None
    host_ms: float
    device_ms: float | None = None


@dataclass(frozen=True)
class KernelTime:
    """One device kernel (or copy) by name: calls per step, and the sum of their durations."""

    name: str
    calls: float
    ms: float


@dataclass(frozen=True)
class OpTime:
    """One operator by name: calls per step, its own time on the host without operators inside it, and the durations of
    the kernels that it launched itself."""

    name: str
    calls: float
    host_ms: float
    device_ms: float | None = None


@dataclass(frozen=True)
class Breakdown:
    """One variant's profile: `ok`, `skipped` or `failed` with the reason, as a record of a run file has it.

    `step_ms` are the steps one by one; `busy_ms` is the time per step in which the device does anything, and
    `overlapped_ms` what would be counted twice if streams were added up. `missing` says by field why one is empty.
    """

    name: str
    case: Case | None = None
    status: str = "ok"
    reason: str | None = None
    tokens: tuple[int, ...] = ()
    kernel: str | None = None
    step_ms: tuple[float, ...] = ()
    busy_ms: float | None = None
    overlapped_ms: float | None = None
    kernel_count: float | None = None
    launches: float | None = None
    parts: tuple[PartTime, ...] = ()
    kernels: tuple[KernelTime, ...] = ()
    ops: tuple[OpTime, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def step(self) -> float:
        """The mean step in milliseconds."""
        return sum(self.step_ms) / len(self.step_ms) if self.step_ms else 0.0

    @property
    def on_device(self) -> bool:
        """Whether a device apart from the host did work, so that its times are what counts."""
        return self.busy_ms is not None

    @property
    def idle_share(self) -> float | None:
        """The share of the step in which the device does nothing, 0 to 1; None without a device."""
        if self.busy_ms is None or not self.step:
            return None
        return max(0.0, 1 - self.busy_ms / self.step)


@dataclass(frozen=True)
class ProfileRun:
    """One profile file: where it ran, what was asked, one breakdown per variant."""

    machine: Machine | None
    options: dict[str, Any]
    breakdowns: tuple[Breakdown, ...]
    warnings: tuple[str, ...] = ()
    created: str = ""
    tool: str = ""
    kind: str = "profile"
    schema: int = PROFILE_SCHEMA_VERSION


def time_of(part: PartTime, on_device: bool) -> float:
    """The part's time where it counts: on the device, or on the host where that is the only one."""
    return (part.device_ms or 0.0) if on_device else part.host_ms


def total(parts: Iterable[PartTime], on_device: bool) -> float:
    """The parts' time together."""
    return sum(time_of(part, on_device) for part in parts)
