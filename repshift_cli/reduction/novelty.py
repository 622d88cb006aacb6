"""Keeps the tokens least like any token before them: of many alike only the first stays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.records import Case
from repshift_cli.reduction.engine.seen import Seen

MOST = 2**24
"""Similarities that exist at a time."""

choose = None


def needs(case: Case) -> tuple[str, ...]:
    """What is cut, the block's output."""
    return ("resid_post",)


def score(seen: Seen, case: Case) -> Tensor:
    """1 - max over j < i of cos(x^_i, x^_j): (B, N, C) -> (B, N), 2 for the first token.

    It asks what farthest point sampling (`divprune`) asks, but once, in the order of the sequence, not after every
    token kept; needs no attention map and no training; and what follows a token, padding too, does not change its score.

    Cost for tokens of e bytes: the norm 2 launches and 3 BNC e, then 3 launches a block of rows, of B N^2 C products
    half, of which at most `MOST` exist at a time.
    """
    return 1 - likeness_before(F.normalize(seen["resid_post"], dim=-1))


def likeness_before(states: Tensor) -> Tensor:
    """The highest product of every row with a row before it: (B, N, C) -> (B, N), -1 for the first."""
    batch, tokens, _ = states.shape
    size = max(1, MOST // (batch * tokens))
    found = []
    for first in range(0, tokens, size):
        rows = states[:, first : first + size]
        earlier = states[:, : first + rows.shape[1]]
        later = torch.ones(rows.shape[1], earlier.shape[1], dtype=torch.bool, device=states.device).triu(first)
        found.append((rows @ earlier.transpose(1, 2)).masked_fill(later, -1).amax(-1))
    return torch.cat(found, 1)
