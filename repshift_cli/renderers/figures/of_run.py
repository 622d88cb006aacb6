"""What a run has to show: speed, what it costs, where it pays, tokens, bytes, the roofline, the raw samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from repshift_cli.analysis.pareto import front
from repshift_cli.analysis.roofline import Ceilings, ceilings, working
from repshift_cli.records import METHODS_WITHOUT_PRUNING, Case, Measurement, Run, keep_text
from repshift_cli.renderers.figures.growth import growth
from repshift_cli.renderers.figures.maps import break_even, keep_by_layer
from repshift_cli.renderers.figures.measured import Measured, is_speedup, is_time
from repshift_cli.renderers.figures.shapes import (
    Axis,
    Bars,
    Curve,
    Figure,
    Mark,
    Plane,
    Point,
    Sampled,
    Samples,
)
from repshift_cli.renderers.sheets.cells import scale
from repshift_cli.renderers.sheets.metric_columns import metrics_of
from repshift_cli.renderers.sheets.order import rank_of

MOST_BARS = 40
MOST_ROWS = 24
MOST_GROUPS = 12
MOST_POINTS = 400
QUALITY = ("compared", "labelled")
"""Sources of figures that say how good an output is."""
TRAFFIC = ("counter", "sampled", "modelled")
"""Sources of bytes that were moved."""
HELD = ("allocator", "driver", "counted")
"""Sources of bytes that were held."""


def figures(run: Run) -> Iterator[Figure]:
    """All that the run has something for, in the order of a reader's questions."""
    measured = Measured(run)
    yield from speed(measured)
    yield from trade(measured)
    yield from keep_by_layer(measured)
    yield from break_even(measured)
    yield from growth(measured)
    yield from tokens(measured)
    yield from moved(measured)
    yield from roofline(measured)
    yield from raw(measured)


def in_short(run: Run) -> Iterator[Figure]:
    """Speed, what it costs by the most wanted figure of quality, and the raw samples."""
    measured = Measured(run)
    yield from speed(measured)
    yield from islice(trade(measured), 1)
    yield from raw(measured)


# --- speed, and what it costs -----------------------------------------------------------------------------------------


def speed(measured: Measured) -> Iterator[Figure]:
    """Speed-ups, and latencies, as bars with their intervals."""
    for wanted, title, lines in ((is_speedup, "Speed-up", (1.0,)), (is_time, "Latency", ())):
        rows = measured.rows(wanted)
        metric = next((m.metric for _, m in sorted(rows, key=lambda r: rank_of(r[1].metric))), None)
        marks = [mark for row, m in rows if m.metric == metric and (mark := measured.mark(row, m))]
        if not marks:
            continue
        like = next(m for _, m in rows if m.metric == metric)
        axis = Axis(like.label or like.metric, like.unit, better=like.better)
        caption = f"{axis.words}, {like.better} is better; the line across a bar's end is its 95% interval"
        heading = title if title.lower() == axis.label else f"{title}: {axis.label}"
        yield cut_off(Bars(heading, caption, axis, tuple(marks), lines))


def cut_off(bars: Bars) -> Bars:
    """The best of many, which says so."""
    if len(bars.marks) <= MOST_BARS:
        return bars
    best = sorted(bars.marks, key=lambda m: m.value, reverse=bars.axis.better == "higher")[:MOST_BARS]
    caption = f"{bars.caption}; the best {MOST_BARS} of {len(bars.marks)}, the main table has all"
    return Bars(bars.title, caption, bars.axis, tuple(best), bars.lines)


def trade(measured: Measured, quality: Sequence[Measurement] | None = None) -> Iterator[Figure]:
    """Speed against each figure of quality, group by group, with the front of what nothing else beats in both.

    `quality` are examples of the figures that are drawn, where not all are.
    """
    if quality is None:
        quality = [m for m in metrics_of(measured.records) if m.source in QUALITY and not m.detail]
    groups = list(dict.fromkeys(_setting(record.case) for record in measured.records))
    drawn = groups[:MOST_GROUPS]
    more = f"; {len(drawn)} of {len(groups)} models and inputs are drawn" if len(groups) > len(drawn) else ""
    speeds = dict(measured.rows(is_speedup)) or dict(measured.rows(is_time))
    for group in drawn:
        own = [row for row in speeds if _setting(measured.records[row].case) == group]
        for like in quality:
            plane = _trade(measured, own, speeds, like, group if len(groups) > 1 else ())
            if plane is not None:
                yield replace(plane, caption=plane.caption + more)


