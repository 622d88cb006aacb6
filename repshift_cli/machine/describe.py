"""The machine of a run, as its file holds it, read without changing anything; whatever is missing says why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repshift_cli.machine import device as devices
from repshift_cli.machine.nvml import NoNvml, nvml_handle, peak_bandwidth, quiet, uuid_of
from repshift_cli.records import Machine, one_line

PACKAGES = ("torch", "transformers", "flash-attn", "flash-attn-4", "nvidia-ml-py", "numpy", "triton", "timm")
"""The packages whose versions a run stores, where they are installed."""


def describe(device: str) -> Machine:
    """The machine that a run is on; `device` is `cpu`, `cuda` or `cuda:N`. No host name and no user name."""
    found: dict[str, Any] = {**_host(), **(_gpu(device) if device.startswith("cuda") else _no_gpu())}
    missing = {name: value.reason for name, value in found.items() if isinstance(value, Missing)}
    values = {name: None if isinstance(value, Missing) else value for name, value in found.items()}
    name = values.pop("name") or values["cpu"] or platform.machine()
    missing.pop("name", None)
    return Machine(device=device, device_name=name, packages=package_versions(), missing=missing, **values)


@dataclass(frozen=True)
class Missing:
    """What stands for a value that could not be read, on its way to `Machine.missing`."""

    reason: str


def package_versions() -> dict[str, str]:
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
        "cores": quiet(lambda: len(os.sched_getaffinity(0))) or os.cpu_count() or Missing("the system does not tell"),
        "threads": _or_missing(lambda: devices.import_torch().get_num_threads()),
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
    torch = devices.import_torch()
    properties = torch.cuda.get_device_properties(devices.index_of(device))
    told = {
        "name": properties.name,
        "uuid": _or_missing(lambda: uuid_of(device)),
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
