"""Points and curves over two axes."""

from __future__ import annotations

from collections.abc import Iterator

from repshift_cli.renderers.figures.shapes import Curve, Plane, Point
from repshift_cli.renderers.page.drawing import (
    ROOM_BELOW,
    SIDE,
    WIDTH,
    Palette,
    below,
    beside,
    legend,
    line,
    shape,
    svg,
    text,
)
from repshift_cli.renderers.page.markup import Markup, tag
from repshift_cli.renderers.page.scales import Scale, fitting

LEFT, TOP, HEIGHT = 58.0, 32.0, 260.0


def plane(figure: Plane, palette: Palette) -> Markup:
    """The axes, the curves, the points above them, and a legend."""
    bottom = TOP + HEIGHT
    x = fitting(_reach(figure, "x"), LEFT, WIDTH - SIDE - 14, figure.x.log)
    y = fitting(_reach(figure, "y"), bottom, TOP, figure.y.log)
    curves = [part for c in figure.curves for part in _curve(c, x, y, palette)]
    points = [part for p in figure.points for part in _point(p, figure, x, y, palette)]
    shown, end = legend(list(_signs(figure, palette)), bottom + ROOM_BELOW + 8)
    axes = (below(x, figure.x, TOP, bottom, figure.ticks), beside(y, figure.y, LEFT, WIDTH - SIDE))
    return svg(end, *axes, curves, points, shown, name=figure.title)


def _reach(figure: Plane, way: str) -> Iterator[float]:
    for p in figure.points:
        mark = p.x if way == "x" else p.y
        yield from (v for v in (mark.value, mark.low, mark.high) if v is not None)
    for curve in figure.curves:
        yield from (point[way == "y"] for point in curve.points)


def _curve(curve: Curve, x: Scale, y: Scale, palette: Palette) -> Iterator[Markup]:
    if not curve.points:
        return
    places = [(x(a), y(b)) for a, b in curve.points]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for a, b in places[1:]:
        path += f"H{a:.1f}V{b:.1f}" if curve.steps else f"L{a:.1f} {b:.1f}"
    yield tag("path", d=path, class_=f"curve {palette.colour(curve.group)}", data_tip=curve.label)
    if not curve.group and curve.points and curve.label != "front":
        yield text(places[-1][0] - 4, places[-1][1] - 6, curve.label, "end", "tick")
    yield from (line(x(at), TOP, x(at), TOP + HEIGHT, f"change {palette.colour(curve.group)}") for at in curve.marks)
    if curve.group and not curve.steps:
        for (a, b), (_, value) in zip(places, curve.points, strict=True):
            dot = {"d": shape(palette.shape(curve.group), 3.0), "transform": f"translate({a:.1f} {b:.1f})"}
            tip = f"{curve.label}: {value:.4g}"
            yield tag("path", **dot, class_=f"dot {palette.colour(curve.group)}", data_tip=tip, data_y=f"{value:.6g}")


def _point(p: Point, figure: Plane, x: Scale, y: Scale, palette: Palette) -> Iterator[Markup]:
    a, b = x(p.x.value), y(p.y.value)
    if p.x.low is not None and p.x.high is not None:
        yield line(x(p.x.low), b, x(p.x.high), b, f"whisker {palette.colour(p.x.group)}")
    if p.y.low is not None and p.y.high is not None:
        yield line(a, y(p.y.low), a, y(p.y.high), f"whisker {palette.colour(p.x.group)}")
    words = (f"{axis.label} {mark.text(axis.unit)}" for axis, mark in ((figure.y, p.y), (figure.x, p.x)))
    tip = f"{p.x.label}: {', '.join(words)}{', on the front' if p.front else ''}{', modelled' if p.x.modelled else ''}"
    look = f"dot {palette.colour(p.x.group)}{' hollow' if p.x.modelled else ''}{' front' if p.front else ''}"
    yield tag(
        "path",
        d=shape(palette.shape(p.x.group)),
        transform=f"translate({a:.1f} {b:.1f})",
        class_=look,
        data_tip=tip,
        data_x=f"{p.x.value:.6g}",
        data_y=f"{p.y.value:.6g}",
        data_case=p.x.case,
    )


def _signs(figure: Plane, palette: Palette) -> Iterator[tuple[str, Markup]]:
    for group in dict.fromkeys([*(p.x.group for p in figure.points), *(c.group for c in figure.curves if c.group)]):
        name = next((c.label for c in figure.curves if c.group == group), group)
        yield name, tag("path", d=shape(palette.shape(group)), class_=f"dot {palette.colour(group)}")
