"""What this computer has, read without changing anything; whatever is missing says why.

torch and NVML are imported inside functions: the help text of the tool needs neither.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repshift_cli.catalog import find_spec, one_line
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

NVIDIA_PARAMETERS = Path("/proc/driver/nvidia/params")
CAP_SYS_ADMIN = 21


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
    if colon and int(index) >= _torch().cuda.device_count():
        last = _torch().cuda.device_count() - 1
        raise UsageError(f"CUDA was asked for, but there is no {asked}: the last device here is cuda:{last}")
    return asked


def why_no_cuda() -> str | None:
    """Why torch cannot run on CUDA here, as half a sentence, or None where it can."""
    try:
        torch = _torch()
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


def _torch() -> Any:
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
    try:
        return module, module.nvmlDeviceGetHandleByUUID(uuid)
    except Exception as error:
        raise NoNvml(f"NVML does not know the device {uuid}: {one_line(error)}") from error


def _uuid(device: str) -> str:
    """The UUID as NVML writes it; torch leaves out the prefix."""
    uuid = str(_torch().cuda.get_device_properties(_index(device)).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


@dataclass(frozen=True)
class Reading:
    """The state of a GPU at one moment: MHz, degrees Celsius, watts; None for what it does not tell."""

    sm_clock: int | None
    memory_clock: int | None
    temperature: int | None
    power: float | None
    throttle: tuple[str, ...] = ()
    hardware_throttled: bool = False


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
        )


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
    held = next((p.usedGpuMemory for p in holders if p.pid == os.getpid()), None)
    return "NVML does not list this process (another PID namespace)" if held is None else int(held)


def _resident_bytes() -> int | str:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return "this system has no /proc/self/statm"


# --- the machine of a run ---------------------------------------------------------------------------------------------


def describe(device: str) -> Machine:
    """The machine that a run is on; `device` is `cpu`, `cuda` or `cuda:N`. No host name and no user name."""
    found: dict[str, Any] = {**_host(), **(_gpu(device) if device.startswith("cuda") else _no_gpu())}
    missing = {name: value.reason for name, value in found.items() if isinstance(value, _Missing)}
    values = {name: None if isinstance(value, _Missing) else value for name, value in found.items()}
    name = values.pop("name") or values["cpu"] or platform.machine()
    missing.pop("name", None)
    return Machine(device=device, device_name=name, packages=packages(), missing=missing, **values)


@dataclass(frozen=True)
class _Missing:
    reason: str


def packages() -> dict[str, str]:
    """The versions of the packages that matter, as far as they are installed."""
    return {name: version for name in PACKAGES if (version := _version(name))}


def _version(package: str) -> str | None:
    """The version that a package gives itself; torch's own says which build it is, its metadata does not always."""
    if package == "torch" and "torch" in sys.modules:
        return str(sys.modules["torch"].__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _host() -> dict[str, Any]:
    return {
        "cpu": _cpu(),
        "cores": _quiet(lambda: len(os.sched_getaffinity(0))) or os.cpu_count() or _Missing("the system does not tell"),
        "threads": _or_missing(lambda: _torch().get_num_threads()),
        "memory": _or_missing(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _or_missing(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        return _Missing(one_line(error))


def _cpu() -> str | _Missing:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or _Missing("the system does not tell the CPU's name")


def _commit() -> str | _Missing:
    """The commit of the current directory, with `+dirty` where tracked files differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except FileNotFoundError:
        return _Missing("git is not installed")
    except (OSError, subprocess.SubprocessError):
        return _Missing("the current directory is not a git checkout with a commit")


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=20)
    return run.stdout.strip()


GPU_FIELDS = ("uuid", "driver", "cuda", "capability", "device_memory", "sm_clock_max", "memory_clock_max", "name")


def _no_gpu() -> dict[str, Any]:
    return dict.fromkeys(GPU_FIELDS, _Missing("this run is on the CPU"))


def _gpu(device: str) -> dict[str, Any]:
    """What torch tells of a GPU, and what NVML adds."""
    torch = _torch()
    properties = torch.cuda.get_device_properties(_index(device))
    told = {
        "name": properties.name,
        "uuid": _or_missing(lambda: _uuid(device)),
        "cuda": torch.version.cuda or _Missing("this torch is built without CUDA"),
        "capability": f"{properties.major}.{properties.minor}",
        "device_memory": properties.total_memory,
    }
    return told | _from_nvml(device)


def _from_nvml(device: str) -> dict[str, Any]:
    try:
        api, handle = nvml_handle(device)
    except NoNvml as error:
        return dict.fromkeys(("driver", "sm_clock_max", "memory_clock_max"), _Missing(str(error)))
    return {
        "driver": _or_missing(lambda: str(api.nvmlSystemGetDriverVersion())),
        "sm_clock_max": _or_missing(lambda: api.nvmlDeviceGetMaxClockInfo(handle, api.NVML_CLOCK_SM)),
        "memory_clock_max": _or_missing(lambda: api.nvmlDeviceGetMaxClockInfo(handle, api.NVML_CLOCK_MEM)),
    }


# --- what `repshift doctor` says --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One line of `repshift doctor`: `ok` is True or False, or None where it does not apply or cannot be told."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def checks() -> list[Check]:
    """What this machine has, and how to get what it lacks; nothing heavier than torch is imported."""
    return [
        Check("python", True, f"{platform.python_version()}, {platform.platform()}"),
        _check_cpu(),
        _check_torch(),
        _check_gpu(),
        *_check_nvml(),
        _check_package("transformers", "transformers", "pip install 'transformers>=5.17'"),
        _check_package("timm", "timm", "pip install 'repshift[timm]'"),
        _check_package(
            "flash-attn 2", "flash_attn", "pip install 'repshift[flash-attn]' (built with nvcc)", "flash-attn"
        ),
        _check_package(
            "flash-attn 3", "flash_attn_interface", "build the folder hopper/ of the flash-attention repository"
        ),
        _check_package("flash-attn 4", "flash_attn.cute", "pip install flash-attn-4", "flash-attn-4"),
        _check_package("triton", "triton", "comes with the CUDA builds of torch for Linux"),
        _check_program("C compiler", ("cc", "gcc", "clang"), "install gcc (Debian: apt install gcc)"),
        _check_program(
            "nvcc", ("nvcc", "/usr/local/cuda/bin/nvcc"), "install the CUDA toolkit; only flash-attn 2 and 3 need it"
        ),
        _check_counters(),
        _check_program("ncu", ("ncu", "/usr/local/cuda/bin/ncu"), "install Nsight Compute, or add it to PATH"),
        _check_package("tensorboard", "tensorboard", "pip install 'repshift[tensorboard]'"),
        _check_package("torch-tb-profiler", "torch_tb_profiler", "pip install 'repshift[tensorboard]'"),
    ]


def _check_cpu() -> Check:
    cpu, cores = _cpu(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("CPU", True, f"{cpu.reason if isinstance(cpu, _Missing) else cpu}, {cores} cores")


def _check_torch() -> Check:
    try:
        torch = _torch()
    except Exception as error:
        return Check("torch", False, f"cannot be imported: {one_line(error)}", "pip install 'torch>=2.11'")
    return Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _check_gpu() -> Check:
    if reason := why_no_cuda():
        remedy = "an NVIDIA GPU, its driver and a CUDA build of torch; without them everything runs on the CPU"
        return Check("GPU", False, reason, remedy)
    p = _torch().cuda.get_device_properties(0)
    detail = f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}, CUDA {_torch().version.cuda}"
    return Check("GPU", True, detail)


def _check_nvml() -> tuple[Check, Check]:
    """The driver as NVML tells it, and whether NVML reads the clocks."""
    remedy = "install the NVIDIA driver; without it clocks, throttling and energy are not read"
    try:
        driver = str(nvml().nvmlSystemGetDriverVersion())
    except Exception as error:
        remedy = "pip install nvidia-ml-py" if "nvidia-ml-py" in str(error) else remedy
        return (
            Check("driver", False, "no NVIDIA driver answers", "install the NVIDIA driver"),
            Check("NVML", False, one_line(error), remedy),
        )
    reason = why_no_cuda()
    watch = None if reason else Watch("cuda")
    reading = watch.sample() if watch else None
    if reading is None:
        return Check("driver", True, driver), Check("NVML", False, reason or (watch.reason if watch else "") or "")
    detail = f"SM {reading.sm_clock} MHz, memory {reading.memory_clock} MHz, {reading.temperature} C, {_whole(reading.power)} W"
    return Check("driver", True, driver), Check("NVML", True, "; ".join([detail, *reading.throttle]))


def _check_package(name: str, module: str, remedy: str, package: str | None = None) -> Check:
    """Whether a module is there, without importing it; a bare folder without a module file does not count."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return Check(name, False, "not installed", remedy)
    return Check(name, True, _version(package or module.replace("_", "-")) or "installed")


def _check_program(name: str, programs: tuple[str, ...], remedy: str) -> Check:
    path = next(filter(None, map(shutil.which, programs)), None)
    return Check(name, True, path) if path else Check(name, False, "not found", remedy)


def _check_counters() -> Check:
    """Whether this process may read the GPU's performance counters."""
    name = "hardware counters"
    remedy = "run as root or with CAP_SYS_ADMIN, or set the driver option NVreg_RestrictProfilingToAdminUsers=0"
    try:
        text = NVIDIA_PARAMETERS.read_text(encoding="utf-8")
    except OSError:
        return Check(name, None, f"cannot be told: no {NVIDIA_PARAMETERS}", "install the NVIDIA driver")
    values = dict(line.partition(":")[::2] for line in text.splitlines())
    restricted = values.get("RmProfilingAdminOnly", "").strip()
    if restricted == "0":
        return Check(name, True, "open to every user (RmProfilingAdminOnly: 0)")
    if _is_admin():
        return Check(name, True, "restricted to administrators, and this process is one")
    return Check(name, False, f"restricted to administrators (RmProfilingAdminOnly: {restricted or 'unknown'})", remedy)


def _is_admin() -> bool:
    """Whether this process is allowed what CAP_SYS_ADMIN allows; root in a container often is not."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
        return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1)
    except (OSError, StopIteration):
        return hasattr(os, "geteuid") and os.geteuid() == 0
