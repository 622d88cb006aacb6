"""Keeps the tokens that all others attend to most: the shift paper's "Attn" where there is no class token."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.kernels.maps import column_means
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case
from repshift_cli.reduction import nothing
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {"map": "cls_attention"}
TRAITS = ("attention",)

needs = nothing
choose = None


def hear(call: AttentionCall, case: Case) -> Tensor:
    """The column means of the map over heads and queries: (B, N), by blocks of queries or of the whole map."""
    return column_means(call, whole=case.option("map") == "dense")


def score(seen: Seen, case: Case) -> Tensor:
    """a_j = mean_h mean_i softmax(q_i k_j / sqrt(d)): (B, N). Cut at the block's end.

    Every row of the map is needed, so attention's first product is worked out twice (see `kernels.maps`); by blocks no
    N x N matrix is kept. In a causal model the first tokens are seen by all, and score high for that alone.
    """
    return seen.free(seen.heard)
