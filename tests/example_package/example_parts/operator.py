"""Example operator: the mean of the values, whatever is asked for.

out_i = (1 / N) sum_j v_j.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec

PAPER = "none"
CLASS = "trained"
CAUSAL = (False,)


def refused(shape: Shape, spec: Spec) -> str | None:
    """Any shape."""
    return None


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """As given."""
    return Arranged(q, k, v, full="looks at nothing")


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **parameters: Any) -> Tensor:
    """(B, H, N, d) three times -> (B, H, N, d)."""
    return v.mean(2, keepdim=True).expand_as(q).contiguous()


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, **parameters: Any) -> Tensor:
    """The equation."""
    return v.sum(2, keepdim=True).expand_as(q) / v.shape[2]


def cost(shape: Shape, spec: Spec) -> Cost:
    """One addition per value."""
    return Cost(shape.batch * shape.heads * shape.tokens * shape.head_dim, shape.given)


ENGINES = {"plain": Engine(attend)}
