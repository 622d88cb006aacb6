"""Scores of our own that cost no attention map and no training: candidates for a reduction method.

A candidate that scores gives (B, n) for the n tokens that may go, the highest of which stay; one that merges says which
rows stay and what goes into them. Both see the states of the block that is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.seen import Seen


class States(dict[str, Tensor]):
    """The states of the cut block (B, n, C) by the names of `reduction.engine.seen`, of the tokens that may go; `stay`
    of them will stay, and `previous` (B, n) is the printed shift at the block before."""

    stay: int
    previous: Tensor


Score = Callable[[States], Tensor]
Choice = Callable[[States], Tensor]
"""The places (B, stay) that stay among those that may go, in order."""


@dataclass(frozen=True)
class Candidate:
    """Keeps the highest of a score; or keeps a choice and merges each other token `into` one of it, counted there."""

    score: Score | None = None
    choice: Choice | None = None
    into: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def reduce(self, states: States, seen: Seen) -> Reduction:
        """What the engine does with the choice."""
        assert self.choice is not None and self.into is not None
        stay, x = self.choice(states), states["resid_post"]
        gone = torch.ones(x.shape[:2], dtype=torch.bool).scatter(1, stay, False).nonzero()[:, 1].view(len(x), -1)
        target = self.into(x, stay, gone) + seen.prefix
        length = seen["rows"].shape[1]
        places = torch.arange(length).expand(len(x), -1)
        gone = gone + seen.prefix
        stay = torch.cat((places[:, : seen.prefix], stay + seen.prefix, places[:, length - seen.suffix :]), 1)
        weights = None if seen.sizes is None else (seen.sizes.gather(1, stay), seen.sizes.gather(1, gone))
        return Reduction(stay, gone, target, weights)


def signed(name: str, score: Score) -> dict[str, Candidate]:
    """A score and its opposite."""
    return {f"+{name}": Candidate(score), f"-{name}": Candidate(minus(score))}


def minus(score: Score) -> Score:
    return lambda states: -score(states)


def l2(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=-1)


def angle(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b, dim=-1)


SHIFTS: dict[str, Score] = {
    "mlp paper": lambda s: l2(s["mlp_out"] - s["resid_mid"]),
    "mlp update": lambda s: l2(s["mlp_out"]),
    "attention paper": lambda s: l2(s["attn_out"] - s["resid_pre"]),
    "attention update": lambda s: l2(s["attn_out"]),
    "block": lambda s: l2(s["resid_post"] - s["resid_pre"]),
    "mlp paper cosine": lambda s: angle(s["mlp_out"], s["resid_mid"]),
    "attention paper cosine": lambda s: angle(s["attn_out"], s["resid_pre"]),
    "block cosine": lambda s: angle(s["resid_post"], s["resid_pre"]),
}
"""The printed score by operation, form and distance (candidates a)."""


def mean_distance(seen: States) -> Tensor:
    """How unlike a token is the mean token."""
    x = F.normalize(seen["resid_post"], dim=-1)
    return angle(x, x.mean(1, keepdim=True))


def neighbour_distance(seen: States) -> Tensor:
    """How unlike a token is the more similar of its two neighbours."""
    x = F.normalize(seen["resid_post"], dim=-1)
    like = F.pad((x[:, 1:] * x[:, :-1]).sum(-1), (1, 1), value=-1.0)
    return 1 - torch.maximum(like[:, 1:], like[:, :-1])


def strata(tokens: int, count: int, device: torch.device) -> Tensor:
    """Which of `count` even stretches each of `tokens` is in."""
    return (torch.arange(tokens, device=device) * count) // tokens


def stratified(score: Score) -> Score:
    """The highest of each of as many even stretches of the sequence as tokens stay."""

    def spread(seen: States) -> Tensor:
        values = score(seen)
        group = strata(values.shape[1], seen.stay, values.device)
        place = values.argsort(1, descending=True).argsort(1)  # ranks
        best = torch.full((len(values), seen.stay), values.shape[1], device=values.device)
        best = best.scatter_reduce(1, group.expand_as(place), place, "amin")
        return (place == best.gather(1, group.expand_as(place))).to(values.dtype)

    return spread


def quantiles(score: Score) -> Score:
    """Every n-th of the tokens in the order of their scores."""

    def spread(seen: States) -> Tensor:
        order = score(seen).argsort(1)
        n = order.shape[1]
        every = (2 * torch.arange(seen.stay, device=order.device) + 1) * n // (2 * seen.stay)
        return torch.zeros(order.shape).scatter(1, order[:, every], 1.0)

    return spread


def principal(seen: States) -> Tensor:
    """The place along the sample's first principal direction, by four power iterations."""
    x = seen["resid_post"] - seen["resid_post"].mean(1, keepdim=True)
    way = x[:, :1].transpose(1, 2)
    for _ in range(4):
        way = F.normalize(x.transpose(1, 2) @ (x @ way), dim=1)
    return (x @ way).squeeze(-1)


