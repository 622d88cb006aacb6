"""Control: keeps a random choice of the same size, drawn anew in every forward."""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.records import Case

choose = None


def needs(case: Case) -> tuple[str, ...]:
    """Only the number of tokens."""
    return ()


def score(seen: dict[str, Tensor], case: Case) -> Tensor:
    """Uniform scores (B, N) from torch's default generator, which the fidelity pass seeds with the case's seed."""
    batch, tokens, _ = seen["rows"].shape
    return torch.rand(batch, tokens, device=seen["rows"].device)
