"""Control: keeps the longest tokens (L2 norm), to see whether it is the SHIFT that matters."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.kernels.shift import length
from repshift_cli.records import Case

choose = None


def needs(case: Case) -> tuple[str, ...]:
    """What is cut, the block's output."""
    return ("resid_post",)


def score(seen: dict[str, Tensor], case: Case) -> Tensor:
    """||x^||_2 of every token at the end of the block: (B, N, C) -> (B, N)."""
    return length(seen["resid_post"], "l2")
