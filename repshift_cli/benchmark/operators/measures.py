"""What is measured of an operator: that it ran on what it claims, its errors, its counts, and rates of its time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from repshift_cli.benchmark.contenders import Derived
from repshift_cli.benchmark.operators.choice import ITEM, cost_of, parted, shape_of
from repshift_cli.benchmark.operators.steps import DTYPES, Ready, expected, full_of, whole
from repshift_cli.benchmark.passes import Pass
from repshift_cli.benchmark.timers import timer_for
from repshift_cli.benchmark.verification import SDPA, WrongKernel, device_kernels, short
from repshift_cli.operators.base import flex
from repshift_cli.operators.base.counts import full_macs
from repshift_cli.probes.fidelity import NotFinite
from repshift_cli.probes.macs import MACS
from repshift_cli.profiling import kineto
from repshift_cli.records import Case, Measurement, Metric, Step

ERR_OWN = Metric(
    "err_own",
    "err own",
    "",
    "lower",
    "value",
    "compared",
    "Relative error of the output against the operator's own definition in float64.",
)
ERR_FULL = Metric(
    "err_full",
    "err full",
    "",
    "lower",
    "value",
    "compared",
    "Relative error of the output against full softmax attention in float64.",
)
BYTES = Metric(
    "bytes_by_formula",
    "bytes by formula",
    "B",
    "lower",
    "value",
    "modelled",
    "Bytes that one call must move by the operator's own formula.",
    gateable=False,
    detail=True,
)


def _rate(name: str, label: str, unit: str, description: str, detail: bool = False) -> Metric:
    return Metric(name, label, unit, "higher", "value", "timed", description, gateable=False, detail=detail)


RATE = _rate("tflops", "TFLOP/s", "", "Floating point operations per second, by the operator's own count.")
FULL_RATE = _rate("tflops_of_full", "TFLOP/s of full", "", "The same by the count of full attention of these sizes.")
COMPUTE_SHARE = _rate("share_of_compute", "of compute", "%", "Of the rate of a large matrix product measured here.")
MEMORY_SHARE = _rate("share_of_bandwidth", "of bandwidth", "%", "Of the rate of a large copy measured here.")
COMPUTE_CEILING = _rate("ceiling_tflops", "matmul TFLOP/s", "", "Rate of a large matrix product here.", detail=True)
MEMORY_CEILING = _rate("ceiling_bandwidth", "copy GB/s", "", "Rate of a large copy here.", detail=True)
METRICS = (
    ERR_OWN,
    ERR_FULL,
    BYTES,
    RATE,
    FULL_RATE,
    COMPUTE_SHARE,
    MEMORY_SHARE,
    COMPUTE_CEILING,
    MEMORY_CEILING,
)
"""What operators have beside what models have too."""

OF_MODELS = ("fidelity", "macs", "kv_cache")
"""The probes in whose place an operator has its own."""
LISTENING = ("launches", "hbm")
"""Those that listen for torch's operators."""

BACKWARD_MACS = 2.5
"""Five products instead of two, the convention of the FlashAttention papers."""
MOST_SCORES = {"cpu": 1 << 26, "cuda": 1 << 31}
"""The largest B x H x N x N for which errors are taken: the float64 definitions hold several matrices of it."""
_PLAIN_OPS = {"aten::bmm", "aten::mm", "aten::_softmax", "aten::convolution", "aten::cumsum", "aten::sort"}


# --- verification -----------------------------------------------------------------------------------------------------


def verified(step: Step) -> str:
    """Run the forward (and its gradients, where they are timed) and name what it ran on; WrongKernel otherwise.

    Of compiled code only fused operators show by name; of a graph the kernels are those of its replay.
    """
    _, engine = parted(step.case)
    eager = replace(step.operators, forward=partial(whole, step.operators))
    seen = step if step.case.execution == "compile" else eager
    events = kineto.events_of(seen)
    names, ops = kineto.names(events, kineto.HOST), engine.ops
    if seen is step:
        ops = tuple(op for op in ops if names[op] or (op.startswith(SDPA) and not op.endswith("_math")))
    device, unseen = None, ""
    if step.case.device.startswith("cuda"):
        device, unseen = device_kernels(replace(step, eager=eager), events)
    return judged(names, device, ops, engine.kernels, bool(step.case.option("backward"))) + unseen


def judged(
    names: Counter[str], device: Counter[str] | None, ops: tuple[str, ...], kernels: str, backward: bool = False
) -> str:
    """The verdict from operator names and device kernel names (None on a CPU)."""
    found = {op: sum(count for name, count in names.items() if name == op or name.startswith(f"{op}:")) for op in ops}
    own = {*ops, *(f"{op}_backward" for op in ops)}
    foreign = sorted(short(name) for name in names if name.startswith(SDPA) and name not in own)
    if foreign:
        raise WrongKernel(f"it ran on {', '.join(foreign)} instead of what it claims")
    if ops == flex.COMPILED and names[flex.EAGER]:
        raise WrongKernel("FlexAttention ran eagerly, with N x N in memory, instead of compiled")
    if ops and not any(found.values()):
        raise WrongKernel(f"none of {', '.join(map(short, ops))} ran; ran: {_most(names, names)}")
    gradients = [name for name in names if name.startswith(SDPA) and name.endswith("_backward")]
    if backward and any(op.startswith(SDPA) and not op.endswith("_math") for op in ops) and not gradients:
        raise WrongKernel("the gradients did not run on the kernel of the forward")
    if device is not None and kernels:
        matching = {match[0] for name in device if (match := re.search(kernels, name))}
        if not matching:
            raise WrongKernel(f"no device kernel matches {kernels!r}; ran: {', '.join(sorted(device)[:6])}")
        return ", ".join(sorted(matching))
    if ops:
        return " + ".join(f"{_called(op)} ×{count}" for op, count in found.items() if count)
    return _most(names, _PLAIN_OPS)


