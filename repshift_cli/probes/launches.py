"""Launches: how many operators the host dispatches in one forward, and how many kernels the device then runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from repshift_cli.kernels import launches
from repshift_cli.probes import Context, Measure
from repshift_cli.profiling import kineto
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
BUSY = Metric(
    "device_busy",
    "kernels' time",
    "ms",
    "lower",
    "median",
    "timed",
    "Time that the kernels of one forward take on the GPU, copies and fills included.",
    gateable=False,
    detail=True,
)
METRICS = (OPERATORS, KERNELS, BUSY)
UNSEEN = "torch's profiler shows no kernel of this forward"


def make(context: Context) -> Measure:
    """Forwards under counters of operators and kernels."""
    return LaunchProbe().measure


class LaunchProbe:
    """Counts exactly: the same code, shapes and versions give the same figures."""

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """Operators of the eager forward (views apart, which compute nothing); on CUDA the kernels of the forward as it
        is timed, a graph's or compiled code's own ones, copies and fills included, and the time that they take."""
        counted = (OPERATORS.of(count_operators(step.operators)),)
        if not step.case.device.startswith("cuda"):
            return counted
        ran = kineto.kernels(kineto.events_of(step))
        if not ran:
            return (*counted, KERNELS.missing(UNSEEN), BUSY.missing(UNSEEN))
        return (*counted, KERNELS.of(len(ran)), BUSY.of(sum(e.time_range.elapsed_us() for e in ran) / 1000))


def count_operators(step: Step) -> int:
    """Operators of one forward that compute or copy something; a Triton kernel of pruning's is one."""
    with step.active(), _Operators() as counter, launches.listening(lambda *_: counter.one_more()):
        step.forward()
    return counter.count


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def one_more(self) -> None:
        self.count += 1

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
