"""ToMe (arXiv 2210.09461): merges the most similar tokens, by their keys, between attention and MLP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.matching import best_match
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case
from repshift_cli.reduction import nothing
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.pairs import halves, matched
from repshift_cli.reduction.engine.seen import Seen

OPTIONS = {
    "proportional": {
        "type": "str",
        "default": "auto",
        "choices": ("auto", "on", "off"),
        "help": "Add the log of the tokens' sizes to later attention scores: on, off, or auto (where the back end "
        "takes a bias).",
    },
}
PLACE = "middle"
TRAITS = ("attention", "merges")

needs = nothing
score = choose = None


def hear(call: AttentionCall, case: Case) -> Tensor:
    """The metric: the mean over heads of the keys as attention uses them, (B, H, N, d) -> (B, N, d)."""
    return call.key.mean(1)


def reduce(seen: Seen, case: Case) -> Reduction:
    """Bipartite soft matching (their Sec. 3): the tokens at even places against those at odd ones, both by their keys.

    Every even token finds the odd one of the highest cosine; the r edges of the highest cosine merge, r at most half of
    the tokens; x = sum(size x) / sum(size). Protected tokens merge into none. The rows are then the protected ones, the
    even ones that are left (in order where there is a protected one, as there, else by their cosine) and the odd ones.

    Cost of deciding, N tokens, keys of d elements of e bytes: the metric 1 launch and BHNd e bytes, its norm 2 and
    3 BNd e, the matching as in `kernels.matching`, a sort of BN / 2; then that of `Reduction`.
    """
    return merge_by(seen.heard, seen)


def merge_by(metric: Tensor, seen: Seen) -> Reduction:
    """The matching by any metric (B, N, d), weighted by the sizes."""
    even, odd = halves(seen, metric.shape[1], metric.device)
    metric = F.normalize(metric, dim=-1)
    values, columns = best_match(metric[:, even.slice], metric[:, odd.slice], odd.closed)
    leaving = metric.shape[1] - seen.prefix - seen.suffix - seen.stay
    return matched(seen, values, columns, leaving, even, odd)
