"""One file per reduction method, and what a method is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from repshift_cli.records import Case
from repshift_cli.reduction.engine.seen import Seen


def nothing(case: Case) -> tuple[str, ...]:
    """What a method needs that looks at no tensor."""
    return ()


class Method(Protocol):
    """A reduction method: a file of this room, or of another package by the entry point group `repshift.reduction`.

    It has one of `score` and `choose`; the other is None.
    """

    OPTIONS: Mapping[str, Any] | tuple[str, ...] = {}
    """Its own options by name, a literal: the declaration that `records.Option` reads, or the name of another method
    that declares the option. `case.option(name)` gives the value. (A tuple of names, as it was, means repshift's.)"""

    needs: Callable[[Case], tuple[str, ...]] = nothing
    """The names of what it must see, of those of `engine.seen`."""

    score: Callable[[Seen, Case], Tensor] | None = None
    """Scores (B, N), without protected ends; the tokens of the highest stay."""

    choose: Callable[[int, int], Sequence[int]] | None = None
    """Of so many tokens the places of so many that stay, the same in every sample."""