def _trade(
    measured: Measured,
    rows: Sequence[int],
    speeds: dict[int, Measurement],
    like: Measurement,
    group: tuple[object, ...],
) -> Plane | None:
    pairs = []
    for row in rows:
        quality = measured.records[row].measurement(like.metric)
        x = measured.mark(row, quality) if quality and quality.samples else None
        y = measured.mark(row, speeds[row])
        if x and y:
            pairs.append((x, y, speeds[row]))
    if len(pairs) < 2:
        return None
    fast = pairs[0][2]
    x_axis = Axis(like.label or like.metric, like.unit, better=like.better)
    y_axis = Axis(fast.label or fast.metric, fast.unit, better=fast.better)
    wishes = [(_wish(x.value, x_axis), _wish(y.value, y_axis)) for x, y, _ in pairs]
    points = tuple(Point(x, y, on) for (x, y, _), on in zip(pairs, front(wishes), strict=True))
    where = f" ({measured.records[rows[0]].case.model}, {_shape(measured.records[rows[0]].case)})" if group else ""
    caption = (
        f"{y_axis.label} ({y_axis.better} is better) against {x_axis.label} ({x_axis.better} is better); lines are 95% "
        "intervals; ringed and joined: no other case is as good in both and better in one"
    )
    edge = sorted((p for p in points if p.front), key=lambda p: p.x.value)
    curve = Curve("front", tuple((p.x.value, p.y.value) for p in edge))
    return Plane(f"{y_axis.label} against {x_axis.label}{where}", caption, x_axis, y_axis, points, (curve,))


def _setting(case: Case) -> tuple[object, ...]:
    """What the points of one plane share: model and input, whatever the seed of what is drawn at random."""
    return replace(case, seed=0).group


def _wish(value: float, axis: Axis) -> float:
    return value if axis.better == "higher" else -value


def _shape(case: Case) -> str:
    size = [f"{case.image_size} px"] if case.image_size else []
    return ", ".join([*size, *([f"{case.length} tokens"] if case.length else []), f"batch {case.batch}", case.dtype])


# --- tokens, bytes, roofline ------------------------------------------------------------------------------------------


def tokens(measured: Measured) -> Iterator[Figure]:
    """How many tokens are there along the depth, each schedule once."""
    curves: dict[tuple[tuple[int, ...], tuple[int, ...]], Curve] = {}
    end = 1 + max((layer for record in measured.records for layer in record.case.layers), default=0)
    for record in measured.records:
        case = record.case
        if case.pruning == METHODS_WITHOUT_PRUNING or len(record.tokens) != len(case.layers) + 1:
            continue
        ends = (0, *case.layers, end)
        counts = (*record.tokens, record.tokens[-1])
        points = tuple((float(block), float(n)) for block, n in zip(ends, counts, strict=True))
        name = f"{record.tokens[0]} tokens, keep {keep_text(case.keep)} at {','.join(map(str, case.layers))}"
        curves.setdefault((record.tokens, case.layers), Curve(name, points, group=name, steps=True))
    if curves:
        caption = "tokens, protected ones included, that enter each block; a cut is at a block's end"
        more = f"; {MOST_ROWS} of {len(curves)} schedules" if len(curves) > MOST_ROWS else ""
        drawn = tuple(curves.values())[:MOST_ROWS]
        yield Plane(
            "Tokens along the depth", caption + more, Axis("after block", whole=True), Axis("tokens"), curves=drawn
        )


