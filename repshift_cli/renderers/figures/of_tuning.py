"""What a search has to show: where one cut costs what, as a map for each keep, and what was found, loss over speed."""

from __future__ import annotations

from collections.abc import Iterator

from repshift_cli.analysis.stats import estimate
from repshift_cli.records.tuning import Single, Tuning
from repshift_cli.renderers.figures.shapes import Axis, Figure, Heat, Mark, Plane, Point


def figures(tuning: Tuning) -> Iterator[Figure]:
    """The maps, then the plane."""
    for keep in sorted({single.keep for single in tuning.singles}):
        yield _map(tuning, keep)
    yield from _plane(tuning)


def _map(tuning: Tuning, keep: float) -> Heat:
    own = [single for single in tuning.singles if single.keep == keep]
    scores = tuple(dict.fromkeys(map(score_of, own)))
    blocks = tuple(sorted({single.layer for single in own}))
    known = {(score_of(single), single.layer): single.loss for single in own}
    return Heat(
        f"Where one cut costs what, keep {keep:g}",
        f"{tuning.loss} of one cut at one block, by score and sign; lower is better; on samples of the search",
        Axis(tuning.loss, tuning.unit, better="lower"),
        "score",
        "block",
        scores,
        tuple(map(str, blocks)),
        tuple(
            tuple(Mark(score, known[score, b], group=score) if (score, b) in known else None for b in blocks)
            for score in scores
        ),
    )


def score_of(single: Single) -> str:
    """`repshift mlp l2 lowest`."""
    return " ".join([single.method, *(str(value) for _, value in single.options)])


def _plane(tuning: Tuning) -> Iterator[Plane]:
    """Every confirmed schedule that was timed."""
    points = []
    for one in tuning.confirmed:
        loss, speed = (estimate(m) if m is not None else None for m in (one.loss, one.speedup))
        if loss is not None and speed is not None:
            name = f"{one.role}: {one.case.pruning} keep {one.case.rate} at {','.join(map(str, one.case.layers))}"
            x, y = (Mark(name, m.value, m.low, m.high, one.role) for m in (speed, loss))
            points.append(Point(x, y))
    if points:
        caption = f"{tuning.loss} on held-out samples over the measured speed-up: to the right and below is better"
        axes = Axis("speed-up", "x", better="higher"), Axis(tuning.loss, tuning.unit, better="lower")
        yield Plane("What was found, and its controls", caption, *axes, points=tuple(points))
