"""Latency: CUDA events around every forward, or the host's monotonic clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class CudaTimer:
    """Device time between two events on the current stream."""

    source = "CUDA events"

    def time(self, forward: Callable[[], Any], count: int) -> list[float]:
        """`count` forwards after each other: milliseconds of each, from the device's own clock."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in events:
            start.record()
            forward()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]


class HostTimer:
    """Wall time of the host, for devices that work in step with it (the CPU)."""

    source = "perf_counter_ns"

    def time(self, forward: Callable[[], Any], count: int) -> list[float]:
        """`count` forwards after each other: milliseconds of each."""
        samples = []
        for _ in range(count):
            start = time.perf_counter_ns()
            forward()
            samples.append((time.perf_counter_ns() - start) / 1e6)
        return samples


def timer_for(device: str) -> CudaTimer | HostTimer:
    """The timer that measures what the device really spends."""
    return CudaTimer() if device.startswith("cuda") else HostTimer()
