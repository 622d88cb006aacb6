"""`repshift doctor`: what this machine has and can measure."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.counters.base import permission
from repshift_cli.machine import device as devices
from repshift_cli.machine import nvml
from repshift_cli.machine.describe import Missing, cpu_name, version_of
from repshift_cli.machine.packages import install, is_installed
from repshift_cli.records import one_line
from repshift_cli.renderers import Document

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from repshift_cli.records import Calibration

STATES = {True: ("yes", "green"), False: ("no", "yellow"), None: ("?", "yellow")}


@output_options("doctor", laid_out=False)
def doctor(
    counters: Annotated[
        bool,
        typer.Option(
            "--counters", help="Calibrate every instrument that counts HBM traffic on known bytes, and show its ratios."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="With --counters: auto, cuda, cuda:1.")] = "auto",
    *,
    outputs: Outputs,
) -> None:
    """Say what this machine has, and how to get what it lacks."""
    lines = list(_calibrated(devices.choose_device(device)) if counters else checks())
    outputs.write(Document("doctor", {"checks": lines}))
    if not outputs.own_stdout:
        _show(lines)


def _show(lines: Iterable[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in lines:
        state = Text(*STATES[check.ok])
        table.add_row(check.name, state, Text(check.detail).append(f"; {check.remedy}" if check.remedy else "", "dim"))
    Console(highlight=False).print(table)


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
        _check_driver(),
        _check_nvml(),
        _check_package("transformers", "transformers", "pip install 'transformers>=5.17'"),
        _check_package("timm", "timm", f"{install('timm')}, which leaves torch as it is"),
        _check_package("flash-attn 2", "flash_attn", f"{install('flash-attn')} (built with nvcc)", "flash-attn"),
        _check_package(
            "flash-attn 3", "flash_attn_interface", "build the folder hopper/ of the flash-attention repository"
        ),
        _check_package("flash-attn 4", "flash_attn.cute", "pip install --pre flash-attn-4", "flash-attn-4"),
        _check_package("triton", "triton", "comes with the CUDA builds of torch for Linux"),
        _check_program("C compiler", ("cc", "gcc", "clang"), "install gcc (Debian: apt install gcc)"),
        _check_program(
            "nvcc", ("nvcc", "/usr/local/cuda/bin/nvcc"), "install the CUDA toolkit; only flash-attn 2 and 3 need it"
        ),
        _check_counters(),
        _check_program("ncu", ("ncu", "/usr/local/cuda/bin/ncu"), "install Nsight Compute, or add it to PATH"),
        _check_package("tensorboard", "tensorboard", install("tensorboard")),
        _check_package("torch-tb-profiler", "torch_tb_profiler", install("tensorboard")),
        _what_is_measured(),
    ]


def _check_cpu() -> Check:
    cpu, cores = (
        cpu_name(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    return Check("CPU", True, f"{cpu.reason if isinstance(cpu, Missing) else cpu}, {cores} cores")


def _check_torch() -> Check:
    try:
        torch = devices.import_torch()
    except Exception as error:
        return Check("torch", False, f"cannot be imported: {one_line(error)}", "pip install 'torch>=2.11'")
    return Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads")


def _check_gpu() -> Check:
    if reason := devices.why_no_cuda():
        remedy = "an NVIDIA GPU, its driver and a CUDA build of torch; without them everything runs on the CPU"
        return Check("GPU", False, reason, remedy)
    p = devices.import_torch().cuda.get_device_properties(0)
    detail = (
        f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}, CUDA {devices.import_torch().version.cuda}"
    )
    return Check("GPU", True, detail)


def _check_driver() -> Check:
    try:
        return Check("driver", True, str(nvml.started().nvmlSystemGetDriverVersion()))
    except Exception as error:
        return Check("driver", False, one_line(error), "install the NVIDIA driver")


def _check_nvml() -> Check:
    """Whether NVML reads the state of the first GPU."""
    remedy = "install the NVIDIA driver; without it clocks, throttling and energy are not read"
    if reason := devices.why_no_cuda():
        return Check("NVML", False, f"no GPU to read: {reason}", remedy)
    watch = nvml.Watch("cuda")
    reading = watch.sample()
    if reading is None:
        remedy = remedy if is_installed("pynvml") else "pip install nvidia-ml-py"
        return Check("NVML", False, watch.reason or "", remedy)
    told: dict[str, tuple[float | None, str]] = {
        "SM": (reading.sm_clock, "MHz"),
        "memory": (reading.memory_clock, "MHz"),
    }
    told |= {"temperature": (reading.temperature, "C"), "power": (reading.power and round(reading.power), "W")}
    words = [f"{name} {'not told' if value is None else f'{value} {unit}'}" for name, (value, unit) in told.items()]
    return Check("NVML", True, ", ".join([*words, *reading.throttle]))


def _what_is_measured() -> Check:
    """The quantities that `repshift bench` gives on this machine."""
    if devices.why_no_cuda():
        words, counted = "latency (host clock), peak memory (torch's profiler)", ""
    else:
        words = (
            "latency (CUDA events), peak memory (torch's allocator), energy, clocks and throttling where NVML answers"
        )
        counted = "; counted where `repshift doctor --counters` says so"
    return Check("can measure", True, f"{words}, MACs, fidelity, HBM traffic (modelled{counted})")


def _check_package(name: str, module: str, remedy: str, package: str | None = None) -> Check:
    """Whether a module is there, without importing it; a bare folder without a module file does not count."""
    if not is_installed(module):
        return Check(name, False, "not installed", remedy)
    return Check(name, True, version_of(package or module.replace("_", "-")) or "installed")


def _check_program(name: str, programs: tuple[str, ...], remedy: str) -> Check:
    path = next(filter(None, map(shutil.which, programs)), None)
    return Check(name, True, path) if path else Check(name, False, "not found", remedy)


def _check_counters() -> Check:
    """Whether this process may read the GPU's performance counters."""
    allowed, words = permission.permission()
    remedy = {True: "", False: permission.REMEDY, None: "install the NVIDIA driver"}[allowed]
    return Check("hardware counters", allowed, words, remedy)