def _called(op: str) -> str:
    return "compiled flex_attention" if op in flex.COMPILED else short(op)


def _most(names: Counter[str], among: Any) -> str:
    told = [(name, count) for name, count in names.most_common() if name in among]
    return " + ".join(f"{short(name)} ×{count}" for name, count in told[:4]) or "generated code"


# --- probes -----------------------------------------------------------------------------------------------------------


def passes() -> tuple[Pass, ...]:
    """What is measured of operators alone."""
    return (
        Pass("errors", (ERR_OWN, ERR_FULL), ErrorProbe().measure),
        Pass("counts", (MACS, BYTES), CountProbe().measure),
    )


class ErrorProbe:
    """Relative errors (of Frobenius norms): against the operator's own definition and against full softmax."""

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """Both in float64, on the tensors that are timed; NotFinite where the output is not."""
        one: Ready = step.subject.details
        with step.operators.active(), torch.no_grad():
            out = step.subject.module(*step.subject.inputs)
        if not out.isfinite().all():
            raise NotFinite("the output holds NaN or infinity")
        shape = shape_of(step.case)
        scores = shape.batch * shape.heads * shape.queries * shape.tokens
        limit = MOST_SCORES["cuda" if out.is_cuda else "cpu"]
        if scores > limit:
            why = f"the float64 definitions would hold several matrices of {scores / 2**20:.0f} Mi scores"
            return ERR_OWN.missing(why), ERR_FULL.missing(why)
        own = ERR_OWN.of(distance(out, expected(one, step.subject.inputs)))
        against = full_of(one)
        if isinstance(against, str):
            return own, ERR_FULL.missing(f"not applicable: {against}")
        return own, ERR_FULL.of(distance(out, against))


def distance(out: Tensor, reference: Tensor) -> float:
    """|out - reference| / |reference|."""
    return float((out.double() - reference).norm() / reference.norm().clamp_min(1e-300))


class CountProbe:
    """Multiply-accumulates per sample and bytes of the call, by the operator's own formula."""

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """No forward is needed."""
        return MACS.of(macs(step.case) / step.case.batch), BYTES.of(moved(step.case))


def macs(case: Case) -> float:
    """Of the whole call; a backward pass by convention 2.5 times the forward's."""
    return cost_of(case, _kept(case)).macs * (BACKWARD_MACS if case.option("backward") else 1)


def moved(case: Case) -> float:
    """Bytes of the forward of the whole call."""
    return cost_of(case, _kept(case)).moved * ITEM[case.dtype]


def _kept(case: Case) -> Any:
    shape = shape_of(case)
    if case.keep == 1:
        return shape
    kept = -(-shape.tokens // 2)
    return type(shape)(shape.batch, shape.heads, shape.kv_heads, kept, shape.head_dim, kept)


def hides_operators(case: Case) -> bool:
    """Whether a compiled engine shows nothing to a dispatch mode."""
    return parted(case)[1].ops == flex.COMPILED


# --- rates ------------------------------------------------------------------------------------------------------------


def derived(step: Step, milliseconds: float) -> Derived:
    """TFLOP/s of the operator's own count and of full attention's, and shares of the ceilings measured here."""
    case, seconds = step.case, milliseconds / 1000
    compute, bandwidth = ceilings(case.device, case.dtype)
    rate = 2 * macs(case) / seconds
    shape = shape_of(case)
    factor = BACKWARD_MACS if case.option("backward") else 1
    of_full = 2 * factor * full_macs(shape, bool(case.option("causal"))) / seconds
    found = [
        RATE.of(rate / 1e12),
        FULL_RATE.of(of_full / 1e12),
        COMPUTE_SHARE.of(100 * rate / compute),
        COMPUTE_CEILING.of(compute / 1e12),
        MEMORY_CEILING.of(bandwidth / 1e9),
    ]
    share = MEMORY_SHARE.missing("bytes are counted by formula for the forward only")
    found.append(share if case.option("backward") else MEMORY_SHARE.of(100 * moved(case) / seconds / bandwidth))
    return found, list(_impossible(rate, compute))


def _impossible(rate: float, ceiling: float) -> Iterator[str]:
    if rate > 1.05 * ceiling:
        figures = f"{rate / 1e12:.3g} TFLOP/s are above the {ceiling / 1e12:.3g} of a large product"
        yield f"{figures}: one of the two was not measured on a quiet machine"


@cache
def ceilings(device: str, dtype: str) -> tuple[float, float]:
    """(FLOP/s of a large matrix product, bytes/s of a large copy) in this dtype, each the best of ten."""
    size, length = (8192, 1 << 29) if device.startswith("cuda") else (1024, 1 << 26)
    kind = DTYPES[dtype]
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    source = torch.empty(length // ITEM[dtype], dtype=kind, device=device).fill_(1)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product, copy = _best(lambda: a @ b, device), _best(lambda: target.copy_(source), device)
    return 2 * size**3 / product, 2 * length / copy


def _best(work: Callable[[], Any], device: str) -> float:
    timer = timer_for(device)
    timer.time(work, 2)
    return min(timer.time(work, 10)) / 1000
