"""How fast the same variants are, in the same run and on the evaluation's own batch: what `--bench` adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from repshift_cli.analysis import pareto, stats
from repshift_cli.benchmark import engine, runner
from repshift_cli.benchmark.builder import StepBuilder
from repshift_cli.benchmark.runner import Observe, Settings
from repshift_cli.evaluation.loop import Contender
from repshift_cli.records import Case, Metric, Record, Step
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.plan import Planned, comparisons

FRONT = Metric(
    "pareto", "front", "", "higher", "value", "computed",
    "Is 1 where no other variant of the run is as accurate and as fast and better in one of them, by the figures "
    "alone; 0 elsewhere.", gateable=False, detail=True,
)  # fmt: skip
METRICS = (FRONT,)
TIMED = ("latency", "throughput", "speedup_vs_flash", "speedup_vs_vanilla", "speedup_vs_unpruned")
"""What of a timed record stands beside the accuracy."""


def timed(
    contenders: Sequence[Contender], inputs: Any, sweep: Axes, device: str, observe: Observe,
    at: Callable[[Case], None] = lambda case: None,
) -> dict[Case, Record]:  # fmt: skip
    """A record of times for every variant that has not failed, each schedule interleaved with the unpruned ones.

    Of random dropping the first seed alone is timed: all of them drop as many tokens. `at` is told which is on its way.
    """
    ready = {c.case: c for c in contenders if c.failure is None and c.case.seed == sweep.seed}

    def prepare(case: Case) -> Step:
        step = ready[case].step
        assert step is not None
        run = step.run
        return replace(step, forward=lambda: run(inputs))

    kind = device.partition(":")[0]
    precision, budget = sweep.precision or engine.PRECISION[kind], sweep.budget or engine.BUDGET[kind]
    settings = Settings(precision, budget, sweep.rounds, sweep.seed, passes=False)
    parts = replace(StepBuilder(device).parts, prepare=prepare, at=at)
    found: dict[Case, Record] = {}
    for block in comparisons([Planned(c.case, c.tokens) for c in ready.values()]):
        cases = [(p.case, p.tokens) for p in block]
        wanted = {p.case for p in block} - set(found)
        found |= {record.case: record for record in runner.compare(cases, wanted, parts, settings, observe)}
    return found


def beside(records: Sequence[Record], times: dict[Case, Record], headline: Metric) -> list[Record]:
    """The records with their times, and whether they stand on the front of the headline and the speed."""
    made = [_with(record, times.get(record.case)) for record in records]
    points = {r.case: place for r in made if (place := _place(r, headline)) is not None}
    front = dict(zip(points, pareto.front(list(points.values())), strict=True))
    return [
        replace(r, measurements=(*r.measurements, FRONT.of(float(front[r.case])))) if r.case in front else r
        for r in made
    ]


def _with(record: Record, times: Record | None) -> Record:
    if times is None or record.status != "ok":
        return record
    if times.status != "ok":
        return replace(record, warnings=(*record.warnings, f"not timed: {times.reason}"))
    more = tuple(m for m in times.measurements if m.metric in TIMED)
    return replace(
        record, measurements=(*record.measurements, *more), rounds=times.rounds, warmup=times.warmup,
        warnings=(*record.warnings, *times.warnings), unfit=times.unfit, throttled=times.throttled,
    )  # fmt: skip


def _place(record: Record, headline: Metric) -> tuple[float, float] | None:
    """(speed, how good), more being better of both; None without either."""
    latency, figure = record.measurement("latency"), record.measurement(headline.name)
    time, value = (stats.point(m) if m else None for m in (latency, figure))
    if time is None or value is None:
        return None
    return -time, value if headline.better == "higher" else -value
