"""What the views of tokens share: the cases by name, what each cut left, scores from 0 to 1, words put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from repshift_cli.records import Case
from repshift_cli.records.labels import labels
from repshift_cli.records.places import Cut, Shown, Trace

CONTINUED = "##"
"""What a piece of a word begins with that is not its first, in tokenizers of BERT's kind."""


@dataclass(frozen=True)
class Gallery:
    """The traces of several cases over the same input."""

    title: str
    shown: Shown
    traces: tuple[Trace, ...]

    @cached_property
    def names(self) -> dict[Case, str]:
        return labels(trace.case for trace in self.traces)


def counted(cut: Cut, shown: Shown) -> str:
    """`after block 3: 99 of 197`."""
    return f"after block {cut.layer}: {len(cut.kept)} of {shown.places}"


def strengths(cut: Cut) -> dict[int, float]:
    """The scores by place from 0 to 1; what is not finite counts as highest, as in the cut."""
    known = [v for v in cut.scores.values() if math.isfinite(v)]
    if not known:
        return {}
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    return {place: (v - low) / span if math.isfinite(v) else 1.0 for place, v in cut.scores.items()}


def group_of(cut: Cut) -> dict[int, int]:
    """The number of the group of each place that was merged with others."""
    return {place: number for number, group in enumerate(cut.groups) for place in group if len(group) > 1}


def spaced(words: Sequence[str]) -> list[str]:
    """The words with the space that belongs before each: as their tokenizer says, or by BERT's sign for none."""
    if any(word.startswith((" ", "\n")) for word in words):
        return list(words)
    shown = [word.removeprefix(CONTINUED) if word.startswith(CONTINUED) else f" {word}" for word in words]
    return [shown[0].lstrip(), *shown[1:]] if shown else []
