"""What a search has to show: what it found beside what that is held against, and where one cut costs what."""

from __future__ import annotations

from collections.abc import Iterator

from repshift_cli.analysis.pareto import front
from repshift_cli.analysis.stats import estimate
from repshift_cli.records import Measurement
from repshift_cli.records.tuning import Confirmed, Tuning
from repshift_cli.renderers.figures.shapes import Axis, Bars, Curve, Figure, Heat, Mark, Plane, Point
from repshift_cli.renderers.sheets.tuning import schedule, score

MOST_ROWS = 48


def figures(tuning: Tuning) -> Iterator[Figure]:
    """The losses of what was confirmed, what speed they buy, and the sensitivity."""
    loss = Axis(tuning.loss, tuning.unit, better="lower")
    told = [one for one in tuning.confirmed if _mark(one, one.loss)]
    if told:
        caption = f"{loss.words} on held-out samples, lower is better, with 95% intervals"
        marks = tuple(mark for one in told if (mark := _mark(one, one.loss)))
        yield Bars(f"{loss.label} of what was found and what it is held against", caption, loss, marks)
    yield from _trade(told, loss)
    yield from _sensitivity(tuning, loss)


def _mark(one: Confirmed, m: Measurement | None) -> Mark | None:
    figure = estimate(m) if m else None
    label = f"{one.role}: {schedule(one)}"
    return Mark(label, figure.value, figure.low, figure.high, one.role) if figure else None


def _trade(told: list[Confirmed], loss: Axis) -> Iterator[Plane]:
    """The speed-up against the loss, with the front of what nothing else beats in both."""
    pairs = [(x, y) for one in told if (x := _mark(one, one.loss)) and (y := _mark(one, one.speedup))]
    if len(pairs) < 2:
        return
    on = front([(-x.value, y.value) for x, y in pairs])
    points = tuple(Point(x, y, best) for (x, y), best in zip(pairs, on, strict=True))
    edge = sorted((p.x.value, p.y.value) for p in points if p.front)
    caption = f"speed-up (higher is better) against {loss.label} (lower is better), held out; ringed: the front"
    speed = Axis("speed-up", "x", better="higher")
    yield Plane(f"Speed-up against {loss.label}", caption, loss, speed, points, (Curve("front", tuple(edge)),))


def _sensitivity(tuning: Tuning, loss: Axis) -> Iterator[Heat]:
    """The loss of one cut alone: a row for each score and keep, a column for each block."""
    rows: dict[tuple[float, str], dict[int, float]] = {}
    for one in tuning.singles:
        rows.setdefault((one.keep, score(one)), {})[one.layer] = one.loss
    if not rows:
        return
    shown, blocks = sorted(rows)[:MOST_ROWS], sorted({one.layer for one in tuning.singles})
    more = f"; {MOST_ROWS} of {len(rows)} scores and keep ratios" if len(rows) > MOST_ROWS else ""
    caption = f"mean {loss.words} of one cut alone, on samples of the search: the deeper, the more is lost{more}"
    cells = tuple(
        tuple(Mark("", rows[row][block]) if block in rows[row] else None for block in blocks) for row in shown
    )
    names = tuple(f"{words} keep {keep:g}" for keep, words in shown)
    axis = Axis(loss.label, loss.unit)
    yield Heat("Sensitivity by block", caption, axis, "score", "block", names, tuple(map(str, blocks)), cells)
