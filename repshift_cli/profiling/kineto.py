"""torch's profiler, opened in one place, because on CUDA it leaves something behind: CUPTI stays attached."""

from __future__ import annotations

from collections import Counter
from typing import Any

from repshift_cli.records import Step

HOST, DEVICE = "CPU", "CUDA"
"""Where an event took place, as torch names it."""

HEAD = 256
"""Kernels that are launched ahead of what is looked at: of a process's k-th session CUPTI may lose the first k records,
where the device idled between them (pytorch#192021)."""
LAUNCHED_AHEAD = "spin_kernel"
"""The kernel of `torch.cuda._sleep`."""

_attached = False


def profiler(on_cuda: bool, **settings: Any) -> Any:
    """torch's profiler of the host and, where asked for, of the device; `settings` are its own."""
    from torch.profiler import ProfilerActivity, profile

    global _attached
    _attached = _attached or on_cuda
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    return profile(activities=activities, acc_events=True, **settings)


def attached() -> bool:
    """Whether this process has traced a device: CUPTI then slows the host's launches until the process ends.

    torch lets go of it only under TEARDOWN_CUPTI=1, for which a race is described (kineto#1554); pytorch#146604 reports
    10 to 20% after profiling had ended. Not yet seen on a GPU here.
    """
    return _attached


def events_of(step: Step) -> list[Any]:
    """The profiler's events of one forward, after one that warms up."""
    import torch

    on_cuda = step.case.device.startswith("cuda")
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    with step.active():
        step.forward()
        wait()
        with profiler(on_cuda) as recorded:
            for _ in range(HEAD if on_cuda else 0):
                torch.cuda._sleep(1)
            wait()
            step.forward()
            wait()
    return [e for e in recorded.events() if LAUNCHED_AHEAD not in e.name]


def kernels(events: list[Any]) -> list[Any]:
    """The events that are work of the device; the ranges that torch draws around it there are none (torch.compile opens
    one around each of its graphs, as long as all kernels in it)."""
    return [e for e in events if e.device_type.name == DEVICE and not e.is_user_annotation]


def names(events: list[Any], place: str) -> Counter[str]:
    """How often each name is among the events of HOST or of DEVICE."""
    return Counter(e.name for e in (kernels(events) if place == DEVICE else events) if e.device_type.name == place)
