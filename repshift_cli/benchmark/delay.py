"""A forward made longer by a share of itself, for the gate's test of itself: both who launches and who works wait."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

from repshift_cli.analysis import stats
from repshift_cli.benchmark.timers import timer_for

TRIAL = 1_000_000
"""Cycles of the device by which its pace is found."""
WINDOW, MOST_WINDOWS = 10, 30
"""Forwards in each look at whether the clocks have risen, and looks at most."""


class Timer(Protocol):
    """Milliseconds of each of `count` runs."""

    def time(self, forward: Callable[[], Any], count: int) -> list[float]: ...


def delayed(forward: Callable[[], Any], device: str, share: float) -> Callable[[], Any]:
    """The forward made longer by `share` of itself on this device."""
    if not device.startswith("cuda"):
        return on_host(forward, share)
    import torch

    return on_device(forward, share, timer_for(device), torch.cuda._sleep)


def on_host(forward: Callable[[], Any], share: float) -> Callable[[], Any]:
    """Where the host does the work itself, it spins for a share of the time that the forward took."""

    def longer() -> Any:
        start = time.perf_counter_ns()
        output = forward()
        _spin(start + (time.perf_counter_ns() - start) * (1 + share), time.perf_counter_ns)
        return output

    return longer


def on_device(
    forward: Callable[[], Any],
    share: float,
    timer: Timer,
    sleep: Callable[[int], Any],
    now: Callable[[], int] = time.perf_counter_ns,
) -> Callable[[], Any]:
    """The device sleeps behind the forward, and the host spins for as long.

    Where the host sets the pace, a sleep of the device alone would fill the time that it idles anyway and let the next
    launches get ahead; where the device does, it has not caught up when the host has spun. How long is found once, when
    two windows of forwards agree, so that the clocks have risen. Not yet run on a GPU.
    """
    waits: list[tuple[int, float]] = []

    def longer() -> Any:
        if not waits:
            waits.append(_calibrated(forward, share, timer, sleep))
        cycles, nanoseconds = waits[0]
        output = forward()
        end = now() + nanoseconds  # launching the sleep is part of what the host spends
        sleep(cycles)
        _spin(end, now)
        return output

    return longer


def _calibrated(
    forward: Callable[[], Any], share: float, timer: Timer, sleep: Callable[[int], Any]
) -> tuple[int, float]:
    """The device's cycles and the host's nanoseconds that are a share of the forward."""
    windows: list[list[float]] = []
    while not stats.steady(windows) and len(windows) < MOST_WINDOWS:
        windows.append(timer.time(forward, WINDOW))
    milliseconds = share * statistics.median(windows[-1])
    per_cycle = statistics.median(timer.time(lambda: sleep(TRIAL), 5)) / TRIAL
    return max(1, round(milliseconds / per_cycle)), milliseconds * 1e6


def _spin(end: float, now: Callable[[], int]) -> None:
    while now() < end:
        pass
