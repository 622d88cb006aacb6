"""Control: keeps the longest tokens (L2 norm), to see whether it is the SHIFT that matters."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.kernels.shift import length
from repshift_cli.records import Case

OPTIONS = {"sign": "repshift"}

choose = None


def needs(case: Case) -> tuple[str, ...]:
    """What is cut, the block's output."""
    return ("resid_post",)


def score(seen: dict[str, Tensor], case: Case) -> Tensor:
    """||x^||_2 of every token at the end of the block, its sign turned where it is `lowest`: (B, N, C) -> (B, N)."""
    norms = length(seen["resid_post"], "l2")
    return -norms if case.option("sign") == "lowest" else norms
