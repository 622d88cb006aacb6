"""Example method: keeps the tokens with the longest states."""

import torch

from repshift_cli.records import Case

OPTIONS = ()  # of --operation, --distance, --form those that it takes; a dict declares others (powered.py)


def needs(case: Case) -> tuple[str, ...]:
    return ("resid_post",)  # of resid_pre, attn_out, resid_mid, mlp_out, resid_post: (B, N, C), without protected ends


def score(seen: dict[str, torch.Tensor], case: Case) -> torch.Tensor:
    return seen["resid_post"].norm(dim=-1)
