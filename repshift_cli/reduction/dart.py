"""DART (arXiv 2502.11494): keeps a few pivot tokens and those least like them: duplication, not importance."""

from __future__ import annotations

from typing import Any

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

    Samples of different lengths each keep their own share.

    Cost: 5 launches and BNC e bytes for each pivot, a sort of BN among them; the pivots follow each other.
    """
    states, norms = F.normalize(seen["resid_post"], dim=-1), seen.free(seen.heard)
    free, stays = seen.free_ones, seen.stays
    stay = seen.stay if stays is None else stays.unsqueeze(1)
    if free is not None:
        norms = norms.masked_fill(~free, -torch.inf)
    most = min(case.option("pivots") or 4, seen.stay)
    own = norms.argsort(dim=1, descending=True, stable=True)[:, :most]
    count: Any = most if isinstance(stay, int) else stay.clamp(1, most)
    taken = torch.zeros_like(norms, dtype=torch.bool) if free is None else ~free
    taken = _with_first(taken, own, count)
    for number in range(most):
        share = ((stay - count) * (number + 1)) // count - ((stay - count) * number) // count
        pivot = states.take_along_dim(own[:, number, None, None], 1)
        likeness = (states * pivot).sum(-1).masked_fill(taken, torch.inf)
        taken = _with_first(taken, likeness.argsort(dim=1, stable=True), share * (number < count))
    return taken.to(norms.dtype)


def _with_first(taken: Tensor, order: Tensor, count: Any) -> Tensor:
    """With the first `count` of every sample's `order` (B, k), a number or one for each sample (B, 1): (B, N)."""
    if isinstance(count, int):
        return taken.scatter(1, order[:, :count], True)
    new = torch.arange(order.shape[1], device=order.device) < count
    return taken.scatter(1, order, taken.gather(1, order) | new)
