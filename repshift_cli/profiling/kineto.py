"""torch's profiler, opened in one place, because on CUDA it leaves something behind: CUPTI stays attached."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from repshift_cli.records import Step

_attached = False


def profiler(on_cuda: bool, **settings: Any) -> Any:
    """torch's profiler of the host and, where asked for, of the device; `settings` are its own."""
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
    on_cuda = step.case.device.startswith("cuda")
    with step.active():
        step.forward()
        if on_cuda:
            torch.cuda.synchronize()
        with profiler(on_cuda) as recorded:
            step.forward()
            if on_cuda:
                torch.cuda.synchronize()
    return list(recorded.events())


def names(events: list[Any], device: DeviceType) -> Counter[str]:
    """How often each name is among the events of the host (`DeviceType.CPU`) or of the device."""
    return Counter(e.name for e in events if e.device_type == device)
