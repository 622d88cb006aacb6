"""Launches: how many operators the host dispatches in one forward, and how many kernels the device then runs."""

from __future__ import annotations

from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from repshift_cli.probes import Context, Measure
from repshift_cli.records import Measurement, Metric, Step

OPERATORS = Metric(
    "operators",
    "operators",
    "",
    "lower",
    "value",
    "counted",
    "Operators that the host dispatches in one forward, views apart.",
    detail=True,
)
KERNELS = Metric(
    "kernels",
    "kernels",
    "",
    "lower",
    "value",
    "counted",
    "Kernels, copies and fills that the GPU runs in one forward as it is timed.",
)
METRICS = (OPERATORS, KERNELS)


def unavailable(device: str) -> str | None:
    """None: it is counted on every device."""
    return None


def make(context: Context) -> Measure:
    """Forwards under counters of operators and kernels."""
    return LaunchProbe().measure


class LaunchProbe:
    """Counts exactly: the same code, shapes and versions give the same figures."""

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """Operators of the eager forward (views apart, which compute nothing); on CUDA the kernels of the forward as it
        is timed, a graph's or compiled code's own ones, copies and fills included."""
        counted = (OPERATORS.of(count_operators(step.operators)),)
        return (*counted, KERNELS.of(_count_kernels(step))) if step.case.device.startswith("cuda") else counted


def count_operators(step: Step) -> int:
    """Operators of one forward that compute or copy something."""
    with step.active(), _Operators() as counter:
        step.forward()
    return counter.count


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += not _is_view(func, args, out)
        return out


def _is_view(func: Any, args: Any, out: Any) -> bool:
    """Whether what it gives back is one of its inputs in another shape; a reshape may be one or a copy."""
    if not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
        return False
    tensors = [t for t in (*args[:1], out) if isinstance(t, torch.Tensor)]
    return len(tensors) < 2 or tensors[0].untyped_storage().data_ptr() == tensors[1].untyped_storage().data_ptr()


def _count_kernels(step: Step) -> int:
    """What the device ran in one forward. Not yet seen on a GPU."""
    with step.active():
        step.forward()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as recorded:
            step.forward()
            torch.cuda.synchronize()
    return sum(e.device_type == DeviceType.CUDA for e in recorded.events())
