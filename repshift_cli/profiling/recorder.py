"""A trace of one case by torch's profiler, with ranges around every block and its parts, in a pass of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function, schedule

from repshift_cli.kernels.sdpa import Answer, AttentionCall, watched_by
from repshift_cli.profiling.annotations import BLOCK, CONVOLUTION, MIXER, listening, part
from repshift_cli.profiling.kineto import profiler
from repshift_cli.records import Site, Step

try:  # a tenth of record_function's cost on the host; torch's compiler opens its own ranges by it
    from torch._C._profiler import _RecordFunctionFast as opened
except ImportError:
    opened = record_function  # type: ignore[misc, assignment]

WARM_UP_SECONDS = 0.5
MOST_WARM_UPS = 10
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d)
SILENT = (nn.Identity, nn.Dropout)
MOST_MEMORY_EVENTS = 100_000


def record(step: Step, target: Path, steps: int) -> int:
    """Write the trace of `steps` forwards, each waited for, to `target`; gives the number of warm-up forwards.

    The profiler itself is warmed up by one more forward, whose events it drops.
    """

    def export(recorded: Any) -> None:
        recorded.export_chrome_trace(str(target))

    plan = schedule(wait=0, warmup=1, active=steps, repeat=1)
    with step.active():
        warmed = warm_up(step)
        with _labelled(step), _profiler(step, schedule=plan, on_trace_ready=export) as recorded:
            for _ in range(1 + steps):
                forward(step)
                recorded.step()
    return warmed + 1


def record_stacks(step: Step, target: Path) -> None:
    """Write the trace of one forward with every Python call, which slows it: not for times."""
    with step.active():
        forward(step)
        with _labelled(step), _profiler(step, with_stack=True) as recorded:
            forward(step)
    recorded.export_chrome_trace(str(target))


def record_memory(step: Step, target: Path) -> None:
    """Write torch's snapshot of one forward's allocations on CUDA, for its memory viewer. Not yet seen on a GPU."""
    with step.active():
        forward(step)
        torch.cuda.memory._record_memory_history(max_entries=MOST_MEMORY_EVENTS)
        try:
            forward(step)
            torch.cuda.memory._dump_snapshot(str(target))
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)


def warm_up(step: Step) -> int:
    """Forwards until half a second is spent, at most ten; gives how many."""
    begun, count = time.perf_counter(), 0
    while count < MOST_WARM_UPS and (not count or time.perf_counter() - begun < WARM_UP_SECONDS):
        forward(step)
        count += 1
    return count


def forward(step: Step) -> None:
    """One forward, waited for, so that its work on the device lies inside its step."""
    step.forward()
    if step.case.device.startswith("cuda"):
        torch.cuda.synchronize()


def _profiler(step: Step, **settings: Any) -> Any:
    return profiler(step.case.device.startswith("cuda"), **settings)


# --- ranges -----------------------------------------------------------------------------------------------------------


@contextmanager
def _labelled(step: Step) -> Iterator[None]:
    """Within it every forward of the step opens ranges; to be entered inside `step.active()`, so that a block's range
    also holds the cut at its end."""
    with ExitStack() as stack:
        stack.enter_context(listening(_opened_with_nvtx if step.case.device.startswith("cuda") else opened))
        stack.enter_context(watched_by(_ranged))
        for number, site in enumerate(step.subject.sites, start=1):
            stack.enter_context(_Block(site, number, step.subject.grid))
        yield


@contextmanager
def _opened_with_nvtx(name: str) -> Iterator[None]:
    """The range for torch's profiler and for Nsight Systems. Not yet seen on a GPU."""
    torch.cuda.nvtx.range_push(name)
    try:
        with opened(name):
            yield
    finally:
        torch.cuda.nvtx.range_pop()


def _ranged(call: AttentionCall, answer: Answer) -> Tensor:
    """A range around every call of attention."""
    with part("attention"):
        return answer(call)


class _Block:
    """Hooks on one block that open a range around it, and around each module in it that is a part.

    Before the module that reads x', modules belong to attention (linear ones there are projections); from it on they
    belong to the MLP; in a CNN's stage they are convolutions. The only branch of a block is its mixer. Where branches
    cannot be told apart (parallel ones), linear modules are projections and torch's attention is all that is called
    attention. Norms are norms anywhere. Bare parameters (LayerScale) and the residual sums stay with the block.
    """

    def __init__(self, site: Site, number: int, grid: bool) -> None:
        self._site, self._number, self._grid = site, number, grid
        self._open: list[AbstractContextManager[Any]] = []
        self._handles: list[Any] = []
        self._behind = False

    def __enter__(self) -> None:
        block = self._site.block
        self._handles.append(block.register_forward_pre_hook(self._begin_block, prepend=True))
        if self._site.middle is not None:
            self._handles.append(self._site.middle.register_forward_pre_hook(self._turn, prepend=True))
        direct = set(block.children())
        for module in block.modules():
            if module is not block and not isinstance(module, SILENT) and (module in direct or _is_part(module)):
                self._handles.append(module.register_forward_pre_hook(self._begin))
                self._handles.append(module.register_forward_hook(self._end))
        self._handles.append(block.register_forward_hook(self._end))

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        while self._open:
            self._open.pop().__exit__(None, None, None)

    def _begin_block(self, module: Any, args: Any) -> None:
        self._behind = False
        self._enter(f"{BLOCK}{self._number}")

    def _turn(self, module: Any, args: Any) -> None:
        self._behind = True

    def _begin(self, module: nn.Module, args: Any) -> None:
        if module is self._site.attention and not self._site.parallel:  # a block that is asked first runs twice
            self._behind = False
        self._enter(self._part_of(module))

    def _end(self, module: Any, args: Any, output: Any) -> None:
        self._open.pop().__exit__(None, None, None)

    def _enter(self, name: str | None) -> None:
        opening = ExitStack() if name is None else part(name)
        opening.__enter__()
        self._open.append(opening)

    def _part_of(self, module: nn.Module) -> str | None:
        if _is_norm(module):
            return "norm"
        if not _computes(module):
            return None
        if self._grid:
            return CONVOLUTION
        if self._behind:
            return "mlp"
        if isinstance(module, LINEAR) or _is_transposed_linear(module):
            return "projection"
        if self._site.parallel or (self._site.attention is None and self._site.middle is None):
            return None
        return MIXER if self._site.attention is not None and self._site.mlp is None else "attention"


def _is_part(module: nn.Module) -> bool:
    return _is_norm(module) or isinstance(module, LINEAR) or _is_transposed_linear(module)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def _is_transposed_linear(module: nn.Module) -> bool:
    """transformers' Conv1D: a linear layer with its weight the other way round."""
    return type(module).__name__ == "Conv1D"


def _computes(module: nn.Module) -> bool:
    """Whether a linear layer is in it, or nothing to learn (an activation); bare parameters are a scale."""
    return any(_is_part(m) and not _is_norm(m) for m in module.modules()) or next(module.parameters(), None) is None
