"""MCTF (arXiv 2403.10030): merges what is alike, little attended to and small, in both directions, before the block."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.maps import column_means
from repshift_cli.kernels.matching import best_match
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case
from repshift_cli.reduction import nothing
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.pairs import Half, check_half, halves, protected_apart
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {
    "map": "cls_attention",
    "proportional": "tome",
    "ahead": {
        "type": "str",
        "default": "reuse",
        "choices": ("reuse", "again", "off"),
        "help": "MCTF's attention of the block to come: reuse (its map, merged; the authors' default), again (worked "
        "out anew from the merged tokens) or off (tokens merge at the block's end, by the map it had).",
    },
    "tau_sim": {
        "type": "float",
        "default": 1.0,
        "least": 0.0,
        "most": 1000.0,
        "help": "MCTF's temperature of similarity; at 0 it does not count.",
    },
    "tau_info": {
        "type": "float",
        "default": 20.0,
        "least": 0.0,
        "most": 1000.0,
        "help": "MCTF's temperature of informativeness; at 0 it does not count.",
    },
    "tau_size": {
        "type": "float",
        "default": 40.0,
        "least": 0.0,
        "most": 1000.0,
        "help": "MCTF's temperature of size; at 0 it does not count.",
    },
}
HEARS_SIZES = True
PLACE = "start"
TRAITS = ("attention", "merges")

needs = nothing
score = choose = None


def place(case: Case) -> str:
    """Before the block, or at its end without the look ahead."""
    return "end" if case.option("ahead") == "off" else "start"


def hear(call: AttentionCall, case: Case) -> Tensor:
    """a_j, the column means of the map over heads and queries, with the sizes where these weigh in it: (B, N)."""
    return column_means(call, whole=case.option("map") == "dense")


def reduce(seen: Seen, case: Case) -> Reduction:
    """Tokens at even places against those at odd ones, by W_ij = W_sim W_info W_size (their Eq. 3 to 7), both ways.

    W_sim = ((cos(x_i, x_j) + 1) / 2)^(1 / tau_sim), W_info = (1 / a_i a_j)^(1 / tau_info), W_size = (1 / s_i s_j)^(1 /
    tau_size), the inverses scaled to at most 1 each. Of r that leave, floor(r / 2) even tokens merge into their best
    odd ones, then the others, odd ones, into their best of the even ones left, together with what went into them. A row
    is the mean of its tokens by a_i s_i; sizes add up. The rows are then the protected ones, the even ones left and the
    odd ones left, by falling W.

    Cost of deciding: that of asking the block (`engine.ahead`), of the column means (`kernels.maps`), and twice
    the matching as in `kernels.matching`, over C channels and with 4 launches more a block; two sorts of BN / 2.
    """
    metric, length = F.normalize(seen["rows"], dim=-1), seen["rows"].shape[1]
    even, odd = halves(seen, length, metric.device)
    free = length - seen.prefix - seen.suffix
    leaving = free - seen.stay
    check_half(leaving, free)
    alike = Alike(metric, criteria(seen.heard, seen.sizes, case), case.option("tau_sim"))
    gone_even, best_odd, left_even = alike.matched(even, odd, None, leaving // 2)
    gone_odd, best_even, left_odd = alike.matched(odd, even, gone_even, leaving - leaving // 2)
    if seen.prefix:
        left_even = left_even.sort(dim=1).values
    stay = torch.cat((even.places[left_even], odd.places[left_odd]), 1)
    stay = stay.gather(1, protected_apart(seen, stay, length))
    rows = torch.arange(stay.shape[1], device=stay.device).expand_as(stay)
    slots = torch.zeros_like(seen.heard, dtype=torch.int64).scatter(1, stay, rows)
    into_even = slots.gather(1, even.places[best_even])
    into_odd = slots.scatter(1, odd.places[gone_odd], into_even).gather(1, odd.places[best_odd])
    merged = torch.cat((even.places[gone_even], odd.places[gone_odd]), 1)
    return _weighed(Reduction(stay, merged, torch.cat((into_odd, into_even), 1)), seen, case)


def criteria(informative: Tensor, sizes: Tensor | None, case: Case) -> Tensor:
    """(min a / a_i)^(1 / tau_info) (min s / s_i)^(1 / tau_size), each token's part of W: (B, N)."""
    own = torch.ones_like(informative)
    for values, tau in ((informative, case.option("tau_info")), (sizes, case.option("tau_size"))):
        if values is not None and tau:
            own = own * (values.amin(1, keepdim=True) / values) ** (1 / tau)
    return own


class Alike(NamedTuple):
    """W between tokens: of the rows x (B, N, C) of length 1, each token's own part (B, N), and tau_sim."""

    rows: Tensor
    own: Tensor
    tau: float

    def matched(self, one: Half, other: Half, gone: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of `one` the `count` of the highest W (B, count), their best of `other` that are not `gone`, and the rest."""
        own, closed = self.own[:, other.slice].unsqueeze(1), other.closed
        if gone is not None:
            merged = torch.zeros_like(self.own[:, other.slice], dtype=torch.bool).scatter(1, gone, True)
            closed = merged if closed is None else merged | closed

        def weigh(cosines: Tensor) -> Tensor:
            alike = (cosines + 1) / 2 if self.tau else torch.ones_like(cosines)
            return (alike if self.tau in (0, 1) else alike.clamp_min(0) ** (1 / self.tau)) * own

        values, best = best_match(self.rows[:, one.slice], self.rows[:, other.slice], closed, weigh)
        values = values * self.own[:, one.slice]
        if one.closed is not None:
            values = values.masked_fill(one.closed, -torch.inf)
        order = values.argsort(dim=1, descending=True, stable=True)
        return order[:, :count], best.gather(1, order[:, :count]), order[:, count:]


def _weighed(reduction: Reduction, seen: Seen, case: Case) -> Reduction:
    """Weighed by a_i s_i (scaled to a mean of 1, for 16 bits), with the sums of the sizes, none of which is lost."""
    assert reduction.merged is not None
    weights, sizes = seen.heard, seen.sizes
    if sizes is not None:
        weights = weights * sizes
        reduction = reduction._replace(weights=(sizes.gather(1, reduction.stay), sizes.gather(1, reduction.merged)))
    weights = weights / weights.mean(1, keepdim=True)
    return reduction._replace(
        sizes=reduction.totals(weights.dtype),
        weights=(weights.gather(1, reduction.stay), weights.gather(1, reduction.merged)),
        asks=case.option("ahead") == "reuse",
    )
