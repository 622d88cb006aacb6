"""What this computer has, read without changing anything; whatever is missing says why.

torch and NVML are imported inside functions: the help text of the tool needs neither.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repshift_cli.catalog import one_line
from repshift_cli.records import Machine, UsageError

PACKAGES = ("torch", "transformers", "flash-attn", "flash-attn-4", "nvidia-ml-py", "numpy", "triton", "timm")
"""The packages whose versions a run stores, where they are installed."""

EVENT_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
"""NVML's clocks event reasons that slow a GPU down; idle and requested clocks are none."""

HARDWARE_THROTTLE = 0x8 | 0x40 | 0x80


# --- the device -------------------------------------------------------------------------------------------------------


def choose_device(asked: str) -> str:
    """`cpu`, `cuda` or `cuda:N` for what was asked, `auto` being CUDA where there is any; UsageError otherwise."""
    if asked == "cpu":
        return asked
    if asked == "auto":
        return "cpu" if why_no_cuda() else "cuda"
    kind, colon, index = asked.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise UsageError(f"unknown device {asked!r}: choose auto, cpu, cuda, or one GPU like cuda:1")
    if reason := why_no_cuda():
        raise UsageError(f"CUDA was asked for, but {reason}; --device cpu runs without")
    if colon and int(index) >= import_torch().cuda.device_count():
        last = import_torch().cuda.device_count() - 1
        raise UsageError(f"CUDA was asked for, but there is no {asked}: the last device here is cuda:{last}")
    return asked


def why_no_cuda() -> str | None:
    """Why torch cannot run on CUDA here, as half a sentence, or None where it can."""
    try:
        torch = import_torch()
    except Exception as error:
        return f"torch cannot be imported: {one_line(error)}"
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        torch.cuda.init()
    except Exception as error:
        return f"torch finds no usable GPU: {one_line(error)}"
    return "torch finds no usable GPU"


def import_torch() -> Any:
    """torch, imported when it is first needed."""
    return importlib.import_module("torch")


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


# --- NVML -------------------------------------------------------------------------------------------------------------


class NoNvml(Exception):
    """NVML does not answer here; the message is the reason."""


def nvml() -> Any:
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


def nvml_handle(device: str) -> tuple[Any, Any]:
    """NVML's module and its handle of a torch device, matched by UUID: NVML ignores CUDA_VISIBLE_DEVICES."""
    if not device.startswith("cuda"):
        raise NoNvml("NVML reads GPUs, and this run is on the CPU")
    module, uuid = nvml(), _uuid(device)
    for name in (uuid, uuid.replace("GPU-", "MIG-", 1)):
        with contextlib.suppress(Exception):
            return module, module.nvmlDeviceGetHandleByUUID(name)
    raise NoNvml(f"NVML does not know the device {uuid}")


