"""What the tables of profiles/baselines/README.md share: its run files, and figures of their records."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from repshift_cli.analysis import stats
from repshift_cli.records import Record, Run, store

FOLDER = Path(__file__).parent.parent / "profiles" / "baselines"
NOTHING = "–"


@cache
def run_of(name: str) -> Run:
    """A stored run of profiles/baselines."""
    return store.load(FOLDER / f"{name}.json")


def pruned(name: str) -> list[Record]:
    """The records of the cases that drop tokens."""
    return [record for record in run_of(name).records if record.case.layers]


def value(record: Record, metric: str) -> float:
    """The figure that stands for a metric's samples."""
    measurement = record.measurement(metric)
    figure = stats.estimate(measurement) if measurement else None
    assert figure is not None, f"{record.case} has no {metric}"
    return figure.value


def interval(record: Record, metric: str, unit: str = "") -> str:
    """The figure with its interval; a dash where there is none."""
    measurement = record.measurement(metric)
    figure = stats.estimate(measurement) if measurement else None
    if figure is None or figure.low is None or figure.high is None:
        return NOTHING
    return f"{figure.value:.2f}{unit} ({figure.low:.2f}–{figure.high:.2f})"
