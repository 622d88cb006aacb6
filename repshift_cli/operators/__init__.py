"""One file per attention operator: the same queries, keys and values, exact beside approximate.

A file here is an operator: its name is the value of `--operator`, the first line of its docstring the help text, the
rest its equation. `Operator` says what it must have; the registry finds it, and other packages add theirs through the
entry-point group `repshift.operators`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec

CLASSES = ("exact", "masked", "approximate", "trained", "decode")
"""What an operator is: exact attention; exact under a mask of places; a choice made from the data; a form that a model
must be trained with; one query against a cache."""


class Operator(Protocol):
    """What a file of this room supplies.

    `PAPER` names the source and `CLASS` is one of `CLASSES`, both literals, so that listing imports nothing. `CAUSAL`
    are the masks that the definition covers: `(False, True)`, or one of them. `ENGINES` are the ways to carry it out by
    name; `plain` is the first, and its `attend` is this file's.
    """

    PAPER: str
    CLASS: str
    CAUSAL: tuple[bool, ...]
    ENGINES: Mapping[str, Engine]

    def arrange(self, q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
        """What it works on, from q (B, H, N, d), k and v (B, Hkv, N, d): made before anything is timed."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: Spec, **parameters: Any) -> Tensor:
        """The operator on what `arrange` made: (B, H, Nq, d). This is what is timed."""
        ...

    def reference(self, q: Tensor, k: Tensor, v: Tensor, spec: Spec, **parameters: Any) -> Tensor:
        """The same, plainly from the equation, on float64 tensors."""
        ...

    def cost(self, shape: Shape, spec: Spec) -> Cost:
        """Multiply-accumulates and elements moved, by formula."""
        ...

    def refused(self, shape: Shape, spec: Spec) -> str | None:
        """Why this shape cannot be, or None."""
        ...
