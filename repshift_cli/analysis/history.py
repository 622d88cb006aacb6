"""Each case over time: series of figures from stored runs, and where they step.

Only runs of one machine (by fingerprint) make a series: other machines' times are no history of this one. Steps are
found by PELT (Killick, Fearnhead and Eckley 2012) from the package ruptures, on the logarithms of the figures.
"""

from __future__ import annotations

import importlib
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from repshift_cli.analysis import stats
from repshift_cli.analysis.comparison import fingerprint
from repshift_cli.machine.packages import install, is_installed
from repshift_cli.records import Case, Measurement, Run

LEAST_RUNS = 6
"""Fewer figures than this show no step: there must be two runs at least on each side, and some to learn the noise."""

SIDE = 2
"""Runs that a level must last."""

LEAST_STEP = 0.01


@dataclass(frozen=True)
class Point:
    """One figure of one run."""

    created: str
    commit: str | None
    value: float


@dataclass(frozen=True)
class Step:
    """From this point on the level is another one: its median over that of the level before."""

    point: Point
    index: int
    ratio: float


@dataclass(frozen=True)
class Series:
    """One metric of one case on one machine, oldest first; `steps` is None where none could be looked for."""

    case: Case
    like: Measurement
    machine: str
    points: tuple[Point, ...]
    steps: tuple[Step, ...] | None = None


def series(runs: Sequence[Run], metrics: Sequence[str]) -> list[Series]:
    """One series per machine, case and metric (by name or label), in the order in which they first appear."""
    found: dict[tuple[object, ...], tuple[Case, Measurement, str, list[Point]]] = {}
    for run in sorted(runs, key=lambda run: run.created):
        for record in run.records:
            machine = fingerprint(run.machine_of(record))
            for m in record.measurements:
                figure = stats.estimate(m) if m.metric in metrics or m.label in metrics else None
                if figure is None:
                    continue
                place = (tuple(machine.items()), record.case, m.metric, m.source)
                known = found.setdefault(place, (record.case, m, _in_words(machine), []))
                known[3].append(Point(run.created, run.machine.commit, figure.value))
    return [Series(case, m, machine, tuple(points), steps(points)) for case, m, machine, points in found.values()]


def _in_words(machine: dict[str, str]) -> str:
    """`NVIDIA H100 80GB HBM3, driver 580, CUDA 13.0, torch 2.13.0`."""
    bare = ("GPU", "CPU")
    return ", ".join(
        value if name in bare else f"{name} {value}" for name, value in machine.items() if name != "device"
    )


def why_no_steps() -> str | None:
    """Why steps cannot be looked for here, or None."""
    return None if is_installed("ruptures") else f"step changes are not marked: {install('history')} finds them"


def steps(points: Sequence[Point]) -> tuple[Step, ...] | None:
    """Where the level changes by 1% or more; None where ruptures is missing, nothing where the runs are too few.

    The penalty is that of BIC for one more level, 3 log(n) variances of the noise, and the noise is taken from the
    differences of neighbours (their median absolute size), which steps hardly touch.
    """
    if why_no_steps():
        return None
    values = [p.value for p in points]
    if len(values) < LEAST_RUNS or min(values) <= 0:
        return ()
    import numpy as np

    ruptures = importlib.import_module("ruptures")
    logs = [math.log(v) for v in values]
    noise = statistics.median(abs(b - a) for a, b in itertools.pairwise(logs)) / 0.6745 / math.sqrt(2)
    penalty = 3 * math.log(len(logs)) * max(noise, 1e-4) ** 2
    search = ruptures.Pelt(model="l2", min_size=SIDE, jump=1).fit(np.array(logs).reshape(-1, 1))
    ends: list[int] = [0, *search.predict(pen=penalty)]
    found = []
    for start, middle, end in zip(ends, ends[1:], ends[2:], strict=False):
        ratio = math.exp(statistics.median(logs[middle:end]) - statistics.median(logs[start:middle]))
        if abs(math.log(ratio)) >= math.log(1 + LEAST_STEP):
            found.append(Step(points[middle], middle, ratio))
    return tuple(found)
