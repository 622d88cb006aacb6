"""Attention verified: the operators and device kernels that really ran, held against what was asked for."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from repshift_cli.kernels.sdpa import heard_by
from repshift_cli.profiling import kineto
from repshift_cli.records import Step

SDPA = "aten::_scaled_dot_product_"
"""How the names of all operators begin that answer a call of torch's attention."""

UNLIKE = re.compile(r"gemm|gemv|nvjet|splitK|cublas|(?<!fmha_)cutlass|Memcpy|Memset|FillFunctor", re.IGNORECASE)
"""Kernels that may differ between a graph and its eager twin: products, for which cuBLAS picks by the workspace it has,
copies, and the fills by which a replay sets the generator's seed."""

UNSEEN = ", of its eager twin (the profiler shows no kernel of a replay)"


class WrongKernel(RuntimeError):
    """Attention did not run on what was asked for; the sentence says what ran."""


def verify(step: Step, ops: tuple[str, ...], kernels: str) -> str:
    """Run one forward and name what attention ran on, with the number of calls: `flash_attention_for_cpu x12`.

    `ops` are the operators of which one must answer every call (empty: a package that shows kernels only), `kernels` a
    pattern that some device kernel's name must match on CUDA. Of compiled code the calls are those of its eager twin,
    and only fused operators show by name. Of a graph the kernels are those of a replay, as many as its eager twin runs
    where they compute anything but products. Raises WrongKernel.
    """
    calls = _calls(step.operators)
    seen = step if step.case.execution == "compile" else step.operators
    events = kineto.events_of(seen)
    names = kineto.names(events, kineto.HOST)
    if seen is not step.operators:
        ops = tuple(op for op in ops if names[op] or (op.startswith(SDPA) and not op.endswith("_math")))
    if not step.case.device.startswith("cuda"):
        return judge(calls, names, None, ops, kernels)
    device, unseen = device_kernels(step, events)
    return judge(calls, names, device, ops, kernels) + unseen


def verify_library(step: Step, ops: tuple[str, ...]) -> str:
    """Run one forward of a model under its library's own attention and name the operators: `softmax ×12`.

    WrongKernel where torch's attention is called after all, or one of `ops` never runs.
    """
    if calls := _calls(step.operators):
        raise WrongKernel(f"the model still calls torch's attention {calls} times, not its library's own")
    events = kineto.events_of(step.operators)
    _, unseen = device_kernels(step, events)
    names = kineto.names(events, kineto.HOST)
    if missing := [op for op in ops if not names[op]]:
        raise WrongKernel(f"the library's own attention ran no {', '.join(map(short, missing))}")
    return " + ".join(f"{short(op)} ×{names[op]}" for op in ops) + unseen


def verify_none(step: Step) -> str:
    """Run one forward of a model whose attention cannot be chosen; WrongKernel where it calls torch's after all.

    What is written by hand shows by its softmax over the last of three or more dimensions.
    """
    if calls := _calls(step):
        raise WrongKernel(f"the model calls torch's attention {calls} times; name a back end such as flash")
    own = _Softmaxes()
    with step.active(), own:
        step.forward()
    return f"written by hand: softmax ×{own.count}" if own.count else "no attention"


class _Softmaxes(TorchDispatchMode):
    """Counts the softmaxes that attention takes: over the last of three or more dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # in inference mode torch.softmax is seen whole, else as what it is made of
        if func.overloadpacket in (torch.ops.aten.softmax, torch.ops.aten._softmax) and args[0].ndim > 2:
            self.count += 1
        return func(*args, **(kwargs or {}))


def judge(calls: int, names: Counter[str], device: Counter[str] | None, ops: tuple[str, ...], kernels: str) -> str:
    """The verdict from counts: attention calls, operator names, device kernel names (None on a CPU)."""
    if not calls:
        raise WrongKernel(
            "the model never calls torch's scaled_dot_product_attention, so its attention cannot be chosen"
        )
    answered = sum(names[op] for op in ops)
    foreign = sorted(short(n) for n in names if n.startswith(SDPA) and n not in ops)
    if foreign or (ops and answered < calls):
        ran = ", ".join(foreign) or f"{answered} of {calls} calls of {', '.join(map(short, ops))}"
        raise WrongKernel(f"attention ran on {ran} instead of what was asked for")
    if device is None or not kernels:
        return f"{' + '.join(short(op) for op in ops if names[op]) or 'generated code'} ×{calls}"
    matching = {n: c for n, c in device.items() if re.search(kernels, n)}
    if not matching:
        raise WrongKernel(f"no device kernel matches {kernels!r}; ran: {', '.join(sorted(device)[:6])}")
    found = {m.group(0) for n in matching if (m := re.search(kernels, n))}
    return f"{', '.join(sorted(found))} ×{calls}"


def device_kernels(step: Step, events: list[Any]) -> tuple[Counter[str], str]:
    """What ran on the device among the events, or in the replay of a graph, whose eager twin's events they are; and
    what must be said where they are the twin's, since the profiler shows nothing of a replay."""
    seen = kineto.names(events, kineto.DEVICE)
    if step.case.execution != "graph":
        return seen, ""
    replayed = kineto.names(kineto.events_of(step), kineto.DEVICE)
    if not replayed:
        return seen, UNSEEN
    hold_against(seen, replayed)
    return replayed, ""


def hold_against(twin: Counter[str], graph: Counter[str]) -> None:
    """WrongKernel where a graph's replay runs more or fewer kernels than its eager twin, by their names and counts."""
    one, other = (Counter({n: c for n, c in ran.items() if not UNLIKE.search(n)}) for ran in (graph, twin))
    if one.total() == other.total():
        return
    more, fewer = (
        ", ".join(f"{n} ×{c}" for n, c in left.most_common(3)) or "none" for left in (one - other, other - one)
    )
    raise WrongKernel(
        f"the captured graph runs {one.total()} kernels besides products and its eager twin {other.total()}: "
        f"more of {more}; fewer of {fewer}"
    )


def short(op: str) -> str:
    """An operator's name without what all of them share."""
    return op.removeprefix(SDPA).removeprefix("aten::").lstrip("_")


def _calls(step: Step) -> int:
    """How often one forward has torch's attention answered, by whatever."""
    calls: list[None] = []
    told = heard_by(lambda _: calls.append(None), answered=True)  # the calls themselves would hold q, k and v in memory
    with step.active(), told:
        step.forward()
    return len(calls)
