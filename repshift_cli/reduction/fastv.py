"""FastV (arXiv 2403.06764): in a decoder, keeps the tokens that the last token attends to."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.kernels.maps import dense, row
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case, UsageError
from repshift_cli.reduction import nothing
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {"map": "cls_attention"}
TRAITS = ("attention", "last token")

needs = nothing
choose = None


def hear(call: AttentionCall, case: Case) -> Tensor:
    """The last token's row of the map, the mean over heads: (B, N). UsageError where it is no decoder's."""
    if not call.is_causal and call.attn_mask is None:
        raise UsageError(f"fastv reads the last token's row, and in {case.model} that one sees no more than others")
    return dense(call).mean(1)[:, -1] if case.option("map") == "dense" else row(call, -1)


def score(seen: Seen, case: Case) -> Tensor:
    """a_i = mean_h softmax(q_last k_i / sqrt(d)) at layer K (their Sec. 4; K = 2 and keep 0.5 there): (B, N).

    Text around an image is protected, and tokens keep their position ids. Cost: that of `kernels.maps.row`.
    """
    return seen.free(seen.heard)
