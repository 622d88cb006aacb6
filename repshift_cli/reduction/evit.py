"""EViT (arXiv 2202.07800): keeps the tokens that the class token attends to, and fuses the others into one more."""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case
from repshift_cli.reduction import cls_attention, nothing
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {"map": "cls_attention"}
PLACE = "middle"
APPENDS = 1
TRAITS = ("attention", "class token")

needs = nothing
score = choose = None


def hear(call: AttentionCall, case: Case) -> Tensor:
    """The class token's attention, the mean over heads: (B, N)."""
    return cls_attention.hear(call, case)


def reduce(seen: Seen, case: Case) -> Reduction:
    """The tokens of the highest a_i = mean_h softmax(q_cls k_i), by it, then one more: the sum of a_i x_i of the rest.

    (Their Sec. 3.2 and Eq. 4; the weights are not normalised.) The fused token is an ordinary one from then on. They
    keep ceil(keep N) of N tokens, which is the rule of all methods here.

    Cost of deciding: the row as in `kernels.maps`, a sort of BN; of the fused row a gather and a product of
    B (N - k) C.
    """
    scores = seen.free(seen.heard)
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept, rest = order[:, : seen.stay], order[:, seen.stay :]
    front = torch.arange(seen.prefix, device=order.device).expand(len(order), -1)
    stay = torch.cat((front, kept + seen.prefix), 1)
    return Reduction(stay, fused=rest + seen.prefix, shares=scores.gather(1, rest))
