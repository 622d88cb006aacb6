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

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from repshift_cli.records import Case

if TYPE_CHECKING:
    from repshift_cli.reduction import Method


class Seen(dict[str, Tensor]):
    """Tensors by those names, and what else a choice may need.

    `prefix` leading and `suffix` trailing tokens stay; the tensors are without them for a method that scores, and whole
    for one that reduces. `stay` of the other tokens will stay. `heard` is what the method's `hear` made of the block's
    attention call, over all tokens; `sizes` (B, N) how many tokens each stands for, where any were merged. This is the
    block `layer`, from 1, of `depth`. In a batch in which samples have protected tokens and padding in places of their
    own, nothing is left out: `free_ones` (B, N) are true for the tokens that may go, and of them `stays` (B) will stay.
    """

    prefix: int = 0
    suffix: int = 0
    stay: int = 0
    roles: Tensor | None = None
    counts: Callable[[], Tensor] | None = None
    heard: Any = None
    sizes: Tensor | None = None
    layer: int = 1
    depth: int = 1

    @classmethod
    def of(cls, layer: int, depth: int) -> Seen:
        """What will be seen of one block."""
        seen = cls()
        seen.layer, seen.depth = layer, depth
        return seen

    @property
    def free_ones(self) -> Tensor | None:
        """Worked out when it is asked for, as `stays` is: most methods ask for neither."""
        return None if self.roles is None else self.roles == 0

    @property
    def stays(self) -> Tensor | None:
        """How many of each sample's tokens stay."""
        return None if self.roles is None or self.counts is None else self.counts()[(self.roles == 0).sum(1)]

    def free(self, values: Tensor) -> Tensor:
        """What belongs to the tokens that may go: (B, N, ...) -> (B, n, ...), a view."""
        return values[:, self.prefix : values.shape[1] - self.suffix]


OLDER = {"x": "resid_pre", "attention": "attn_out", "middle": "resid_mid", "mlp": "mlp_out", "out": "resid_post"}
"""Names that methods of other packages were written with before, with those of today."""


def needs(method: Method, case: Case) -> tuple[str, ...]:
    """What the method must see."""
    return tuple(OLDER.get(name, name) for name in method.needs(case))


def place_of(method: Method, case: Case) -> str:
    """Where the method reduces."""
    return method.PLACE if method.place is None else method.place(case)


def scores_of(method: Method, seen: Seen, case: Case) -> Tensor:
    """The scores (B, N) of a method that scores."""
    assert method.score is not None
    for old, name in OLDER.items():
        if name in seen:
            seen[old] = seen[name]
    return method.score(seen, case)
