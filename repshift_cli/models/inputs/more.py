"""More random inputs than the timed batch, for fidelity, where they are cheap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repshift_cli.models.inputs.sentences import random_ids
from repshift_cli.records import Case, Subject

INPUTS = 32
"""On so many inputs the outputs are compared, where that is cheap."""
CHEAP = {"cpu": 1.5e11, "cuda": 1.5e13}
"""The most multiplications that those inputs may take in one variant, parameters times tokens standing for them: about
three seconds on two cores (an AMD EPYC did 5e10 per second), and less on a GPU. Counted, not timed, so that the same
case is always compared on the same inputs."""
HALVED = 16
"""Most of a CNN's weights lie behind two halvings of its first grid."""
IDS = "input_ids"


def with_more_inputs(subject: Subject, case: Case) -> Subject:
    """The subject with `evaluation` made up to 32 random inputs, in whole batches; others' inputs are all there is."""
    if case.input != "random" or len(subject.evaluation) != 1:
        return subject
    parameters = sum(p.numel() for p in subject.module.parameters())
    tokens = subject.tokens // HALVED if subject.grid else subject.tokens + subject.protected
    each = parameters * tokens * case.batch
    batches = max(1, min(INPUTS // case.batch, int(CHEAP[case.device.partition(":")[0]] / max(each, 1))))
    more = tuple(_like(subject.inputs, case.seed + number) for number in range(1, batches))
    return replace(subject, evaluation=subject.evaluation + more)


def _like(inputs: Any, seed: int) -> Any:
    """Other random inputs of the same shapes: pixels, or token ids where there are no pixels; the rest as it is."""
    if isinstance(inputs, tuple):
        return tuple(_like(dict(enumerate(inputs)), seed).values())
    pixels = {name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    drawn = pixels or {IDS} & inputs.keys()
    return inputs | {name: _drawn(inputs[name], seed) for name in drawn}


def _drawn(value: Tensor, seed: int) -> Tensor:
    """Normal numbers, or token ids up to the highest of the timed ones."""
    if value.is_floating_point():
        return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed)).to(value)
    batch, length = value.shape
    return random_ids(batch, length, int(value.max()) + 1, seed).to(value)
