"""What a forward did to the places of one input, in memory only: which stayed, how they scored, what was merged."""

from __future__ import annotations

from dataclasses import dataclass, field

from repshift_cli.records.case import Case


@dataclass(frozen=True)
class Cut:
    """One cut, behind block `layer`: the places of the input that were `there` before it and that were `kept`.

    `scores` are by place, empty where the method has none (or keeps a place in any case); `groups` are places that
    became one token, the one that stands for them first.
    """

    layer: int
    there: frozenset[int]
    kept: frozenset[int]
    scores: dict[int, float] = field(default_factory=dict)
    groups: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Trace:
    """The cuts of one case, in order, as one forward made them; places are those of the first sample."""

    case: Case
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Picture:
    """A picture as bytes, three (red, green, blue) for each of its points, row by row."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True)
class Shown:
    """What the places are places of.

    `cells` are the places of a grid (moments, rows, columns), moment by moment and row by row, each moment standing for
    as many of the `pictures`; `words` are by place, where the input is text. Neither: they are a row of unknown tokens.
    """

    places: int
    grid: tuple[int, int, int] | None = None
    cells: tuple[int, ...] = ()
    pictures: tuple[Picture, ...] = ()
    words: tuple[str, ...] = ()
