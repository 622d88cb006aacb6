"""vid-TLDR (arXiv 2403.13347): merges as ToMe does, and weakens what it merges by how flat its attention is."""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.kernels.maps import dense, row_entropies
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case
from repshift_cli.reduction import nothing, tome
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {"map": "cls_attention", "proportional": "tome"}
PLACE = "middle"
TRAITS = ("attention", "merges")

needs = nothing
score = choose = None


def hear(call: AttentionCall, case: Case) -> Tensor:
    """sum_j p_ij log p_ij of the mean map p over heads: (B, N), high where a row is sharp."""
    if case.option("map") != "dense":
        return row_entropies(call)
    mean = dense(call).mean(1)
    return torch.xlogy(mean, mean).sum(-1)


def reduce(seen: Seen, case: Case) -> Reduction:
    """ToMe's matching with x' as the metric; what is merged weighs `saliency` times its size, what it merges into 1.

    The new sizes are the sums of those weights (their Eq. 6 to 9 and code), so that they do not add up to the number of
    tokens. The entropies are of the map without them. The similarity there is (cosine + 1) / 2, which matches alike.

    Cost of deciding: the entropies, which need every row of the map (`kernels.maps`), 13 launches of BN for the
    saliency, and ToMe's matching over C channels in the place of d.
    """
    metric = seen["rows"]
    found = tome.merge_by(metric, seen)
    assert found.merged is not None
    weights = found.weights or (torch.ones_like(found.stay), torch.ones_like(found.merged))
    strength = torch.nn.functional.pad(saliency(seen.free(seen.heard)), (seen.prefix, seen.suffix))
    return found._replace(weights=(weights[0], weights[1] * strength.gather(1, found.merged)))


def saliency(scores: Tensor) -> Tensor:
    """Scores (B, N) from 0 to 1 over the tokens, less their mean, from 0 to 1 again; 0 for those below the mean."""
    least = torch.finfo(scores.dtype).tiny
    scores = scores - scores.amin(1, keepdim=True)
    scores = scores / scores.amax(1, keepdim=True).clamp_min(least)
    mean = scores.mean(1, keepdim=True)
    sharp = (scores - mean) / (scores - mean).amax(1, keepdim=True).clamp_min(least)
    return torch.where(scores < mean, 0, sharp)
