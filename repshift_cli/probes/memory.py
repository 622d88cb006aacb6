"""Memory of one forward: allocator peak and resting level, what the process and the card hold, each by its own name."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from repshift_cli.probes import Context, Measure
from repshift_cli.records import Measurement, Metric, Step

_ALLOCATOR = ("B", "lower", "value", "allocator")
_DRIVER = ("B", "lower", "value", "driver")
PEAK = Metric(
    "memory_peak_allocated",
    "peak mem",
    *_ALLOCATOR,
    "The allocator's highest level in one forward, weights and inputs included.",
)
ABOVE = Metric(
    "memory_peak_above_resting",
    "peak above resting",
    *_ALLOCATOR,
    "How far that level is above what rests between forwards.",
    detail=True,
)
RESTING = Metric(
    "memory_resting",
    "resting",
    *_ALLOCATOR,
    "What stays allocated between forwards: weights, buffers, inputs.",
    detail=True,
)
RESERVED = Metric(
    "memory_peak_reserved",
    "peak reserved",
    *_ALLOCATOR,
    "The most that torch's caching allocator held of the GPU in one forward, its cache included.",
    detail=True,
)
PROCESS = Metric(
    "memory_process",
    "process",
    *_DRIVER,
    "Memory that the driver (on a CPU the kernel) counts for this process after the forward.",
    detail=True,
)
CARD = Metric(
    "memory_card",
    "card",
    *_DRIVER,
    "Memory that the driver counts for the whole card, other programs included.",
    detail=True,
)
METRICS = (PEAK, ABOVE, RESTING, RESERVED, PROCESS, CARD)

_GRAPH = "a CUDA graph replays in its private pool; see the eager row"


def make(context: Context) -> Measure:
    """The allocator, and what the driver tells."""
    return MemoryProbe(context.process_bytes, context.card_bytes, context.free_memory).measure


class MemoryProbe:
    """`process_bytes()` gives what the driver (or the kernel) counts for this process, or a sentence why it cannot;
    `card_bytes()` what it counts for the whole card; `free()` gives back what others have left behind."""

    def __init__(
        self,
        process_bytes: Callable[[], int | str],
        card_bytes: Callable[[], int | str] = lambda: "no GPU in this run",
        free: Callable[[], None] = lambda: None,
    ) -> None:
        self._process_bytes, self._card_bytes, self._free = process_bytes, card_bytes, free

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """One forward in a pass of its own."""
        if step.case.execution == "graph":
            return tuple(m.missing(_GRAPH) for m in METRICS)
        measured = self._cuda(step) if step.case.device.startswith("cuda") else _cpu(step)
        held = ((PROCESS, self._process_bytes()), (CARD, self._card_bytes()))
        return (*measured, *(m.missing(told) if isinstance(told, str) else m.of(told) for m, told in held))

    def _cuda(self, step: Step) -> tuple[Measurement, ...]:
        """cuBLAS' workspaces of streams that others used go first; the one of this forward rests with the weights."""
        with step.active():
            self._free()
            step.forward()
            torch.cuda.synchronize()
            gc.collect()
            torch.cuda.empty_cache()
            resting = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step.forward()
            torch.cuda.synchronize()
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return (PEAK.of(peak), ABOVE.of(peak - resting), RESTING.of(resting), RESERVED.of(reserved))


def _cpu(step: Step) -> tuple[Measurement, ...]:
    """The same from the profiler's record of every CPU allocation, over the weights and inputs that rest there."""
    with step.active():
        step.forward()  # what the very first one keeps (the places of a fixed cut) rests from then on
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
            step.forward()
    changes = [(e.start_ns(), e.nbytes()) for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    above = highest([change for _, change in sorted(changes, key=lambda c: c[0])])
    resting = resting_bytes(step)
    nothing = "a CPU has no caching allocator"
    return (
        PEAK.of(resting + above),
        ABOVE.of(above),
        RESTING.of(resting),
        RESERVED.missing(nothing),
    )


def highest(changes: list[int]) -> int:
    """The highest level that a sequence of signed changes reaches, from 0."""
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak


def resting_bytes(step: Step) -> int:
    """Bytes of the weights, buffers and timed inputs, each storage once."""
    inputs = step.subject.inputs
    given = inputs.values() if isinstance(inputs, dict) else inputs
    tensors = [*step.subject.module.parameters(), *step.subject.module.buffers()]
    tensors += [t for t in given if isinstance(t, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
