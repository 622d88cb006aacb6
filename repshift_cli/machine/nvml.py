"""What NVML tells of a GPU, and the system of this process; whatever is missing says why."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repshift_cli.machine import device as devices
from repshift_cli.records import one_line

EVENT_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""NVML's clocks event reasons that slow a GPU down; idle and requested clocks are none."""

HARDWARE_THROTTLE = 0x8 | 0x40 | 0x80


class NoNvml(Exception):
    """NVML does not answer here; the message is the reason."""


def started() -> Any:
    """The initialised module `pynvml` (package nvidia-ml-py); NoNvml with the reason where there is none."""
    try:
        module = importlib.import_module("pynvml")
    except ImportError as error:
        raise NoNvml("NVML needs the package nvidia-ml-py, which is not installed") from error
    try:
        module.nvmlInit()
    except Exception as error:
        raise NoNvml(f"NVML does not start: {one_line(error)}") from error
    return module


def gpu_count() -> int:
    """The GPUs of this machine as NVML counts them, whatever CUDA_VISIBLE_DEVICES says; 0 where it does not answer."""
    return quiet(lambda: int(started().nvmlDeviceGetCount())) or 0


def nvml_handle(device: str) -> tuple[Any, Any]:
    """NVML's module and its handle of a torch device, matched by UUID: NVML ignores CUDA_VISIBLE_DEVICES."""
    if not device.startswith("cuda"):
        raise NoNvml("NVML reads GPUs, and this run is on the CPU")
    module, uuid = started(), uuid_of(device)
    for name in (uuid, uuid.replace("GPU-", "MIG-", 1)):
        with contextlib.suppress(Exception):
            return module, module.nvmlDeviceGetHandleByUUID(name)
    raise NoNvml(f"NVML does not know the device {uuid}")


def uuid_of(device: str) -> str:
    """The UUID as NVML writes it; torch leaves out the prefix."""
    uuid = str(devices.import_torch().cuda.get_device_properties(devices.index_of(device)).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


@dataclass(frozen=True)
class Reading:
    """The state of a GPU at one moment: MHz, degrees Celsius, watts; None for what it does not tell.

    `events` is NVML's mask of clocks event reasons, `throttle` those of them that slow the GPU down, in words; `others`
    are the other processes that compute on it.
    """

    sm_clock: int | None
    memory_clock: int | None
    temperature: int | None
    power: float | None
    throttle: tuple[str, ...] = ()
    hardware_throttled: bool = False
    events: int = 0
    others: tuple[str, ...] = ()


class Watch:
    """Reads the clocks of one device; `reason` says why where it cannot, and `sample()` is None then."""

    def __init__(self, device: str) -> None:
        self.reason: str | None = None
        self._nvml: Any = None
        self._handle: Any = None
        try:
            self._nvml, self._handle = nvml_handle(device)
        except NoNvml as error:
            self.reason = str(error)

    def sample(self) -> Reading | None:
        """One reading, a few hundred microseconds on the host; it does not wait for the device."""
        if self._nvml is None:
            return None
        api, handle = self._nvml, self._handle
        power = quiet(lambda: api.nvmlDeviceGetPowerUsage(handle))
        events = quiet(lambda: api.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
        return Reading(
            sm_clock=quiet(lambda: api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_SM)),
            memory_clock=quiet(lambda: api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_MEM)),
            temperature=_temperature(api, handle),
            power=None if power is None else power / 1000,
            throttle=tuple(words for bit, words in EVENT_REASONS.items() if events & bit),
            hardware_throttled=bool(events & HARDWARE_THROTTLE),
            events=events,
            others=_others(api, handle),
        )


