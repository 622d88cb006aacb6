"""DRAM traffic by NVML's GPU performance monitoring (label `sampled`), Hopper and later: a rate over a loop of seconds.

The metric is the share of the peak bandwidth in use, read and written together, over the whole card: what other
processes move counts too. Written from the documentation; it has not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from repshift_cli.counters.base.traffic import CounterError, Traffic
from repshift_cli.machine import device as devices
from repshift_cli.machine import nvml
from repshift_cli.records import one_line

LABEL = "sampled"
RANK = 3
LOOP_SECONDS = 3.0
"""The work is repeated for at least this long between two samples; NVML asks for more than 0.1 s."""


def unavailable(device: str) -> str | None:
    """Why GPM cannot tell anything here, or None."""
    try:
        api, handle = nvml.nvml_handle(device)
    except nvml.NoNvml as error:
        return str(error)
    try:
        if _is_mig(api, handle):
            return "GPM counts the whole card, and this is a MIG slice of it"
        if not api.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            return "GPM is not supported on this GPU (it needs Hopper or later)"
    except Exception as error:
        return f"GPM does not answer: {one_line(error)}"
    peak = nvml.peak_bandwidth(device)
    return peak if isinstance(peak, str) else None


def identity() -> str:
    """Nothing of its own: the driver counts."""
    return ""


def command(worker: Sequence[str], folder: Path) -> list[str]:
    """The child's command line: as it is."""
    return list(worker)


def collect(counted: Any, folder: Path, ranges: int) -> list[Traffic]:
    """The ranges that the child counted: [[bytes], ...], both directions in one."""
    return [Traffic(total) for (total,) in counted]


@contextlib.contextmanager
def counting(device: str) -> Iterator[Callable[[Callable[[], Any]], list[float]]]:
    """In the child: a function that repeats some work for seconds and gives the bytes of one run of it."""
    try:
        api, handle = nvml.nvml_handle(device)
    except nvml.NoNvml as error:
        raise CounterError(str(error)) from error
    peak = nvml.peak_bandwidth(device)
    if isinstance(peak, str):
        raise CounterError(peak)
    synchronize = devices.import_torch().cuda.synchronize

    def count(work: Callable[[], Any]) -> list[float]:
        share, seconds, times = sample(api, handle, work, synchronize)
        return [share * peak.bytes_per_second * seconds / times]

    yield count


def sample(
    api: Any,
    handle: Any,
    work: Callable[[], Any],
    synchronize: Callable[[], Any],
    now: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, int]:
    """The share of the peak bandwidth in use while the work was repeated, for how many seconds, and how many times."""
    work()
    synchronize()
    first, last = api.nvmlGpmSampleAlloc(), api.nvmlGpmSampleAlloc()
    try:
        api.nvmlGpmSampleGet(handle, first)
        begun, times = now(), 0
        while now() - begun < LOOP_SECONDS:
            work()
            synchronize()
            times += 1
        api.nvmlGpmSampleGet(handle, last)
        return _utilisation(api, first, last), now() - begun, times
    except Exception as error:
        raise error if isinstance(error, CounterError) else CounterError(f"GPM: {one_line(error)}") from error
    finally:
        for taken in (first, last):
            api.nvmlGpmSampleFree(taken)


def _utilisation(api: Any, first: Any, last: Any) -> float:
    """DRAM bandwidth in use between two samples, 0 to 1."""
    asked = api.c_nvmlGpmMetricsGet_t()
    asked.version, asked.numMetrics = api.NVML_GPM_METRICS_GET_VERSION, 1
    asked.sample1, asked.sample2 = first, last
    asked.metrics[0].metricId = api.NVML_GPM_METRIC_DRAM_BW_UTIL
    metric = api.nvmlGpmMetricsGet(asked).metrics[0]
    if metric.nvmlReturn != 0:
        raise CounterError(f"GPM gives no DRAM bandwidth (NVML return code {metric.nvmlReturn})")
    return float(metric.value) / 100


def _is_mig(api: Any, handle: Any) -> bool:
    """Whether the handle is a MIG slice; pynvml gives the answer as a C integer."""
    told = api.nvmlDeviceIsMigDeviceHandle(handle)
    return bool(getattr(told, "value", told))
