"""DivPrune (arXiv 2503.02175): keeps the most diverse tokens, each the farthest from those kept before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.records import Case
from repshift_cli.reduction.engine.seen import Seen

TRAITS = ("row",)

choose = None


def needs(case: Case) -> tuple[str, ...]:
    """What is cut, the block's output."""
    return ("resid_post",)


def score(seen: Seen, case: Case) -> Tensor:
    """By how early it was taken, 0 for the others: (B, N), by the greedy solution of max-min diversity.

    The first is the one whose nearest other is farthest, by 1 - cosine of x^; then always the one whose nearest kept
    one is farthest (their Algorithm 1). They do so once, on the image's tokens before the language model. As the order
    says more than the choice, samples of different lengths each keep the first of their own.

    Cost for k kept of N: a product of B N^2 C and its B N^2 distances, then 5 launches of BN each for every token kept,
    one after the other: 5 k launches.
    """
    states, free = F.normalize(seen["resid_post"], dim=-1), seen.free_ones
    apart = 1 - states @ states.transpose(1, 2)
    if free is not None:
        apart = apart.masked_fill(~free.unsqueeze(1), torch.inf)
    nearest = apart.topk(min(2, apart.shape[1]), 1, largest=False).values[:, -1]  # the nearest of all is itself
    scores, most = torch.zeros_like(nearest), seen.stay
    for number in range(most):
        if free is not None:
            nearest = nearest.masked_fill(~free, -torch.inf)
        chosen = nearest.argmax(1, keepdim=True)
        row = apart.take_along_dim(chosen.unsqueeze(-1), 1).squeeze(1)
        nearest = (row if number == 0 else torch.minimum(nearest, row)).scatter(1, chosen, -torch.inf)
        scores = torch.maximum(scores, torch.zeros_like(scores).scatter(1, chosen, float(most - number)))
    return scores
