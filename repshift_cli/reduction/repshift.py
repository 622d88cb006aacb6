"""Representation shift: keeps the tokens that a layer changes most (Choi et al. 2025, arXiv 2508.00367)."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.kernels.shift import distance, length, moved_from
from repshift_cli.records import Case

OPTIONS = {
    "operation": {
        "type": "str",
        "choices": ("mlp", "attention", "block"),
        "per_layer": True,
        "help": "Operation whose shift is scored: mlp, attention (or what else mixes the tokens), block. (default: the "
        "model's first of these)",
    },
    "distance": {
        "type": "str",
        "default": "l2",
        "choices": ("l2", "l1", "cosine"),
        "per_layer": True,
        "help": "Distance: l2, l1, cosine.",
    },
    "form": {
        "type": "str",
        "default": "paper",
        "choices": ("paper", "update"),
        "per_layer": True,
        "unless": {"operation": "block"},
        "help": "What the branch's output is compared as: paper (with the block's running state, as printed) or "
        "update (as the change of that state).",
    },
    "sign": {
        "type": "str",
        "choices": ("highest", "lowest"),
        "per_layer": True,
        "help": "Which tokens stay: those of the highest score, or of the lowest. With --per-layer highest,lowest is "
        "one for each layer. (default: highest)",
    },
}

_SEES = {
    "mlp": ("resid_mid", "mlp_out"),
    "attention": ("resid_pre", "attn_out"),
    "block": ("resid_pre", "resid_post"),
}

choose = None


def needs(case: Case) -> tuple[str, ...]:
    """The state before the operation and what the operation gives."""
    before, branch = _SEES[case.option("operation") or "mlp"]
    needless = _is_update(case) and case.option("distance") != "cosine"
    return (branch,) if needless else (before, branch)


def score(seen: dict[str, Tensor], case: Case) -> Tensor:
    """s = D(F(x), x) for every token (Eq. 4), or -s with the sign `lowest`: tensors (B, N, C) -> (B, N), highest kept.

    | operation | form `paper` (as printed)  | form `update`                        |
    |-----------|----------------------------|--------------------------------------|
    | mlp       | D(MLP(LN(x')), x')         | D(x' + MLP(LN(x')), x'), so a norm   |
    | attention | D(SA(LN(x)), x)            | D(x + SA(LN(x)), x), so a norm       |
    | block     | D(x^, x): both are the same, and a `form` says nothing            |
    """
    scores = _shift(seen, case)
    return -scores if case.option("sign") == "lowest" else scores


def _is_update(case: Case) -> bool:
    """Whether the branch is the change itself; of a whole block's shift the form of another layer says nothing."""
    return case.option("form") == "update" and case.option("operation") != "block"


def _shift(seen: dict[str, Tensor], case: Case) -> Tensor:
    before, branch = _SEES[case.option("operation") or "mlp"]
    kind = case.option("distance") or "l2"
    if _is_update(case):
        return length(seen[branch], kind) if before not in seen else moved_from(seen[before], seen[branch], kind)
    return distance(seen[branch], seen[before], kind)
