"""Example method with an option of its own: keeps the tokens with the longest states, or with the shortest."""

import torch

from repshift_cli.records import Case

OPTIONS = {
    "power": {"type": "float", "default": 1.0, "least": -4.0, "most": 4.0, "help": "Exponent of a state's length."},
}


def needs(case: Case) -> tuple[str, ...]:
    return ("resid_post",)


def score(seen: dict[str, torch.Tensor], case: Case) -> torch.Tensor:
    return seen["resid_post"].norm(dim=-1) ** case.option("power")
