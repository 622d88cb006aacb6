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


DRAWS = 4
"""Random halves that a half is compared with."""


class _ByScores(Method):
    """Keeps what has the highest of given `scores` (B, n), another row in each copy of one sample.

    `own` (n,) are the places of the tokens that may go, `first` how many protected ones stand ahead of all scores.
    """

    def __init__(self, scores: Tensor, own: Tensor, first: int) -> None:
        self._given, self._places = scores, own - first
        self.needs, self.choose, self.score = nothing, None, self._scores

    def _scores(self, seen: Seen, case: Case) -> Tensor:
        """The scores among all tokens of the block, protected ends apart: (B, N)."""
        rows = seen["rows"]
        scores = torch.zeros(rows.shape[:2], dtype=self._given.dtype, device=rows.device)
        scores[:, self._places] = self._given.to(rows.device)
        return scores


def importance(look: Look, inputs: Any, layer: int, places: Tensor, reference: Tensor, what: str) -> Tensor:
    """The change of the output where the token at each of `places` (m,) is dropped after block `layer`: (m,), fp64.

    `inputs` are those of one sample, `reference` (1, K) its output untouched. Copies of the sample run side by side.
    """
    own = own_places(look.subject, inputs)
    scores = -(places.unsqueeze(1) == own).double()
    step = max(1, MOST_TOKENS // entering(look.subject))
    keep = 1 - 1.5 / len(own)  # of n tokens int(1.5) go
    return torch.cat([_changes(look, inputs, layer, some, keep, reference, what) for some in scores.split(step)])


def halves(
    look: Look, inputs: Any, layer: int, score: Tensor, draw: torch.Generator, reference: Tensor, what: str
) -> tuple[float, float] | None:
    """What dropping the half with the lower `score` (n,) after a block, all at once, changes, and the one with the
    higher, each over the mean of random halves; None where dropping a random half changes nothing."""
    random = torch.rand(DRAWS, len(score), generator=draw, dtype=score.dtype)
    scores = torch.cat((score.unsqueeze(0), -score.unsqueeze(0), random))
    lower, higher, *others = _changes(look, inputs, layer, scores, 0.5, reference, what).tolist()
    usual = sum(others) / DRAWS
    return (lower / usual, higher / usual) if usual else None


def noise(look: Look, inputs: Any, count: int, reference: Tensor, what: str) -> float:
    """A change of the output that rounding alone may make: ten times that of as many copies from which nothing goes."""
    step = max(1, min(count, MOST_TOKENS // entering(look.subject)))
    return 10 * float(change(reference, read_out(look.subject, look.run(copies(inputs, step))), what).max())


def _changes(look: Look, inputs: Any, layer: int, scores: Tensor, keep: float, reference: Tensor, what: str) -> Tensor:
    """The change of the output for each row of `scores` (B, n) by which tokens stay after a block: (B,)."""
    subject = look.subject
    case = replace(look.case, pruning="by-scores", keep=keep, layers=(layer,))
    with pruned(subject, _ByScores(scores, own_places(subject, inputs), subject.prefix), case):
        return change(reference, read_out(subject, look.run(copies(inputs, len(scores)))), what).cpu()


def copies(inputs: Any, count: int) -> Any:
    """One sample's inputs as `count` copies of it; what is no tensor stays."""
    if isinstance(inputs, dict):
        return {name: _copied(value, count) for name, value in inputs.items()}
    return tuple(_copied(value, count) for value in inputs)


def _copied(value: Any, count: int) -> Any:
    return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) and value.ndim else value