def _others(api: Any, handle: Any) -> tuple[str, ...]:
    """The processes that compute on the GPU beside this one: `python3 (pid 42, 3.2 GiB)`.

    In another PID namespace this process is not found among them: then one of them is taken for it.
    """
    holders = quiet(lambda: api.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    others = [p for p in holders if p.pid != os.getpid()]
    if others and len(others) == len(holders):
        count = len(others) - 1
        return (f"{count} more in other PID namespaces, which NVML cannot name here",) if count else ()
    return tuple(_named(api, process) for process in others)


def _named(api: Any, process: Any) -> str:
    name = quiet(lambda: api.nvmlSystemGetProcessName(process.pid)) or "a process"
    name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    held = process.usedGpuMemory
    memory = "" if held is None else f", {held / 2**30:.1f} GiB"
    return f"{Path(name).name} (pid {process.pid}{memory})"


def _temperature(api: Any, handle: Any) -> int | None:
    """By the newer call, or by the older one where the driver or the package lacks it."""
    sensor = api.NVML_TEMPERATURE_GPU
    newer: int | None = quiet(lambda: api.nvmlDeviceGetTemperatureV(handle, sensor))
    return newer if newer is not None else quiet(lambda: api.nvmlDeviceGetTemperature(handle, sensor))


def quiet(read: Callable[[], Any]) -> Any:
    """What `read` gives, or None where this device or this driver does not tell."""
    try:
        return read()
    except Exception:
        return None


def process_bytes(device: str) -> int | str:
    """What this process holds, in bytes: on the GPU as NVML counts it, on a CPU its resident size; else the reason."""
    if not device.startswith("cuda"):
        return _resident_bytes()
    try:
        api, handle = nvml_handle(device)
        holders = api.nvmlDeviceGetComputeRunningProcesses(handle)
    except Exception as error:
        return f"NVML does not tell this process's memory: {one_line(error)}"
    own = next((p for p in holders if p.pid == os.getpid()), None)
    if own is None:
        return "NVML does not list this process (another PID namespace)"
    return "NVML lists this process without its memory" if own.usedGpuMemory is None else int(own.usedGpuMemory)


def card_bytes(device: str) -> int | str:
    """What all processes together and the driver hold of the GPU's memory, as NVML counts it; else the reason."""
    if not device.startswith("cuda"):
        return "no GPU in this run"
    return _told(device, "the card's memory", lambda api, handle: int(api.nvmlDeviceGetMemoryInfo(handle).used))


def millijoules(device: str) -> int | str:
    """NVML's total energy since the driver was loaded, Volta and later; else the reason."""
    if not device.startswith("cuda"):
        return "no GPU in this run"
    return _told(device, "energy", lambda api, handle: int(api.nvmlDeviceGetTotalEnergyConsumption(handle)))


def _told(device: str, what: str, read: Callable[[Any, Any], int]) -> int | str:
    try:
        return read(*nvml_handle(device))
    except Exception as error:
        return f"NVML does not tell {what}: {one_line(error)}"


@dataclass(frozen=True)
class Peak:
    """The highest bandwidth that a GPU's memory could have, and where that figure is from."""

    bytes_per_second: float
    source: str

    def __str__(self) -> str:
        return f"{self.bytes_per_second / 1e9:.0f} GB/s ({self.source})"


def peak_bandwidth(device: str) -> Peak | str:
    """Bus width / 8 x 2 (both clock edges) x highest memory clock, all from NVML; else the reason."""

    def read(api: Any, handle: Any) -> Peak:
        bits, mhz = (
            api.nvmlDeviceGetMemoryBusWidth(handle),
            api.nvmlDeviceGetMaxClockInfo(handle, api.NVML_CLOCK_MEM),
        )
        if not bits or not mhz:
            raise NoNvml(f"bus width {bits}, memory clock {mhz}")
        return Peak(bits / 8 * 2 * mhz * 1e6, f"NVML: {bits} bit x 2 x {mhz} MHz")

    try:
        return read(*nvml_handle(device))
    except Exception as error:
        return f"the peak bandwidth is not known: {one_line(error)}"


def _resident_bytes() -> int | str:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return "this system has no /proc/self/statm"
