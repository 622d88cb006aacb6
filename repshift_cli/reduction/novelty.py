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
    """1 - max over j < i of cos(x^_i, x^_j): (B, N, C) -> (B, N), 2 for the first; j neither protected nor padding.

    What farthest point sampling asks (`divprune`), but of all tokens at once in their order, not after every token kept.
    No attention map, no training, and causal: what follows a token does not change its score.

    Cost for tokens of e bytes: the norm 2 launches and 3 BNC e, then 4 launches a block of rows for half of B N^2 C
    products, of which at most `MOST` exist at a time.
    """
    states = F.normalize(seen["resid_post"], dim=-1)
    return 1 - likeness_before(states, None if seen.free_ones is None else ~seen.free_ones)


def likeness_before(states: Tensor, closed: Tensor | None = None) -> Tensor:
    """The highest product of every row with one before it that is not `closed` (B, N): (B, N, C) -> (B, N), else -1."""
    batch, tokens, _ = states.shape
    size = max(1, MOST // (batch * tokens))
    found = []
    for first in range(0, tokens, size):
        rows = states[:, first : first + size]
        last = first + rows.shape[1]
        out = torch.ones(rows.shape[1], last, dtype=torch.bool, device=states.device).triu(first)
        if closed is not None:
            out = out | closed[:, None, :last]
        found.append((rows @ states[:, :last].transpose(1, 2)).masked_fill(out, -1).amax(-1))
    return torch.cat(found, 1)
