"""DASH (arXiv 2604.18103): keeps the tokens with the longest attention branch; repshift's attention, update, l2."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.records import Case
from repshift_cli.reduction import repshift

choose = None


def needs(case: Case) -> tuple[str, ...]:
    """What the attention branch puts out."""
    return repshift.needs(_preset(case))


def score(seen: dict[str, Tensor], case: Case) -> Tensor:
    """||SA(LN(x))||_2 before the residual sum: (B, N, C) -> (B, N). The token says by it how much it took from others.

    The same as repshift with operation `attention`, form `update` and distance `l2`, under the name it has for language
    models' prefill.
    """
    return repshift.score(seen, _preset(case))


def _preset(case: Case) -> Case:
    return case.with_options(operation="attention", distance="l2", form="update")