def _uuid(device: str) -> str:
    """The UUID as NVML writes it; torch leaves out the prefix."""
    uuid = str(import_torch().cuda.get_device_properties(_index(device)).uuid)
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
        power = _quiet(lambda: api.nvmlDeviceGetPowerUsage(handle))
        events = _quiet(lambda: api.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
        return Reading(
            sm_clock=_quiet(lambda: api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_SM)),
            memory_clock=_quiet(lambda: api.nvmlDeviceGetClockInfo(handle, api.NVML_CLOCK_MEM)),
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
    holders = _quiet(lambda: api.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    others = [p for p in holders if p.pid != os.getpid()]
    if others and len(others) == len(holders):
        count = len(others) - 1
        return (f"{count} more in other PID namespaces, which NVML cannot name here",) if count else ()
    return tuple(_named(api, process) for process in others)


def _named(api: Any, process: Any) -> str:
    name = _quiet(lambda: api.nvmlSystemGetProcessName(process.pid)) or "a process"
    name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    held = process.usedGpuMemory
    memory = "" if held is None else f", {held / 2**30:.1f} GiB"
    return f"{Path(name).name} (pid {process.pid}{memory})"


def _temperature(api: Any, handle: Any) -> int | None:
    """By the newer call, or by the older one where the driver or the package lacks it."""
    sensor = api.NVML_TEMPERATURE_GPU
    newer: int | None = _quiet(lambda: api.nvmlDeviceGetTemperatureV(handle, sensor))
    return newer if newer is not None else _quiet(lambda: api.nvmlDeviceGetTemperature(handle, sensor))


def _quiet(read: Callable[[], Any]) -> Any:
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


# --- the machine of a run ---------------------------------------------------------------------------------------------


def describe(device: str) -> Machine:
    """The machine that a run is on; `device` is `cpu`, `cuda` or `cuda:N`. No host name and no user name."""
    found: dict[str, Any] = {**_host(), **(_gpu(device) if device.startswith("cuda") else _no_gpu())}
    missing = {name: value.reason for name, value in found.items() if isinstance(value, Missing)}
    values = {name: None if isinstance(value, Missing) else value for name, value in found.items()}
    name = values.pop("name") or values["cpu"] or platform.machine()
    missing.pop("name", None)
    return Machine(device=device, device_name=name, packages=packages(), missing=missing, **values)


@dataclass(frozen=True)
class Missing:
    """What stands for a value that could not be read, on its way to `Machine.missing`."""

    reason: str


def packages() -> dict[str, str]:
    """The versions of the packages that matter, as far as they are installed."""
    return {name: version for name in PACKAGES if (version := version_of(name))}


def version_of(package: str) -> str | None:
    """The version that a package gives itself; torch's own says which build it is, its metadata does not always."""
    if package == "torch" and "torch" in sys.modules:
        return str(sys.modules["torch"].__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _host() -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cores": _quiet(lambda: len(os.sched_getaffinity(0))) or os.cpu_count() or Missing("the system does not tell"),
        "threads": _or_missing(lambda: import_torch().get_num_threads()),
        "memory": _or_missing(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _or_missing(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        return Missing(one_line(error))


def cpu_name() -> str | Missing:
    """The CPU's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or Missing("the system does not tell the CPU's name")


def _commit() -> str | Missing:
    """The commit of the current directory, with `+dirty` where tracked files differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except FileNotFoundError:
        return Missing("git is not installed")
    except (OSError, subprocess.SubprocessError):
        return Missing("the current directory is not a git checkout with a commit")


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=20)
    return run.stdout.strip()


GPU_FIELDS = (
    "uuid",
    "driver",
    "cuda",
    "capability",
    "device_memory",
    "sm_clock_max",
    "memory_clock_max",
    "peak_bandwidth",
    "name",
)


def _no_gpu() -> dict[str, Any]:
    return dict.fromkeys(GPU_FIELDS, Missing("this run is on the CPU"))


def _gpu(device: str) -> dict[str, Any]:
    """What torch tells of a GPU, and what NVML adds."""
    torch = import_torch()
    properties = torch.cuda.get_device_properties(_index(device))
    told = {
        "name": properties.name,
        "uuid": _or_missing(lambda: _uuid(device)),
        "cuda": torch.version.cuda or Missing("this torch is built without CUDA"),
        "capability": f"{properties.major}.{properties.minor}",
        "device_memory": properties.total_memory,
    }
    return told | _from_nvml(device)


def _from_nvml(device: str) -> dict[str, Any]:
    try:
        api, handle = nvml_handle(device)
    except NoNvml as error:
        told = ("driver", "sm_clock_max", "memory_clock_max", "peak_bandwidth")
        return dict.fromkeys(told, Missing(str(error)))
    peak = peak_bandwidth(device)
    return {
        "driver": _or_missing(lambda: str(api.nvmlSystemGetDriverVersion())),
        "sm_clock_max": _or_missing(lambda: api.nvmlDeviceGetMaxClockInfo(handle, api.NVML_CLOCK_SM)),
        "memory_clock_max": _or_missing(lambda: api.nvmlDeviceGetMaxClockInfo(handle, api.NVML_CLOCK_MEM)),
        "peak_bandwidth": Missing(peak) if isinstance(peak, str) else str(peak),
    }
