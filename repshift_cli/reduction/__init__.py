"""One file per reduction method, and what a method is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Case
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.seen import Seen


def nothing(case: Case) -> tuple[str, ...]:
    """What a method needs that looks at no tensor."""
    return ()


class Method(Protocol):
    """A reduction method: a file of this room, or of another package by the entry point group `repshift.reduction`.

    It has one of `score`, `choose` and `reduce`; the others are None. What planning must know (`PLACE`, `APPENDS`,
    `TRAITS`) are literals.
    """

    OPTIONS: Mapping[str, Any] | tuple[str, ...] = {}
    """Its own options by name, a literal: the declaration that `records.Option` reads, or the name of another method
    that declares the option. `case.option(name)` gives the value. (A tuple of names, as it was, means repshift's.)"""

    DEFAULTS: Mapping[str, Any] = {}
    """Its own defaults of options that another method declares, a literal."""

    needs: Callable[[Case], tuple[str, ...]] = nothing
    """The names of what it must see, of those of `engine.seen`."""

    score: Callable[[Seen, Case], Tensor] | None = None
    """Scores (B, N), without protected ends; the tokens of the highest stay."""

    choose: Callable[[int, int], Sequence[int]] | None = None
    """Of so many tokens the places of so many that stay, the same in every sample."""

    hear: Callable[[AttentionCall, Case], Any] | None = None
    """What it keeps of the block's attention call (q, k, v and mask): `seen.heard`. Rows of the map are worked out here
    (`kernels.maps`), so that q and k need not stay."""

    HEARS_SIZES: bool = False
    """Whether the mask of the call that it hears has the tokens' sizes in it, where they weigh in attention."""

    reduce: Callable[[Seen, Case], Reduction] | None = None
    """Which of all tokens `seen["rows"]` (B, N, C) stay, are merged, or make one more: `seen.stay` beside the protected
    ones, which stay at the ends of the row."""

    PLACE: str = "end"
    """Where it reduces: `start`, before the block, which is asked for its q and k first, `middle`, between attention
    and MLP, or `end`, at the block's end."""

    place: Callable[[Case], str] | None = None
    """The same, where it depends on the method's options."""

    APPENDS: int = 0
    """The tokens that it appends at each layer, beside those that stay."""

    TRAITS: tuple[str, ...] = ()
    """What is refused without being tried: `attention` (it must hear attention), `merges` (at most half of the tokens
    that may go, and none of a causal model), `merges any` (the second alone), `class token` and `last token` (it reads
    that one's row)."""


def with_defaults(method: Any) -> Method:
    """The method, with what it leaves out set as the contract has it: the registry does so where it loads one."""
    for name in ("score", "choose", "hear", "HEARS_SIZES", "reduce", "PLACE", "place", "APPENDS", "TRAITS"):
        if name not in dir(method):
            setattr(method, name, getattr(Method, name))
    return method
