"""Keeps the tokens that the class token attends to most: the shift paper's "Attn" where there is a class token."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.kernels.maps import dense, row
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case
from repshift_cli.reduction import nothing
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {
    "map": {
        "type": "str",
        "default": "rows",
        "choices": ("rows", "dense"),
        "help": "What is worked out again of the attention map: rows (only those that the score needs, block by block) "
        "or dense (all N x N of it, as is done where a kernel does not put it out).",
    },
}
TRAITS = ("attention", "class token")

needs = nothing
choose = None


def hear(call: AttentionCall, case: Case) -> Tensor:
    """The class token's row of the map, the mean over heads: (B, N), by itself or of the whole map."""
    return dense(call).mean(1)[:, 0] if case.option("map") == "dense" else row(call, 0)


def score(seen: Seen, case: Case) -> Tensor:
    """a_i = mean_h softmax(q_cls k_i / sqrt(d)): (B, N). Cut at the block's end, so that only the score differs from
    `repshift`.

    Cost: that of `kernels.maps.row`, 4 launches; `dense` reads and writes B H N^2 scores three times.
    """
    return seen.free(seen.heard)
