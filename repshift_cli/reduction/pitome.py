"""PiToMe (arXiv 2405.16148): merges the tokens that have most others like them, and protects those that stand alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.matching import best_match
from repshift_cli.records import Case
from repshift_cli.reduction import nothing, tome
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.pairs import check_half
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {
    "proportional": "tome",
    "margin": {
        "type": "float",
        "default": 0.75,
        "least": -1.0,
        "most": 1.0,
        "help": "PiToMe's margin in the first block; it falls evenly with depth, to 0 behind the last.",
    },
    "early": {
        "type": "str",
        "default": "all",
        "choices": ("all", "energy"),
        "help": "Tokens that may merge in the first half of PiToMe's blocks: all (the authors' code for DeiT) or those "
        "of the highest energy, as later on (the paper).",
    },
}
DEFAULTS = {"proportional": "off"}
PLACE = "middle"
TRAITS = ("attention", "merges")
MOST = 2**24
"""Similarities that exist at a time."""

needs = nothing
score = choose = None
hear = tome.hear


def reduce(seen: Seen, case: Case) -> Reduction:
    """Tokens by energy, the highest first: of the first 2r every second merges into its most similar of the others.

    In the first ceil(L/2) of L blocks (`early` all) every second of all tokens is matched, and the r best edges merge.
    The metric is ToMe's; the rows are then the protected ones, those left by falling energy, those merged into.

    Cost of deciding for n tokens: B n^2 similarities, in blocks of at most MOST, 5 launches a block and 4 B n^2 e
    bytes; a sort of Bn; the matching as in `kernels.matching`.
    """
    metric = F.normalize(seen.free(seen.heard), dim=-1)
    free = metric.shape[1]
    leaving = free - seen.stay
    check_half(leaving, free)
    margin = case.option("margin") * (1 - (seen.layer - 1) / seen.depth)
    order = energy(metric, margin).argsort(dim=1, descending=True, stable=True)
    if case.option("early") == "all" and seen.layer <= (seen.depth + 1) // 2:
        one, other = order[:, ::2], order[:, 1::2]
        values, columns = best_match(_at(metric, one), _at(metric, other))
        ranked = values.argsort(dim=1, descending=True, stable=True)
        edges, left = ranked[:, :leaving], one.gather(1, ranked[:, leaving:])
        return _rows(seen, left, other, one.gather(1, edges), columns.gather(1, edges))
    one, other, left = order[:, : 2 * leaving : 2], order[:, 1 : 2 * leaving : 2], order[:, 2 * leaving :]
    _, columns = best_match(_at(metric, one), _at(metric, other))
    return _rows(seen, left, other, one, columns)


def energy(metric: Tensor, margin: float) -> Tensor:
    """E_i = mean_j elu(cos_ij - margin), alpha 1 (their Eq. 4): (B, n, d), of length 1 each, -> (B, n)."""
    size = max(1, MOST // (len(metric) * metric.shape[1]))
    columns = metric.transpose(1, 2)
    found = [F.elu(rows @ columns - margin, alpha=1.0).mean(-1) for rows in metric.split(size, 1)]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _at(metric: Tensor, places: Tensor) -> Tensor:
    return metric.take_along_dim(places.unsqueeze(-1), 1)


def _rows(seen: Seen, left: Tensor, other: Tensor, merged: Tensor, columns: Tensor) -> Reduction:
    batch, front = len(left), seen.prefix
    length = front + seen.suffix + left.shape[1] + other.shape[1] + merged.shape[1]
    places = torch.arange(length, device=left.device).expand(batch, -1)
    stay = torch.cat((places[:, :front], left + front, other + front, places[:, length - seen.suffix :]), 1)
    merged = merged + front
    weights = None if seen.sizes is None else (seen.sizes.gather(1, stay), seen.sizes.gather(1, merged))
    return Reduction(stay, merged, front + left.shape[1] + columns, weights)
