"""MACs: multiply-accumulates of one forward per sample, counted by torch's flop counter (2 FLOPs each)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from repshift_cli.kernels.sdpa import Answer, AttentionCall, watched_by
from repshift_cli.probes import Context, Measure
from repshift_cli.records import Measurement, Metric, Step

MACS = Metric(
    "macs",
    "MACs",
    "MAC",
    "lower",
    "value",
    "counted",
    "Multiply-accumulates of one sample, counted from the operators that run (half of their FLOPs).",
)
METRICS = (MACS,)


def attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """2 FLOPs x (d + d_v) for every pair of query and key; a causal mask is not subtracted, as is the custom.

    Shapes (B, H, Nq, d), (B, Hkv, Nk, d), (B, Hkv, Nk, dv).
    """
    q, k, v = (getattr(t, "shape", t) for t in (query, key, value))
    return int(2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3]))


def make(context: Context) -> Measure:
    """A forward under torch's flop counter."""
    return MacsProbe().measure


class MacsProbe:
    """Counts the operators that run; fused attention that the counter does not know gets its formula."""

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """One forward under the counter, in a pass of its own."""
        return (MACS.of(count_flops(step.operators) / 2 / step.case.batch),)


def count_flops(step: Step) -> int:
    """FLOPs of one forward of the whole batch."""
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=known)
    with step.active(), _without_gradients(step.subject.module), _unseen_attention(counter) as unseen, counter:
        step.forward()
    return int(counter.get_total_flops()) + sum(unseen)


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Within it the parameters ask for no gradient.

    Else the counter's module tracker registers a gradient hook on a parameter that is handed to a module (the query of
    attention pooling), which fails in inference mode. Within the count only: whether a weight asks for a gradient
    decides which kernels torch's matmul takes.
    """
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _unseen_attention(counter: FlopCounterMode) -> Iterator[list[int]]:
    """Collects the FLOPs of attention calls in which the counter saw nothing (the FlashAttention packages)."""
    unseen: list[int] = []

    def counting(call: AttentionCall, answer: Answer) -> Tensor:
        before = counter.get_total_flops()
        out = answer(call)
        if counter.get_total_flops() == before:
            unseen.append(attention_flops(call.query, call.key, call.value))
        return out

    with watched_by(counting):
        yield unseen
