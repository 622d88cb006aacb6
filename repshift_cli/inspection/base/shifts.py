"""The shift in every form that a block offers, from what was seen of it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.records import OPERATIONS
from repshift_cli.reduction import repshift
from repshift_cli.reduction.engine.seen import Seen

DISTANCES, FORMS = ("l2", "l1", "cosine"), ("paper", "update")
EVEN = ", even norms"


def shifts(look: Look, layer: int, seen: Seen) -> Iterator[tuple[str, Tensor]]:
    """Each form by name with the scores (B, N) of all tokens, the default first: Choi et al. 2025, Eq. 4.

    With l2 of a branch from the state stands what it is where the states of all tokens are as long.
    """
    for operation in (name for name in OPERATIONS if name in look.subject.sites[layer - 1].operations):
        for form in FORMS if operation != "block" else (None,):
            for distance in DISTANCES:
                told = {"operation": operation, "distance": distance, **({"form": form} if form else {})}
                case = look.case.with_options(**told)
                name = " ".join(told.values())
                yield name, repshift.score(seen, case)
                if (form, distance) == ("paper", "l2"):
                    yield name + EVEN, repshift.score(evened(seen, repshift.needs(case)[0]), case)


def evened(seen: Seen, name: str) -> Seen:
    """What was seen, with the states (B, N, C) of that name scaled to the median of their norms.

    Where a norm stands before the branch, its output is the same for a state of any length: MLP(LN(c x)) = MLP(LN(x)).
    """
    norms = seen[name].norm(dim=-1, keepdim=True)
    return Seen({**seen, name: seen[name] * norms.median(1, keepdim=True).values / norms})


def default_shift(look: Look, layer: int, seen: Seen) -> Tensor:
    """The shift (B, N) by which pruning would choose where nothing else is asked for."""
    return next(shifts(look, layer, seen))[1]
