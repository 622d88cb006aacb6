"""DART (arXiv 2502.11494): keeps a few pivot tokens and those least like them: duplication, not importance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {
    "pivots": {
        "type": "int",
        "default": 4,
        "least": 1,
        "help": "DART's pivots among the tokens that may go, and as many among the text behind them.",
    },
}
TRAITS = ("attention", "row")

choose = None


def needs(case: Case) -> tuple[str, ...]:
    """What is cut, the block's output."""
    return ("resid_post",)


def hear(call: AttentionCall, case: Case) -> Tensor:
    """The L1 norm of every token's keys over all heads: (B, H, N, d) -> (B, N)."""
    return call.key.abs().sum((1, 3))


def score(seen: Seen, case: Case) -> Tensor:
    """1 for the tokens that stay and 0 for the others: (B, N).

    Pivots are the tokens of the largest key norm, `pivots` of those that may go, which stay, and as many of the
    protected ones behind them (an image's question). In turn, every pivot keeps its share of the tokens with the lowest
    cosine to it that no pivot before has kept; the shares differ by one at most, so that exactly `stay` are kept. The
    cosine is of x^ as it is; the authors norm it by the model's last norm first.

    Cost: 5 launches and BNC e bytes for each pivot, a sort of BN among them; the pivots follow each other.
    """
    states, norms = F.normalize(seen["resid_post"], dim=-1), seen.free(seen.heard)
    own = norms.topk(min(case.option("pivots") or 4, seen.stay), 1).indices
    taken = torch.zeros_like(norms, dtype=torch.bool).scatter(1, own, True)
    room, count = seen.stay - own.shape[1], own.shape[1]
    for number in range(count):
        share = (room * (number + 1)) // count - (room * number) // count
        pivot = states.take_along_dim(own[:, number, None, None], 1)
        likeness = (states * pivot).sum(-1).masked_fill(taken, torch.inf)
        taken = taken.scatter(1, likeness.topk(share, 1, largest=False).indices, True)
    return taken.to(norms.dtype)
