"""Keeps the tokens that are farthest from each other, and merges every other one into the kept one most like it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.records import Case
from repshift_cli.reduction import nothing
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {"proportional": "tome"}
DEFAULTS = {"proportional": "off"}
TRAITS = ("merges any",)

needs = nothing
score = choose = None


def reduce(seen: Seen, case: Case) -> Reduction:
    """The rows of `farthest`, by the cosine of x^, in order; each of the others goes into the kept one of the highest
    cosine, of equal ones the first.

    Found by measurement (profiles/baselines/README.md, "A score of our own"): no attention map, nothing learnt.

    Cost of deciding for k kept of n: a product of B n^2 C, then 5 launches of Bn for every token kept, one after the
    other; a gather and a maximum of B (n - k) k.
    """
    states = F.normalize(seen.free(seen["rows"]), dim=-1)
    like = states @ states.transpose(1, 2)
    length, (batch, free) = seen["rows"].shape[1], states.shape[:2]
    order = (~farthest(like, seen.stay)).to(torch.int8).argsort(dim=1, stable=True)
    kept, gone = order[:, : seen.stay], order[:, seen.stay :]
    to_kept = like.take_along_dim(gone.unsqueeze(-1), 1).take_along_dim(kept.unsqueeze(1), 2)
    places, front = torch.arange(length, device=kept.device).expand(batch, -1), seen.prefix
    stay = torch.cat((places[:, :front], kept + front, places[:, front + free :]), 1)
    merged = gone + front
    weights = None if seen.sizes is None else (seen.sizes.gather(1, stay), seen.sizes.gather(1, merged))
    return Reduction(stay, merged, front + to_kept.argmax(-1), weights)


def farthest(like: Tensor, count: int) -> Tensor:
    """The first token, then always the one whose most similar taken one is least like it: (B, n, n) -> which, (B, n).

    (Farthest-point sampling, Gonzalez 1985.) Likeness below 0 counts as 0; of equal ones the first is taken.
    """
    taken = torch.zeros_like(like[:, 0], dtype=torch.bool)
    nearest = torch.zeros_like(like[:, 0])
    for _ in range(count):
        chosen = nearest.masked_fill(taken, torch.inf).argmin(1, keepdim=True)
        taken = taken.scatter(1, chosen, True)
        nearest = torch.maximum(nearest, like.take_along_dim(chosen.unsqueeze(-1), 1).squeeze(1))
    return taken
