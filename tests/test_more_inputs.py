"""Fidelity's inputs beyond the timed batch: how many, which, and that what is timed stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from synthetic import ON_CPU
from torch import nn

from repshift_cli.models.inputs.more import with_more_inputs
from repshift_cli.records import Subject


def subject(inputs: Any, parameters: int = 10, tokens: int = 10, grid: bool = False) -> Subject:
    module = nn.Linear(parameters, 1, bias=False)
    return Subject(module, inputs, (inputs,), (), 0, tokens, "img", lambda _: None, lambda out: out, grid=grid)


@pytest.mark.parametrize(("batch", "batches"), [(1, 32), (3, 10), (32, 1), (64, 1)])
def test_whole_batches_up_to_32_inputs_the_timed_one_first(batch: int, batches: int) -> None:
    inputs = {"pixel_values": torch.randn(batch, 3, 8, 8, dtype=torch.bfloat16), "flag": True}
    found = with_more_inputs(subject(inputs), replace(ON_CPU, batch=batch))
    assert len(found.evaluation) == batches and found.inputs is found.evaluation[0] is inputs
    pixels = [given["pixel_values"] for given in found.evaluation]
    assert {(p.shape, p.dtype) for p in pixels} == {(pixels[0].shape, torch.bfloat16)}
    assert all(given["flag"] is True for given in found.evaluation)
    assert len({tuple(p.flatten().tolist()) for p in pixels}) == batches, "no two are alike"


@pytest.mark.parametrize(
    ("parameters", "tokens", "grid", "inputs"),
    [(10**6, 1000, False, 32), (10**6, 10_000, False, 15), (10**6, 10**6, False, 1), (10**6, 160_000, True, 15)],
)
def test_fewer_where_they_would_cost_too_much(parameters: int, tokens: int, grid: bool, inputs: int) -> None:
    made = subject((torch.randn(1, 3, 2, 2),), parameters, tokens, grid)
    found = with_more_inputs(made, ON_CPU)
    assert len(found.evaluation) == inputs
    assert all(isinstance(given, tuple) and given[0].shape == (1, 3, 2, 2) for given in found.evaluation)


def test_token_ids_are_drawn_and_what_belongs_to_pictures_is_not() -> None:
    ids = torch.tensor([[0, 7, 99, 4]])
    text = with_more_inputs(subject({"input_ids": ids, "logits_to_keep": 1, "mask": torch.ones_like(ids)}), ON_CPU)
    assert len(text.evaluation) == 32 and all(e["mask"] is text.inputs["mask"] for e in text.evaluation)
    assert all(e["input_ids"].min() >= 0 and e["input_ids"].max() <= 99 for e in text.evaluation)
    both = with_more_inputs(subject({"input_ids": ids, "pixel_values": torch.randn(1, 3, 4, 4)}), ON_CPU)
    assert all(e["input_ids"] is ids for e in both.evaluation), "an image's places in the prompt stay"
    assert not torch.equal(both.evaluation[1]["pixel_values"], both.inputs["pixel_values"])


def test_the_same_seed_gives_the_same_inputs_and_ones_own_are_all_there_is() -> None:
    inputs = {"pixel_values": torch.randn(1, 3, 4, 4)}
    one, same, other = (with_more_inputs(subject(inputs), replace(ON_CPU, seed=s)).evaluation[-1] for s in (0, 0, 9))
    assert torch.equal(one["pixel_values"], same["pixel_values"])
    assert not torch.equal(one["pixel_values"], other["pixel_values"])
    for given in ("own", "photos"):
        assert len(with_more_inputs(subject(inputs), replace(ON_CPU, input=given)).evaluation) == 1