def greedy(pull: float, sign: float) -> Score:
    """Farthest point by cosine, with the shift's rank (0 to 1) times `pull`: the token of the highest sum is next."""

    def spread(seen: States) -> Tensor:
        x = F.normalize(seen["resid_post"], dim=-1)
        shift = sign * SHIFTS["mlp paper"](seen)
        rank = shift.argsort(1).argsort(1) / shift.shape[1]
        far = torch.ones_like(shift)
        taken = torch.zeros_like(shift, dtype=torch.bool)
        for _ in range(seen.stay):
            one = (far + pull * rank).masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
            taken = taken.scatter(1, one, True)
            far = torch.minimum(far, 1 - (x @ x.take_along_dim(one.unsqueeze(-1), 1).transpose(1, 2)).squeeze(-1))
        return taken.to(x.dtype)

    return spread


def peaks(order: Score) -> Score:
    """How unlike a token is all that come before it, those of a higher `order`; the first of all counts as farthest.

    (The delta of density peaks, Rodriguez and Laio 2014, with `order` in the place of the density.) Of many alike the
    one of the highest order stays, without a greedy loop: one product of N x N.
    """

    def spread(seen: States) -> Tensor:
        x, first = F.normalize(seen["resid_post"], dim=-1), order(seen)
        before = first.unsqueeze(1) > first.unsqueeze(2)
        return 1 - (x @ x.transpose(1, 2)).masked_fill(~before, -1.0).amax(-1)

    return spread


def in_order(seen: States) -> Tensor:
    """The place in the sequence, the first the highest."""
    x = seen["resid_post"]
    return -torch.arange(x.shape[1], dtype=torch.float32).expand(x.shape[:2])


def herding(seen: States) -> Tensor:
    """Greedily the tokens whose mean stays nearest to the mean of all (kernel herding, linear kernel)."""
    x = F.normalize(seen["resid_post"], dim=-1)
    mean, total = x.mean(1), torch.zeros_like(x[:, 0])
    taken = torch.zeros(x.shape[:2], dtype=torch.bool)
    for number in range(seen.stay):
        wanted = mean * (number + 1) - total
        one = (x @ wanted.unsqueeze(-1)).squeeze(-1).masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
        taken = taken.scatter(1, one, True)
        total = total + x.take_along_dim(one.unsqueeze(-1), 1).squeeze(1)
    return taken.to(x.dtype)


# --- merging -----------------------------------------------------------------------------------------------------


def kept_by(score: Score) -> Choice:
    return lambda seen: score(seen).topk(seen.stay, 1).indices.sort(1).values


