"""How a forward is carried out: eager, replayed from a CUDA graph, or compiled by torch.compile."""

from __future__ import annotations

import inspect
import sys
import time
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from repshift_cli.benchmark.failures import CaptureFailed, reason_of
from repshift_cli.machine.device import free_memory
from repshift_cli.records import Metric, Step, call

COMPILE_TIME = Metric(
    "compile_time",
    "compile",
    "s",
    "lower",
    "value",
    "timed",
    "Seconds of the first forward through torch.compile, in which it compiles.",
)
GRAPH_BREAKS = Metric(
    "graph_breaks",
    "graph breaks",
    "",
    "lower",
    "value",
    "counted",
    "Places of the forward at which torch.compile left its graph.",
)
METRICS = (COMPILE_TIME, GRAPH_BREAKS)


def graph(step: Step) -> Step:
    """The step captured once and replayed; `run` copies other inputs of the same shapes into the captured ones.

    Three forwards on a side stream come first, as torch's documentation of CUDA graphs asks. cuBLAS keeps a workspace
    for every stream that it has run on (32 MiB on Hopper): those of the side stream and of the capture are let go.
    """
    subject = step.subject
    static = _copied(subject.inputs)
    recorded = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with step.active(), masks_as_in_eager():
        with torch.cuda.stream(side):
            for _ in range(3):
                call(subject.module, static)
        torch.cuda.current_stream().wait_stream(side)
        free_memory()
        with capturing(recorded):
            output = call(subject.module, static)
        free_memory()

    def forward() -> Any:
        recorded.replay()
        return output

    def run(inputs: Any) -> Any:
        with torch.inference_mode():
            for target, given in zip(_leaves(static), _leaves(inputs), strict=True):
                if isinstance(given, Tensor):
                    target.copy_(given)
        return forward()

    active: Any = nullcontext
    return Step(step.case, subject, active, forward, run, eager=step)


@contextmanager
def capturing(recorded: Any) -> Iterator[None]:
    """torch.cuda.graph; CaptureFailed tells what broke the capture, where torch says only that it cannot be ended."""
    broken: Exception | None = None
    try:
        with torch.cuda.graph(recorded):
            try:
                yield
            except Exception as error:
                broken = error
                raise
    except Exception as error:
        if error is broken:  # the capture ended in order: nothing but the forward failed
            raise
        raise CaptureFailed(f"no CUDA graph can hold it: {reason_of(broken or error)}") from error


def compiled(step: Step) -> Step:
    """The step through torch.compile with static shapes, compiled here, its hooks on; the time of that stands apart.

    Every case has compiled code of its own, for torch.compile does not look whether hooks have changed since. Where
    this torch cannot keep cases apart behind a break of the graph, a break is an error; so is compiling once more
    within the measurements.
    """
    import torch._dynamo as dynamo

    isolating = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    apart: dict[str, Any] = {"isolate_recompiles": True} if isolating else {"fullgraph": True}
    module = step.subject.module
    function: Any = torch.compile(_own_code(lambda given: call(module, given)), dynamic=False, **apart)
    dynamo.utils.counters.clear()
    begun = time.perf_counter()
    with step.active(), masks_as_in_eager(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        function(step.subject.inputs)
        seconds = time.perf_counter() - begun
        function(step.subject.inputs)
    breaks = sum(dynamo.utils.counters["graph_break"].values())

    @contextmanager
    def active() -> Iterator[None]:
        with step.active(), masks_as_in_eager(), dynamo.config.patch(error_on_recompile=True):
            yield

    def forward() -> Any:
        return function(step.subject.inputs)

    built = (COMPILE_TIME.of(seconds), GRAPH_BREAKS.of(breaks))
    return Step(step.case, step.subject, active, forward, function, eager=step, built=built)


@contextmanager
def masks_as_in_eager() -> Iterator[None]:
    """Within it transformers makes a mask only of one that it was given, also while a forward is captured or compiled.

    Up to 5.22 it makes one of ones while anything is traced: flash takes none, and one that nobody gave is not cut. It
    asks `is_tracing(mask)`, where no mask is None. A decoder that keeps no cache makes one of its positions too, for
    they may be those of several sequences, which it can ask only while nothing is traced: the last answer holds.
    """
    masking: Any = sys.modules.get("transformers.masking_utils")
    if masking is None:
        yield
        return
    tracing, packed = masking.is_tracing, masking.find_packed_sequence_indices
    sequences: list[Any] = []

    def asked_in_eager(positions: Tensor) -> Any:
        if tracing(positions):
            return None if sequences and sequences[0] is None else packed(positions)
        sequences[:] = [packed(positions)]
        return sequences[0]

    masking.is_tracing = lambda tensor=None: tensor is not None and tracing(tensor)
    masking.find_packed_sequence_indices = asked_in_eager
    try:
        yield
    finally:
        masking.is_tracing, masking.find_packed_sequence_indices = tracing, packed


def _own_code(function: Any) -> Any:
    """The function with a code object of its own, to which torch.compile ties what it compiled."""
    code = function.__code__.replace()
    return types.FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def _leaves(inputs: Any) -> list[Any]:
    return list(inputs.values()) if isinstance(inputs, dict) else list(inputs)


def _copied(inputs: Any) -> Any:
    def copy(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) else value

    return {k: copy(v) for k, v in inputs.items()} if isinstance(inputs, dict) else tuple(map(copy, inputs))