# --- calibration ------------------------------------------------------------------------------------------------------


def _calibrated(device: str) -> Iterator[Check]:
    """Every instrument's calibration, taken now and kept for `repshift bench`; then the peak that shares refer to."""
    from repshift_cli.commands.shared.progress import Bar
    from repshift_cli.counters.base import calibration, instruments

    with Bar(len(instruments.ORDER)) as bar:
        for name in instruments.ORDER:
            bar.phase(f"calibrating {name}")
            if device.startswith("cuda"):
                yield _calibration_line(calibration.kept(calibration.calibrate(name, device)))
            else:
                yield Check(name, False, f"no GPU to count on: {devices.why_no_cuda() or 'the CPU was asked for'}")
            bar.next()
    yield Check("model", True, "always there: modelled (cold cache), from what the operators read and write")
    peak = nvml.peak_bandwidth(device)
    yield Check("peak bandwidth", not isinstance(peak, str), str(peak))


def _calibration_line(found: Calibration) -> Check:
    """The ratios, and what is wrong with them."""
    told = {"read": found.read, "written": found.written} if found.read else {"read and written": found.total}
    ratios = [f"{name} {ratio:.3f}" for name, ratio in told.items() if ratio is not None]
    if not ratios:
        return Check(found.provider, False, found.reason or "")
    words = (
        found.label,
        f"{', '.join(ratios)} of the known bytes",
        f"twice the work {found.doubled or 0:.3f} times as much",
        f"{(found.empty or 0) / 2**20:.1f} MiB where nearly nothing ran",
    )
    return Check(found.provider, found.passed, "; ".join(words), "" if found.passed else f"not used: {found.reason}")
