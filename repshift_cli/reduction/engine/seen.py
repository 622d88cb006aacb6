"""What a method asked to see of a block, each (B, N, C), named as in TransformerLens.

| name         | what                                                         |
|--------------|--------------------------------------------------------------|
| `resid_pre`  | x, the block's input                                         |
| `attn_out`   | SA(LN(x)), or what else mixes the tokens                     |
| `resid_mid`  | x' = x + SA(LN(x)), normed where the block norms its sums    |
| `mlp_out`    | MLP(LN(x'))                                                  |
| `resid_post` | x^ = x' + MLP(LN(x')), the block's output, which is cut      |
| `rows`       | any of them, for its shape and device                        |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from repshift_cli.records import Case

if TYPE_CHECKING:
    from repshift_cli.reduction import Method

Seen = dict[str, Tensor]

OLDER = {"x": "resid_pre", "attention": "attn_out", "middle": "resid_mid", "mlp": "mlp_out", "out": "resid_post"}
"""Names that methods of other packages were written with before, with those of today."""


def needs(method: Method, case: Case) -> tuple[str, ...]:
    """What the method must see."""
    return tuple(OLDER.get(name, name) for name in method.needs(case))


def scores_of(method: Method, seen: Seen, case: Case) -> Tensor:
    """The scores (B, N) of a method that scores."""
    assert method.score is not None
    older = {old: seen[name] for old, name in OLDER.items() if name in seen}
    return method.score({**older, **seen}, case)
