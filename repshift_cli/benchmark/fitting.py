"""The largest batch that fits: tried on a GPU; on a CPU, where nothing says no in time, reckoned from small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repshift_cli import registry
from repshift_cli.benchmark.builder import StepBuilder
from repshift_cli.benchmark.failures import is_out_of_memory, reason_of
from repshift_cli.machine import memory
from repshift_cli.machine.device import free_memory
from repshift_cli.records import Case, Step, UsageError

MOST = 4096
"""No larger batch is tried."""
SHARE = 0.8
"""The share of a computer's free memory that a forward may take."""
SMALL = 16
"""Up to this batch a forward's memory is looked at on a CPU; beyond it is reckoned."""
FINE = 32
"""The batch is found to one part in so many."""

Fits = Callable[[int], bool]


def largest_batch(cases: Sequence[Case], device: str, say: Callable[[str], object] = lambda _: None) -> int:
    """The largest batch with which a forward of each of the cases fits; UsageError where none does, or none can be
    tried."""
    builder, most = StepBuilder(device), MOST
    kinds = {(case.group, case.attention, case.pruning, case.execution): case for case in cases}
    for case in kinds.values():
        step = builder.prepare(replace(case, execution="eager")).operators
        fits = _tried(step) if device.startswith("cuda") else _reckoned(step)

        def asked(batch: int, case: Case = case, fits: Fits = fits) -> bool:
            say(f"{case.variant}: trying batch {batch}")
            return fits(batch)

        try:
            most = most if most < MOST and asked(most) else largest(asked, most)
        except Exception as error:
            raise UsageError(f"--batch max cannot be found for {case.model}: {reason_of(error)}; name one") from error
        if not most:
            raise UsageError(f"--batch max: not even one sample of {case.model} fits {case.variant}")
    return most


def largest(fits: Fits, most: int = MOST) -> int:
    """The largest number up to `most` that fits, to one part in `FINE`; 0 where not even 1 does.

    It begins small and doubles, so that little is tried that does not fit.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > max(1, low // FINE):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _tried(step: Step) -> Fits:
    """Whether a forward of so many samples runs without running out of memory, which is then given back."""

    def fits(batch: int) -> bool:
        try:
            with step.active():
                step.run(repeated(step, batch))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            free_memory()
        return True

    return fits


def _reckoned(step: Step) -> Fits:
    """Whether a batch would fit in this computer's free memory, a sample taking no more in it than in a small one,
    where buffers of fixed size weigh more."""
    free = memory.free_bytes()
    if free is None:
        raise UsageError("this computer does not say how much memory is free")
    room = SHARE * free
    small, taken = 1, _bytes_of(step, 1)
    while small < SMALL and 2 * taken <= room:
        small *= 2
        taken = _bytes_of(step, small)
    return lambda batch: batch * taken / small <= room


def _bytes_of(step: Step, batch: int) -> int:
    """What a forward of a batch takes beside the weights: its inputs, and the allocator's peak above them."""
    inputs = repeated(step, batch)
    other = replace(step, subject=replace(step.subject, inputs=inputs), forward=lambda: step.run(inputs))
    probe = registry.load(registry.find("probes", "memory"))
    above = next(m for m in probe.MemoryProbe(lambda: "not asked for").measure(other) if m.metric == probe.ABOVE.name)
    return int(above.samples[0]) + sum(t.nbytes for t in _tensors(inputs))


def repeated(step: Step, batch: int) -> Any:
    """The step's inputs, repeated to so many samples or cut to so few."""
    own = step.case.batch
    inputs = step.subject.inputs

    def fitted(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.ndim or len(value) != own:
            return value
        return value[torch.arange(batch, device=value.device) % own]

    return {n: fitted(v) for n, v in inputs.items()} if isinstance(inputs, dict) else tuple(map(fitted, inputs))


def _tensors(inputs: Any) -> Iterator[Tensor]:
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return (value for value in values if isinstance(value, Tensor))
