"""What a model puts out, looked at once the timed rounds are over: an output that is none was fast for nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from repshift_cli.records import CaseBroken, Output, Step

BUCKETS = 64
MOST_NUMBERS = 2**22
"""Of a tensor with more numbers every second, third ... goes into the sketch."""

LARGEST = 1e30
"""What a run file may hold."""

MULTIPLIERS = (0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64)
"""Of splitmix64's mixer (Steele, Lea and Flood 2014), as signed numbers: torch's integers wrap around."""


class NoOutput(CaseBroken):
    """The model puts out nothing that could be compared."""


def output_of(step: Step) -> Output:
    """Of one forward, seeded as its case; NoOutput where it holds no number."""
    torch.manual_seed(step.case.seed)
    with step.active():
        given = step.forward()
        tensors = list(tensors_of(given)) or list(tensors_of(given, depth=6))
        if not tensors:
            raise NoOutput(f"the model's output is {_words(given)}, and holds no tensor")
        words = ", ".join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in tensors)
        if not any(t.numel() for t in tensors):
            raise NoOutput(f"the model's output is empty: {words}")
        finite = sum(float(t.isfinite().sum()) for t in tensors) / sum(t.numel() for t in tensors)
        return Output(words, finite, tuple(sketch(tensors).tolist()))


def tensors_of(value: Any, depth: int = 2) -> Iterator[Tensor]:
    """The tensors of an output, in order: itself, those in its tuples, lists and dicts, or in its own attributes.

    A cache of keys and values lies deeper than a model's answer.
    """
    if isinstance(value, Tensor):
        dense = value.values() if value.is_nested else value.to_dense() if value.layout != torch.strided else value
        yield torch.view_as_real(dense) if dense.is_complex() else dense
    elif depth and value is not None:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else None
        for part in vars(value).values() if parts is None and hasattr(value, "__dict__") else parts or ():
            yield from tensors_of(part, depth - 1)


def sketch(tensors: list[Tensor]) -> Tensor:
    """(BUCKETS,) in float64: each number, with a sign of its own, in a bucket of its own, both by its place alone.

    A count sketch (Charikar, Chen and Farach-Colton 2002): linear, and the square of its length is that of the numbers
    on average, so that outputs are as far apart as their sketches, give or take sqrt(2 / BUCKETS) of the square.
    """
    found, begin = torch.zeros(BUCKETS, dtype=torch.float64), 0
    for tensor in tensors:
        numbers = tensor.detach().flatten()
        numbers = numbers[:: math.ceil(len(numbers) / MOST_NUMBERS) or 1].to("cpu", torch.float64).nan_to_num(0, 0, 0)
        mixed = torch.arange(begin, begin + len(numbers))
        for multiplier in MULTIPLIERS:
            mixed = mixed * multiplier
            mixed = mixed ^ ((mixed >> 31) & (2**33 - 1))
        found.index_add_(0, (mixed >> 1) & (BUCKETS - 1), numbers * ((mixed & 1) * 2 - 1))
        begin += len(numbers)
    return found.clamp(-LARGEST, LARGEST)


def _words(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
