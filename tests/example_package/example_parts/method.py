"""Example method: keeps the tokens with the longest states."""

import torch

from repshift_cli.records import Case

OPTIONS = ()  # of --operation, --distance, --form those that it takes


def needs(case: Case) -> tuple[str, ...]:
    return ("out",)  # of x, attention, middle (x'), mlp, out: each (B, N, C), without protected ends


def score(seen: dict[str, torch.Tensor], case: Case) -> torch.Tensor:
    return seen["out"].norm(dim=-1)
