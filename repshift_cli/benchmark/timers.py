"""Latency: CUDA events around every forward, or the host's monotonic clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

CPU_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
"""Linux's word for the size of the last-level cache, like 32768K."""
UNKNOWN_CACHE = 32 << 20
"""Bytes that a CPU's last-level cache is taken for where the system does not name its size."""


def _nothing() -> None:
    """Leave the caches as they are."""


@dataclass(frozen=True)
class CudaTimer:
    """Device time between two events on the current stream; `before` is queued ahead of each, outside what is timed."""

    before: Callable[[], Any] = _nothing
    source = "CUDA events"

    def time(self, forward: Callable[[], Any], count: int) -> list[float]:
        """`count` forwards after each other: milliseconds of each, from the device's own clock."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in events:
            self.before()
            start.record()
            forward()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]


@dataclass(frozen=True)
class HostTimer:
    """Wall time of the host, for devices that work in step with it (the CPU); `before` runs ahead of each, untimed."""

    before: Callable[[], Any] = _nothing
    source = "perf_counter_ns"

    def time(self, forward: Callable[[], Any], count: int) -> list[float]:
        """`count` forwards after each other: milliseconds of each."""
        samples = []
        for _ in range(count):
            self.before()
            start = time.perf_counter_ns()
            forward()
            samples.append((time.perf_counter_ns() - start) / 1e6)
        return samples


def timer_for(device: str, cold: bool = False) -> CudaTimer | HostTimer:
    """The timer that measures what the device really spends, with its caches `cold` before each forward or as they are.

    A model's forward evicts its own cache; an operator alone would find its inputs there.
    """
    before = flusher(device) if cold else _nothing
    return CudaTimer(before) if device.startswith("cuda") else HostTimer(before)


@cache
def flusher(device: str) -> Callable[[], Any]:
    """What evicts the last-level cache: twice its size is overwritten."""
    with torch.inference_mode(False):  # gradients are timed too
        return torch.empty(2 * cache_bytes(device), dtype=torch.uint8, device=device).zero_


def cache_bytes(device: str) -> int:
    """Bytes of the device's last-level cache: a GPU's L2, a CPU's L3."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        return int(CPU_CACHE.read_text().strip().removesuffix("K")) << 10
    except (ValueError, OSError):
        return UNKNOWN_CACHE
