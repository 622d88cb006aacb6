"""Attention verified: the operators and device kernels that really ran, held against what was asked for."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from repshift_cli.kernels.sdpa import heard_by
from repshift_cli.records import Step

SDPA = "aten::_scaled_dot_product_"
"""How the names of all operators begin that answer a call of torch's attention."""


class WrongKernel(RuntimeError):
    """Attention did not run on what was asked for; the sentence says what ran."""


def verify(step: Step, ops: tuple[str, ...], kernels: str) -> str:
    """Run one forward and name what attention ran on, with the number of calls: `flash_attention_for_cpu x12`.

    `ops` are the operators of which one must answer every call (empty: a package that shows kernels only), `kernels` a
    pattern that some device kernel's name must match on CUDA. Of compiled code the calls are those of its eager twin,
    and only fused operators show by name. Raises WrongKernel.
    """
    on_cuda = step.case.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    calls = _calls(step.operators)
    seen = step if step.case.execution == "compile" else step.operators
    with seen.active():
        seen.forward()
        with profile(activities=activities, acc_events=True) as recorded:
            seen.forward()
            if on_cuda:
                torch.cuda.synchronize()
    events = recorded.events()
    names = Counter(e.name for e in events if e.device_type == DeviceType.CPU)
    if seen is not step.operators:
        ops = tuple(op for op in ops if names[op] or (op.startswith(SDPA) and not op.endswith("_math")))
    return judge(calls, names, _device_kernels(events) if on_cuda else None, ops, kernels)


def verify_library(step: Step, ops: tuple[str, ...]) -> str:
    """Run one forward of a model under its library's own attention and name the operators: `softmax ×12`.

    WrongKernel where torch's attention is called after all, or one of `ops` never runs.
    """
    if calls := _calls(step):
        raise WrongKernel(f"the model still calls torch's attention {calls} times, not its library's own")
    with step.active(), profile(activities=[ProfilerActivity.CPU], acc_events=True) as recorded:
        step.forward()
    names = Counter(event.name for event in recorded.events())
    if missing := [op for op in ops if not names[op]]:
        raise WrongKernel(f"the library's own attention ran no {', '.join(map(short, missing))}")
    return " + ".join(f"{short(op)} ×{names[op]}" for op in ops)


def verify_none(step: Step) -> str:
    """Run one forward of a model that is said to have no attention; WrongKernel where it calls torch's after all."""
    if calls := _calls(step):
        raise WrongKernel(f"the model calls torch's attention {calls} times; name a back end such as flash")
    return "no attention"


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


def short(op: str) -> str:
    """An operator's name without what all of them share."""
    return op.removeprefix(SDPA).removeprefix("aten::").lstrip("_")


def _device_kernels(events: Any) -> Counter[str]:
    return Counter(e.name for e in events if e.device_type == DeviceType.CUDA)


def _calls(step: Step) -> int:
    """How often one forward calls torch's attention, whatever answers it."""
    calls: list[None] = []
    with step.active(), heard_by(lambda _: calls.append(None)):  # the calls themselves would hold q, k and v in memory
        step.forward()
    return len(calls)