def moved(measured: Measured) -> Iterator[Figure]:
    """Bytes moved and bytes held, what was measured told apart from what is modelled."""
    for sources, title, better in ((TRAFFIC, "HBM traffic of a forward", "moved"), (HELD, "Memory", "held")):
        likes = [m for m in metrics_of(measured.records) if m.unit == "B" and m.source in sources and not m.detail]
        found = [
            (row, m)
            for row, record in enumerate(measured.records)
            for like in likes
            if (m := record.measurement(like.metric)) and m.samples and m.source == like.source
        ]
        if not found:
            continue
        unit, factor = scale("B", [max(m.samples) for _, m in found])
        marks = [_named(mark, m, len(likes)) for row, m in found if (mark := measured.mark(row, m, factor))]
        hollow = "; hollow bars are modelled: arithmetic, no measurement" if any(m.modelled for m in marks) else ""
        caption = f"bytes {better}, lower is better{hollow}"
        yield cut_off(Bars(title, caption, Axis("bytes", unit, better="lower"), tuple(marks)))


def _named(mark: Mark, m: Measurement, kinds: int) -> Mark:
    name = f"{mark.label}, {m.label}" if kinds > 1 else mark.label
    return Mark(name, mark.value, mark.low, mark.high, mark.group, mark.modelled, mark.case)


def roofline(measured: Measured) -> Iterator[Figure]:
    """FLOPs per byte against FLOPs per second, under the ceilings that are known."""
    found = [(row, w) for row, record in enumerate(measured.records) if (w := working(record))]
    if not found:
        return
    points = []
    for row, w in found:
        record = measured.records[row]
        named = (measured.names[record.case], record.case.variant, w.modelled, row)
        points.append(Point(_at(w.intensity, *named), _at(w.rate / 1e9, *named)))
    drawn = f"; some of the {len(points)} cases" if len(points) > MOST_POINTS else ""
    known = [c for record in measured.records if (c := ceilings(record)) and (c.compute or c.bandwidth)]
    x, y = Axis("FLOP per byte", "", log=True), Axis("rate", "GFLOP/s", log=True, better="higher")
    said = (
        "ceilings were measured beside them or follow from counters"
        if known
        else "this machine's ceilings are not known"
    )
    hollow = "; hollow: the bytes are modelled" if any(w.modelled for _, w in found) else ""
    caption = f"each case by its FLOPs per byte and per second{hollow}; {said}{drawn}"
    yield Plane(
        "Roofline",
        caption,
        x,
        y,
        tuple(points[:: -(-len(points) // MOST_POINTS)]),
        tuple(_roof(known, [w.intensity for _, w in found])),
    )


def _at(value: float, name: str, group: str, modelled: bool, row: int) -> Mark:
    return Mark(name, value, group=group, modelled=modelled, case=row)


def _roof(known: Sequence[Ceilings], reach: Sequence[float]) -> Iterable[Curve]:
    """The slope of the memory and the flat of the arithmetic, over the intensities that occur."""
    compute = max((c.compute for c in known if c.compute), default=None)
    bandwidth = max((c.bandwidth for c in known if c.bandwidth), default=None)
    left, right = min(reach) / 2, max(reach) * 2
    knee = compute / bandwidth if compute and bandwidth else right
    if bandwidth:
        end = max(min(knee, right), left)
        yield Curve(f"memory: {bandwidth / 1e9:,.0f} GB/s", tuple((i, i * bandwidth / 1e9) for i in (left, end)))
    if compute:
        start = min(max(knee, left), right) if bandwidth else left
        yield Curve(f"arithmetic: {compute / 1e9:,.0f} GFLOP/s", ((start, compute / 1e9), (right, compute / 1e9)))


# --- raw samples ------------------------------------------------------------------------------------------------------


def raw(measured: Measured) -> Iterator[Figure]:
    """Every timed sample in its order, and how all of a case are spread."""
    rows = measured.rows(is_time)
    if not rows:
        return
    like = rows[0][1]
    drawn = [
        Sampled(measured.names[r.case], m.samples, m.per_round, r.case.variant)
        for row, m in rows[:MOST_ROWS]
        if (r := measured.records[row])
    ]
    more = f"; the first {MOST_ROWS} of {len(rows)} cases" if len(rows) > MOST_ROWS else ""
    caption = f"left: every sample in the order taken, a line at the median; right: how they are spread{more}"
    yield Samples(f"Raw samples: {like.label}", caption, Axis(like.label, like.unit), tuple(drawn))
