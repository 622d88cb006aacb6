"""The shift in every form that a block offers, from what was seen of it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.records import OPERATIONS
from repshift_cli.reduction import repshift
from repshift_cli.reduction.engine.seen import Seen

DISTANCES, FORMS = ("l2", "l1", "cosine"), ("paper", "update")


def shifts(look: Look, layer: int, seen: Seen) -> Iterator[tuple[str, Tensor]]:
    """Each form by name with the scores (B, N) of all tokens, the default first: Choi et al. 2025, Eq. 4."""
    for operation in (name for name in OPERATIONS if name in look.subject.sites[layer - 1].operations):
        for form in FORMS if operation != "block" else (None,):
            for distance in DISTANCES:
                told = {"operation": operation, "distance": distance, **({"form": form} if form else {})}
                yield " ".join(told.values()), repshift.score(seen, look.case.with_options(**told))


def default_shift(look: Look, layer: int, seen: Seen) -> Tensor:
    """The shift (B, N) by which pruning would choose where nothing else is asked for."""
    return next(shifts(look, layer, seen))[1]
