"""Bars with intervals, and bars made of parts."""

from __future__ import annotations

from collections.abc import Iterator

from repshift_cli.renderers.figures.shapes import Bars, Mark, Stack, Stacks, number, shortened
from repshift_cli.renderers.page.drawing import (
    LETTER,
    LINE,
    ROOM_BELOW,
    SIDE,
    WIDTH,
    Palette,
    below,
    beside,
    legend,
    line,
    rect,
    svg,
    text,
)
from repshift_cli.renderers.page.markup import Markup
from repshift_cli.renderers.page.scales import Scale, from_zero

LONGEST = 40
"""Letters of a label; the tip and the table have it whole."""
FIGURE = 5.9
"""About the width of a letter of the figures behind the bars."""


def bars(figure: Bars, palette: Palette) -> Markup:
    """A bar for each mark, hollow where it is modelled, its interval as a line across the end."""
    top, labels = 14.0, _label_room([m.label for m in figure.marks])
    bottom = top + LINE * len(figure.marks)
    reach = [v for m in figure.marks for v in (m.value, m.low, m.high) if v is not None]
    values = 12 + FIGURE * max(len(m.short(figure.axis.unit)) for m in figure.marks)
    scale = from_zero([*reach, *figure.lines], figure.zero, labels, WIDTH - values)
    drawn = [part for i, m in enumerate(figure.marks) for part in _bar(m, top + LINE * i, scale, figure, palette)]
    across = [line(scale(v), top - 4, scale(v), bottom, "even") for v in figure.lines]
    told = [_value(m, top + LINE * i, scale, figure) for i, m in enumerate(figure.marks)]
    return svg(bottom + ROOM_BELOW, below(scale, figure.axis, top, bottom), drawn, across, told, name=figure.title)


def _label_room(labels: list[str]) -> float:
    return SIDE + min(LONGEST, max(map(len, labels))) * LETTER + 8


def _bar(m: Mark, y: float, scale: Scale, figure: Bars, palette: Palette) -> Iterator[Markup]:
    tip = f"{m.label}: {m.text(figure.axis.unit)}{', modelled' if m.modelled else ''}"
    start, end, middle = scale(figure.zero), scale(m.value), y + LINE / 2
    look = f"bar {palette.colour(m.group)}{' hollow' if m.modelled else ''}"
    yield text(scale.start - 8, middle + 4, shortened(m.label, LONGEST), "end", "tick")
    yield rect(
        min(start, end),
        y + 3,
        abs(end - start),
        LINE - 6,
        look,
        data_tip=tip,
        data_value=f"{m.value:.6g}",
        data_case=m.case,
    )
    if m.low is not None and m.high is not None:
        yield line(scale(m.low), middle, scale(m.high), middle, "interval")
        yield from (line(scale(v), middle - 3, scale(v), middle + 3, "interval") for v in (m.low, m.high))


def _value(m: Mark, y: float, scale: Scale, figure: Bars) -> Markup:
    far = max(scale(v) for v in (m.value, figure.zero, m.high) if v is not None)
    return text(far + 6, y + LINE / 2 + 4, m.short(figure.axis.unit), "start", "value")


# --- parts ------------------------------------------------------------------------------------------------------------


def stacks(figure: Stacks, palette: Palette) -> Markup:
    """Bars made of parts, each part's colour in the legend."""
    colours = {name: palette.part(name) for name in figure.names}
    signs = [(name, rect(-6, -6, 12, 12, f"bar {colour}")) for name, colour in colours.items()]
    shown, top = legend(signs if len(signs) > 1 else [], 14.0)
    return _upright(figure, colours, shown, top) if figure.upright else _lying(figure, colours, shown, top)


def _lying(figure: Stacks, colours: dict[str, str], shown: list[Markup], top: float) -> Markup:
    bottom = top + LINE * len(figure.stacks)
    start = _label_room([s.label for s in figure.stacks])
    scale = from_zero([s.total for s in figure.stacks], 0.0, start, WIDTH - 80)
    drawn: list[Markup] = []
    for i, stack in enumerate(figure.stacks):
        y = top + LINE * i
        drawn.append(text(start - 8, y + LINE / 2 + 4, shortened(stack.label, LONGEST), "end", "tick"))
        for name, low, high in _edges(stack):
            box = (scale(low), y + 3, scale(high) - scale(low), LINE - 6)
            drawn.append(_part(box, colours[name], _tip(stack, name, high - low, figure), high - low))
        drawn.append(
            text(scale(stack.total) + 6, y + LINE / 2 + 4, f"{number(stack.total)} {figure.axis.unit}", class_="value")
        )
    return svg(bottom + ROOM_BELOW, shown, below(scale, figure.axis, top, bottom), drawn, name=figure.title)


def _upright(figure: Stacks, colours: dict[str, str], shown: list[Markup], top: float) -> Markup:
    top, height = top + 24, 170.0
    bottom, left = top + height, 56.0
    scale = from_zero([s.total for s in figure.stacks], 0.0, bottom, top)
    step = (WIDTH - left - SIDE) / len(figure.stacks)
    every = max(1, round(26 / step))
    drawn: list[Markup] = []
    for i, stack in enumerate(figure.stacks):
        x = left + step * i
        if i % every == 0 or i == len(figure.stacks) - 1:
            drawn.append(text(x + step / 2, bottom + 16, stack.label, "middle", "tick"))
        for name, low, high in _edges(stack):
            box = (x + step * 0.1, scale(high), step * 0.8, scale(low) - scale(high))
            drawn.append(_part(box, colours[name], _tip(stack, name, high - low, figure), high - low))
    words = text((left + WIDTH) / 2, bottom + 34, figure.axis.label, "middle", "axis")
    unit = type(figure.axis)(figure.axis.unit)
    return svg(bottom + ROOM_BELOW, shown, beside(scale, unit, left, WIDTH - SIDE), drawn, words, name=figure.title)


def _part(box: tuple[float, float, float, float], colour: str, tip: str, value: float) -> Markup:
    return rect(*box, f"bar {colour}", data_tip=tip, data_value=f"{value:.6g}")


def _edges(stack: Stack) -> Iterator[tuple[str, float, float]]:
    low = 0.0
    for name, value in stack.parts:
        yield name, low, low + value
        low += value


def _tip(stack: Stack, name: str, value: float, figure: Stacks) -> str:
    share = f", {value / stack.total:.0%}" if stack.total else ""
    return f"{stack.label}, {name}: {number(value)} {figure.axis.unit}{share}"
