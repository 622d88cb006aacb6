"""Times of cases on this device: a few to predict others by, and every schedule that is recommended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from repshift_cli.analysis import stats
from repshift_cli.evaluation import speed
from repshift_cli.evaluation.loop import Contender
from repshift_cli.records import Case, Measurement, Progress, Record, UsageError
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.plan import Planned
from repshift_cli.tuning.costs import CostModel, Load, fit, load_of
from repshift_cli.tuning.grounds import Ground
from repshift_cli.tuning.space import Candidate

Clock = Callable[[Sequence[Planned]], dict[Case, Record]]
"""Times the unpruned case and these, interleaved."""
FEW_ROUNDS = 7
"""Rounds of each case that the cost model is fitted to."""


def clock_on(ground: Ground, unpruned: Planned, sweep: Axes, observe: Callable[[Progress], None]) -> Clock:
    """A clock on the ground's first batch, as `repshift bench` times."""

    def timed(cases: Sequence[Planned]) -> dict[Case, Record]:
        wanted = {p.case: p for p in (unpruned, *cases)}.values()
        contenders = [Contender(p.case, p.tokens, ground.step(p.case)) for p in wanted]
        return speed.timed(contenders, ground.calibration[0].inputs, sweep, ground.device, observe)

    return timed


def few(sweep: Axes) -> Axes:
    """The sweep timed in few rounds, where nothing was said."""
    return sweep if sweep.rounds else replace(sweep, rounds=FEW_ROUNDS)


def probes(methods: Sequence[str], layers: Sequence[int]) -> list[Candidate]:
    """What the cost model is fitted to: of each method an early and a late cut, a harsh and a mild one, and several."""
    early, middle = layers[len(layers) // 4], layers[len(layers) // 2]
    several = tuple(sorted({layers[0], middle, layers[-1]}))
    cuts = (((early,), 0.3), ((early,), 0.7), ((middle,), 0.5), (several, 0.7))
    return [Candidate(method, where, keep) for method in methods for where, keep in cuts]


def cost_model(planned: Sequence[Planned], depth: int, clock: Clock) -> CostModel:
    """The model fitted to these cases and the unpruned one; UsageError where none could be timed.

    A pruned case's time is that of the unpruned one over its paired speed-up: what a busy machine does to both is left
    out.
    """
    times = clock(planned)
    plain = next((_value(record, "latency") for case, record in times.items() if not case.layers), None)
    if plain is None:
        reasons = {record.reason for record in times.values() if record.reason}
        raise UsageError(f"the unpruned model could not be timed: {next(iter(reasons), 'it did not run')}")
    observed: list[tuple[Load, float]] = []
    for case, record in times.items():
        ratio = next((m.metric for m in record.measurements if is_speedup(m)), "") if case.layers else ""
        faster = _value(record, ratio) if case.layers else 1.0
        if faster is not None:
            observed.append((load_of(record.tokens, case.layers, depth, case.pruning), plain / faster))
    return fit(observed)


def is_speedup(measurement: Measurement) -> bool:
    """Whether it is a paired speed-up that was measured."""
    return measurement.metric.startswith("speedup_vs_") and bool(measurement.samples)


def _value(record: Record, metric: str) -> float | None:
    measurement = record.measurement(metric)
    return stats.point(measurement) if measurement is not None else None
