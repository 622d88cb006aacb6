"""Launches, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from tiny import FAMILIES, case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli.benchmark import builder
from repshift_cli.probes.launches import LaunchProbe, count_operators
from repshift_cli.records import Step, Subject


class Known(nn.Module):
    """Three operators that compute, and views between them."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1).reshape(-1).view(6, 4)
        return (x[1:] + 1).unsqueeze(0).relu_()


def operators(subject: Subject, **changes: Any) -> int:
    return count_operators(builder.eager_step(case(**changes), subject))


def test_views_do_not_count() -> None:
    subject = Subject(Known(), (torch.randn(4, 6),), (), (), 0, 0, "sample", None, None)  # type: ignore[arg-type]
    assert operators(subject, attention="none") == 3, "the copy of reshape, add, relu_"


def test_what_pruning_adds_shows() -> None:
    plain = FAMILIES["vit"]()
    subject = tiny.subject(plain.module, plain.inputs)
    whole = operators(subject, attention="flash")
    assert operators(subject, attention="flash", pruning="oracle", keep=0.5, layers=(1,)) <= whole, "slices are views"
    once = operators(subject, attention="flash", pruning="random", keep=0.5, layers=(1,)) - whole
    twice = operators(subject, attention="flash", pruning="random", keep=0.5, layers=(1, 2)) - whole
    assert once > 0 and twice == 2 * once


def test_the_probe_counts_the_eager_twin_on_a_cpu() -> None:
    plain = FAMILIES["vit"]()
    step = builder.eager_step(case(attention="flash"), tiny.subject(plain.module, plain.inputs))
    replay = Step(step.case, step.subject, step.active, lambda: None, lambda _: None, eager=step)
    (found,) = LaunchProbe().measure(replay)
    assert (found.metric, found.samples) == ("operators", (float(count_operators(step)),))


@pytest.mark.gpu
def test_kernels_are_counted_on_cuda() -> None:
    subject = Subject(Known(), (torch.randn(4, 6, device="cuda"),), (), (), 0, 0, "sample", None, None)  # type: ignore[arg-type]
    found = LaunchProbe().measure(builder.eager_step(case(attention="none", device="cuda:0"), subject))
    told = {m.metric: m.samples for m in found}
    assert 0 < told.pop("device_busy")[0] < 100
    assert told == {"operators": (3.0,), "kernels": (3.0,)}