def stride(seen: States) -> Tensor:
    x = seen["resid_post"]
    n = x.shape[1]
    return (torch.arange(seen.stay) * n // seen.stay).expand(len(x), -1)


def by_chance(seen: States) -> Tensor:
    x = seen["resid_post"]
    return torch.rand(x.shape[:2]).topk(seen.stay, 1).indices.sort(1).values


def nearest(x: Tensor, stay: Tensor, gone: Tensor) -> Tensor:
    """Of each token that goes the most similar one that stays, by the cosine of the states."""
    x = F.normalize(x, dim=-1)
    kept, left = (x.take_along_dim(at.unsqueeze(-1), 1) for at in (stay, gone))
    return (left @ kept.transpose(1, 2)).argmax(-1)


def beside(x: Tensor, stay: Tensor, gone: Tensor) -> Tensor:
    """Of each token that goes the more similar of the two that stay next to it in the sequence."""
    x = F.normalize(x, dim=-1)
    behind = torch.searchsorted(stay.contiguous(), gone.contiguous()).clamp_max(stay.shape[1] - 1)
    before = (behind - 1).clamp_min(0)
    left = x.take_along_dim(gone.unsqueeze(-1), 1)
    like = [(left * x.take_along_dim(stay.gather(1, at).unsqueeze(-1), 1)).sum(-1) for at in (before, behind)]
    return torch.where(like[0] >= like[1], before, behind)


ORDERS: dict[str, Score] = {
    "place": in_order,
    "+shift": SHIFTS["mlp paper"],
    "-shift": minus(SHIFTS["mlp paper"]),
    "+norm": lambda s: l2(s["resid_post"]),
    "+mean distance": mean_distance,
}
"""What `peaks` goes by."""


DESTINATIONS: dict[str, Choice] = {
    "stride": stride,
    "random": by_chance,
    "+shift": kept_by(SHIFTS["mlp paper"]),
    "-shift": kept_by(minus(SHIFTS["mlp paper"])),
    "stratified +shift": kept_by(stratified(SHIFTS["mlp paper"])),
    "stratified -shift": kept_by(stratified(minus(SHIFTS["mlp paper"]))),
    "+mean distance": kept_by(mean_distance),
    "-mean distance": kept_by(minus(mean_distance)),
    "greedy": kept_by(greedy(0.0, 1)),
    "peaks place": kept_by(peaks(in_order)),
    "peaks -shift": kept_by(peaks(minus(SHIFTS["mlp paper"]))),
}
"""Which tokens stay where the others are merged into them."""


def pairs_by(likeness: Callable[[Tensor], Tensor]) -> Choice:
    """Of consecutive pairs (0, 1), (2, 3), ... the first tokens of the most alike go; both of the others stay."""

    def choice(seen: States) -> Tensor:
        x = seen["resid_post"]
        n, half = x.shape[1], x.shape[1] // 2
        like = likeness(x[:, : 2 * half].unflatten(1, (half, 2)))
        gone = 2 * like.topk(n - seen.stay, 1).indices
        kept = torch.ones(x.shape[:2], dtype=torch.bool).scatter(1, gone, False)
        return kept.nonzero()[:, 1].view(len(x), seen.stay)

    return choice


def alike(pairs: Tensor) -> Tensor:
    return F.cosine_similarity(pairs[:, :, 0], pairs[:, :, 1], dim=-1)


def into_next(x: Tensor, stay: Tensor, gone: Tensor) -> Tensor:
    return torch.searchsorted(stay.contiguous(), gone.contiguous()).clamp_max(stay.shape[1] - 1)


def rank(values: Tensor) -> Tensor:
    return values.argsort(1).argsort(1).to(torch.float32)


def candidates() -> dict[str, Candidate]:
    """All of them by name; those that need a calibrated map are made by `projected`."""
    printed = SHIFTS["mlp paper"]
    found: dict[str, Candidate] = {}
    for name, shift in SHIFTS.items():
        found |= signed(name, shift)
    found |= signed("norm", lambda s: l2(s["resid_post"]))
    found |= signed("mean distance", mean_distance)
    found |= signed("neighbour distance", neighbour_distance)
    found |= signed("two blocks sum", lambda s: rank(printed(s)) + rank(s.previous))
    found |= signed("two blocks difference", lambda s: rank(printed(s)) - rank(s.previous))
    found |= {f"stratified {n}": Candidate(stratified(score)) for n, score in _spread().items()}
    found |= {f"quantiles {n}": Candidate(quantiles(s)) for n, s in (("shift", printed), ("principal", principal))}
    found |= {
        f"greedy {n}": Candidate(greedy(p, s)) for n, p, s in (("+0.3", 0.3, 1), ("-0.3", 0.3, -1), ("0", 0.0, 1))
    }
    found |= {f"peaks {n}": Candidate(peaks(order)) for n, order in ORDERS.items()}
    found["herding"] = Candidate(herding)
    found["pairs drop"] = Candidate(_kept(pairs_by(alike)))
    found |= {f"merge {n}": Candidate(None, c, nearest) for n, c in DESTINATIONS.items()}
    found |= {f"merge beside {n}": Candidate(None, c, beside) for n, c in DESTINATIONS.items()}
    found["merge pairs"] = Candidate(None, pairs_by(alike), into_next)
    return found


def _kept(choice: Choice) -> Score:
    return lambda seen: torch.zeros(seen["resid_post"].shape[:2]).scatter(1, choice(seen), 1.0)


def _spread() -> dict[str, Score]:
    printed = SHIFTS["mlp paper"]
    return {
        "+shift": printed,
        "-shift": minus(printed),
        "+norm": lambda s: l2(s["resid_post"]),
        "-norm": lambda s: -l2(s["resid_post"]),
        "+mean distance": mean_distance,
        "-mean distance": minus(mean_distance),
    }


def projected(ways: Tensor, weights: Tensor) -> dict[str, Candidate]:
    """With directions (C, r) that matter downstream and a learnt linear score (C), both of a calibration (b)."""
    found = signed("projected update", lambda s: l2(s["mlp_out"] @ ways))
    found |= signed("projected shift", lambda s: l2((s["mlp_out"] - s["resid_mid"]) @ ways))
    found |= signed("projected state", lambda s: l2((s["resid_post"] - s["resid_post"].mean(1, keepdim=True)) @ ways))
    return found | signed("learnt linear", lambda s: F.normalize(s["resid_post"], dim=-1) @ weights)
