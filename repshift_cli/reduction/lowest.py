"""Control: keeps the tokens with the LOWEST shift, to see whether the sign is right at this depth."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.records import Case
from repshift_cli.reduction import repshift

OPTIONS = {"operation": "repshift", "distance": "repshift", "form": "repshift"}

needs = repshift.needs
choose = None


def score(seen: dict[str, Tensor], case: Case) -> Tensor:
    """The shift with its sign turned: (B, N)."""
    return -repshift.score(seen, case)
