"""What all drawings share: the frame, axes, a legend, and each group's colour and shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from repshift_cli.renderers.figures.shapes import Axis, number, shortened
from repshift_cli.renderers.page.markup import Markup, join, tag
from repshift_cli.renderers.page.scales import Scale

WIDTH = 640.0
COLOURS = 8
LETTER = 6.2
"""About the width of a letter, in the units of a drawing."""
LINE = 20.0
SIDE = 10.0


@dataclass(frozen=True)
class Palette:
    """The number of each group, and of each part of a stack, the same in all figures of a page."""

    places: dict[str, int]
    parts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, groups: Iterable[str], parts: Iterable[str] = ()) -> Palette:
        """Groups and parts numbered as they first appear."""
        return cls(*(dict(zip(dict.fromkeys(names), count(), strict=False)) for names in (groups, parts)))

    def colour(self, group: str) -> str:
        """The class of the group's colour; none of what belongs to no group."""
        return f"c{self.places.get(group, 0) % COLOURS}" if group else "quiet"

    def part(self, name: str) -> str:
        """The classes of a part's colour; beyond the colours that there are, lighter ones."""
        place = self.parts.get(name, 0)
        return f"c{place % COLOURS}{' light' if place % (2 * COLOURS) >= COLOURS else ''}"

    def shape(self, group: str) -> int:
        """The number of the shape that points of the group have: another one where a colour comes again."""
        place = self.places.get(group, 0)
        return place // 2 + place // COLOURS


def svg(height: float, *children: Iterable[Markup] | Markup, name: str) -> Markup:
    """The drawing; `name` is what a screen reader calls it, the table behind it says the rest."""
    inner = join(tag("title", name), *children)
    box = f"0 0 {WIDTH:g} {height:g}"
    return tag("svg", inner, xmlns="http://www.w3.org/2000/svg", viewBox=box, role="img", aria_label=name)


def text(x: float, y: float, words: str, anchor: str = "start", class_: str | None = None, **more: str) -> Markup:
    """Words at a place, their baseline there."""
    return tag("text", words, x=float(x), y=float(y), text_anchor=anchor, class_=class_, **more)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return tag("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, **more: str | float | int | None) -> Markup:
    """A box; `more` are its attributes."""
    size = (float(max(width, 0)), float(height))
    return tag("rect", x=float(x), y=float(y), width=size[0], height=size[1], class_=class_, **more)


def below(scale: Scale, axis: Axis, top: float, bottom: float, ticks: Sequence[str] = ()) -> Iterator[Markup]:
    """The axis along the bottom, with lines up to `top`, and its words; room for them is `ROOM_BELOW`."""
    for value in _places(scale, ticks, axis.whole):
        x = scale(value)
        yield line(x, top, x, bottom, "grid")
        yield text(x, bottom + 16, ticks[int(value)] if ticks else number(value, 3), "middle", "tick")
    yield text((scale.start + scale.end) / 2, bottom + 34, _words(axis), "middle", "axis")


ROOM_BELOW = 42.0


def beside(scale: Scale, axis: Axis, left: float, right: float) -> Iterator[Markup]:
    """The axis along the left, with lines to `right`, its words above it."""
    for value in scale.ticks():
        y = scale(value)
        yield line(left, y, right, y, "grid")
        yield text(left - 6, y + 4, number(value, 3), "end", "tick")
    yield text(SIDE, min(scale.start, scale.end) - 12, _words(axis), "start", "axis")


def _words(axis: Axis) -> str:
    arrow = {"higher": " (higher is better)", "lower": " (lower is better)"}.get(axis.better, "")
    return f"{axis.words}{arrow}"


def _places(scale: Scale, ticks: Sequence[str], whole: bool) -> list[float]:
    if not ticks:
        return [value for value in scale.ticks() if not whole or value.is_integer()]
    every = max(1, -(-len(ticks) // 6))
    return [float(i) for i in range(0, len(ticks), every)]


def legend(names: Sequence[tuple[str, Markup]], top: float) -> tuple[list[Markup], float]:
    """Names with their signs (drawn around 0, 0) in rows from `top` on, and where they end."""
    made, x, y = [], SIDE, top
    for name, sign in names:
        words = shortened(name, 56)
        wide = 22 + len(words) * LETTER * 1.1 + 14
        if x > SIDE and x + wide > WIDTH:
            x, y = SIDE, y + LINE
        made.append(tag("g", sign, transform=f"translate({x + 7:g} {y:g})"))
        made.append(text(x + 20, y + 4, words, class_="tick"))
        x += wide
    return made, y + LINE if names else top


def shape(number_of: int, size: float = 5.0) -> str:
    """The path of a point: circle, square, triangle, diamond, in turn."""
    s = size
    return (
        f"M{-s} 0a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0",
        f"M{-s} {-s}h{2 * s}v{2 * s}h{-2 * s}z",
        f"M0 {-s - 1}L{s + 1} {s}H{-s - 1}z",
        f"M0 {-s - 1}L{s + 1} 0L0 {s + 1}L{-s - 1} 0z",
    )[number_of % 4]
