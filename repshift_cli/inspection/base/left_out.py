"""A token's true importance: how far the output moves when that token alone is dropped after a block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base.blocks import entering, own_places
from repshift_cli.inspection.base.effects import change, read_out
from repshift_cli.records import Case
from repshift_cli.reduction import Method, nothing
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.seen import Seen

MOST_TOKENS = 4096
"""Tokens of all copies together that one forward runs on."""


class _WithoutOne(Method):
    """Drops another token in each copy of one sample: those at `places` (B,), of which the first can be `first`."""

    def __init__(self, places: Tensor, first: int) -> None:
        self._places, self._first = places, first
        self.needs, self.choose, self.score = nothing, None, self._scores

    def _scores(self, seen: Seen, case: Case) -> Tensor:
        """0 for what stays and -1 for the one: (B, N), without protected ends."""
        rows = seen["rows"]
        scores = torch.zeros(rows.shape[:2], device=rows.device)
        scores[torch.arange(len(rows)), self._places - self._first] = -1
        return scores


def importance(look: Look, inputs: Any, layer: int, places: Tensor, reference: Tensor, what: str) -> Tensor:
    """The change of the output where the token at each of `places` (m,) is dropped after block `layer`: (m,), fp64.

    `inputs` are those of one sample, `reference` (1, K) its output untouched. Copies of the sample run side by side.
    """
    step = max(1, MOST_TOKENS // entering(look.subject))
    return torch.cat([_changes(look, inputs, layer, some, reference, what) for some in places.split(step)])


def noise(look: Look, inputs: Any, count: int, reference: Tensor, what: str) -> float:
    """A change of the output that rounding alone may make: ten times that of as many copies from which nothing goes."""
    step = max(1, min(count, MOST_TOKENS // entering(look.subject)))
    return 10 * float(change(reference, read_out(look.subject, look.run(copies(inputs, step))), what).max())


def _changes(look: Look, inputs: Any, layer: int, places: Tensor, reference: Tensor, what: str) -> Tensor:
    subject = look.subject
    keep = 1 - 1.5 / len(own_places(subject, inputs))  # of n tokens int(1.5) go
    case = replace(look.case, pruning="without-one", keep=keep, layers=(layer,))
    with pruned(subject, _WithoutOne(places, subject.prefix), case):
        return change(reference, read_out(subject, look.run(copies(inputs, len(places)))), what).cpu()


def copies(inputs: Any, count: int) -> Any:
    """One sample's inputs as `count` copies of it; what is no tensor stays."""
    if isinstance(inputs, dict):
        return {name: _copied(value, count) for name, value in inputs.items()}
    return tuple(_copied(value, count) for value in inputs)


def _copied(value: Any, count: int) -> Any:
    return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) and value.ndim else value
