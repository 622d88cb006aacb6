"""A figure as it stands in the page: the drawing, what it shows in words, the table behind it, its downloads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repshift_cli.renderers.figures.shapes import Bars, Figure, Heat, Plane, Samples, Stacks
from repshift_cli.renderers.page import tables
from repshift_cli.renderers.page.bars import bars, stacks
from repshift_cli.renderers.page.drawing import Palette
from repshift_cli.renderers.page.heat import heat
from repshift_cli.renderers.page.markup import Markup, tag
from repshift_cli.renderers.page.planes import plane
from repshift_cli.renderers.page.samples import samples


def chart(figure: Figure, palette: Palette, name: str) -> Markup:
    """The figure with its caption; `name` is unique in the page."""
    behind = tag("details", tag("summary", "table"), tables.plain(figure.table))
    downloads = [
        tag("button", kind, type="button", data_download=kind.lower(), aria_label=f"download {figure.title} as {kind}")
        for kind in ("SVG", "PNG")
    ]
    heading = tag("h3", figure.title, id=f"{name}-title")
    caption = tag("figcaption", figure.caption)
    tools = tag("div", *downloads, class_="tools")
    picture = tag("div", drawn(figure, palette), class_="drawing")
    return tag("figure", heading, tools, picture, caption, behind, id=name, aria_labelledby=f"{name}-title")


def drawn(figure: Figure, palette: Palette) -> Markup:
    """The figure as SVG."""
    if isinstance(figure, Bars):
        return bars(figure, palette)
    if isinstance(figure, Plane):
        return plane(figure, palette)
    if isinstance(figure, Samples):
        return samples(figure, palette)
    return heat(figure) if isinstance(figure, Heat) else stacks(figure, palette)


def palette_of(figures: Sequence[Figure]) -> Palette:
    """One colour for each group, and one for each part of a stack, in all of the figures."""
    parts = (name for figure in figures if isinstance(figure, Stacks) for name in figure.names)
    return Palette.of((group for figure in figures for group in _groups(figure)), parts)


def _groups(figure: Figure) -> Iterator[str]:
    """The groups of a figure that have a colour of their own."""
    if isinstance(figure, Plane):
        yield from (p.x.group for p in figure.points)
        yield from (c.group for c in figure.curves if c.group)
    elif isinstance(figure, Samples):
        yield from (row.group for row in figure.rows)
    elif isinstance(figure, Bars):
        yield from (m.group for m in figure.marks)
