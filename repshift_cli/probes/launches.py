"""Launches: how many operators the host dispatches in one forward, and how many kernels the device then runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from repshift_cli.kernels import launches
from repshift_cli.profiling import kineto
from repshift_cli.records import Measurement, Metric, Step

OPERATORS = Metric("operators", "operators", "", "lower", "value", 115, "counted")
KERNELS = Metric("kernels", "kernels", "", "lower", "value", 28, "counted")
BUSY = Metric("device_busy", "kernels' time", "ms", "lower", "median", 116, "timed")
HOST_BOUND = 0.7
"""Where the kernels take less than this share of a forward, the device waits for the host."""


class LaunchProbe:
    """Counts exactly: the same code, shapes and versions give the same figures."""

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """Operators of the eager forward (views apart, which compute nothing); on CUDA the kernels of the forward as it
        is timed, a graph's or compiled code's own ones, copies and fills included, and the time that they take."""
        counted = (OPERATORS.of(count_operators(step.operators)),)
        if not step.case.device.startswith("cuda"):
            return counted
        ran = kineto.kernels(kineto.events_of(step))
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


def paced_by_host(measurements: Sequence[Measurement], milliseconds: float, execution: str) -> list[str]:
    """What to say of a forward of so many milliseconds, where its kernels fill too little of that time."""
    busy = next((m for m in measurements if m.metric == BUSY.metric and m.samples), None)
    if busy is None or busy.samples[0] >= HOST_BOUND * milliseconds:
        return []
    cure = "a larger batch" if execution == "graph" else "--cuda-graph, or a larger batch,"
    return [
        f"the host sets the pace: the kernels take {busy.samples[0]:.2f} of {milliseconds:.2f} ms, so fewer tokens "
        f"save little; {cure} shows what the device can do"
    ]
