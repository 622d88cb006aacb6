"""What a model puts out, as `bench` notes it: its shape, whether it is finite, a sketch that tells it from others."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from synthetic import ON_CPU

from repshift_cli.benchmark.outputs import NoOutput, output_of, sketch
from repshift_cli.records import Output, Step


def put_out(*values: Any) -> Output:
    """The output of a forward that gives one value after another."""
    left = list(values)
    return output_of(Step(ON_CPU, None, nullcontext, lambda: left.pop(0), lambda given: None))  # type: ignore[arg-type]


@dataclass
class Answer:
    logits: torch.Tensor
    note: str = "of its own class"


LOGITS = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "value", [LOGITS, (LOGITS, "beside"), {"logits": LOGITS, "loss": None}, Answer(LOGITS), [[{"deep": (LOGITS,)}]]]
)
def test_the_tensors_are_found_wherever_they_stand(value: Any) -> None:
    assert put_out(value).words == "float32 (2, 3)"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the model's output is None, and holds no tensor"),
        ("text", "the model's output is a str, and holds no tensor"),
        ({}, "the model's output is a dict, and holds no tensor"),
        (torch.zeros(2, 0), r"the model's output is empty: float32 \(2, 0\)"),
    ],
)
def test_an_output_that_is_none_breaks_the_case(value: Any, reason: str) -> None:
    with pytest.raises(NoOutput, match=reason):
        put_out(value)


def test_a_cache_is_no_part_of_the_answer() -> None:
    cache = SimpleNamespace(layers=[SimpleNamespace(keys=torch.zeros(9))])
    assert put_out({"logits": LOGITS, "past_key_values": cache}).words == "float32 (2, 3)"


def test_what_is_not_finite_is_counted_and_left_out_of_the_sketch() -> None:
    holed = LOGITS.clone()
    holed[1, 2] = torch.nan
    assert put_out(holed).finite == pytest.approx(5 / 6)
    assert all(abs(number) < 16 for number in put_out(holed).sketch)


def test_sketches_are_as_far_apart_as_the_outputs() -> None:
    """By 64 buckets: a difference of a tenth is told as 0.07 to 0.14, and that of a few numbers is not lost."""
    draw = torch.Generator().manual_seed(0)
    for size in (1000, 300_000):
        old = torch.randn(size, generator=draw)
        new = old + 0.1 * torch.randn(size, generator=draw)
        told = (sketch([old]) - sketch([new])).norm() / sketch([old]).norm()
        assert float(told) == pytest.approx(0.1, rel=0.35)
        swapped = old.flip(0)
        assert float((sketch([old]) - sketch([swapped])).norm() / sketch([old]).norm()) > 1


def test_a_sketch_is_the_same_in_every_process_and_of_every_dtype() -> None:
    """By hand for one number: its place decides on bucket and sign, and splitmix64 is no process's own."""
    one = sketch([torch.tensor([3.0])])
    assert one.abs().max() == 3 and (one != 0).sum() == 1
    assert torch.equal(sketch([LOGITS.to(torch.bfloat16)]), sketch([LOGITS]))
    assert torch.equal(sketch([LOGITS[:1], LOGITS[1:]]), sketch([LOGITS]))
