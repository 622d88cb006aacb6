"""The accuracy tables of profiles/baselines/README.md: every schedule, and each method's mean difference to random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from repshift_cli.analysis import stats
from repshift_cli.records import Record

RANDOM = "random"


@dataclass(frozen=True)
class Told:
    """What is shown of a run: a metric, with so many places, by the name of a method."""

    metric: str
    places: int
    name: Callable[[Record], str]

    def schedules(self, rows: Sequence[Record]) -> str:
        """Schedules down, methods across; + and - where a method is shown better or worse than random dropping."""
        methods = list(dict.fromkeys(map(self.name, rows)))
        cells: dict[tuple[tuple[int, ...], float], dict[str, list[Record]]] = {}
        for r in rows:
            cells.setdefault((r.case.layers, r.case.keep), {}).setdefault(self.name(r), []).append(r)
        lines = [f"| after block | keep | {' | '.join(methods)} |", "|---" * (len(methods) + 2) + "|"]
        for (layers, keep), own in sorted(cells.items()):
            told = [self._cell(own[m]) if m in own else "–" for m in methods]
            lines.append(f"| {', '.join(map(str, layers))} | {keep:g} | {' | '.join(told)} |")
        return "\n".join(lines)

    def _cell(self, seeds: Sequence[Record]) -> str:
        mean = fmean(self._figure(r, "").value for r in seeds)
        return f"{mean:.{self.places}f}" + {1: " +", -1: " -", 0: ""}[self.against_random(seeds[0])]

    def _figure(self, record: Record, kind: str) -> stats.Estimate:
        measurement = record.measurement(self.metric + kind)
        figure = stats.estimate(measurement) if measurement else None
        assert figure is not None, f"{record.case} has no {self.metric}{kind}"
        return figure

    def against_random(self, record: Record) -> int:
        """1 where the paired interval says better than random dropping, -1 where worse, 0 where neither."""
        measurement = record.measurement(f"{self.metric}_vs_random")
        figure = stats.estimate(measurement) if measurement and measurement.samples else None
        if measurement is None or figure is None or figure.spans(0):
            return 0
        return 1 if (figure.value > 0) == (measurement.better == "higher") else -1

    # --- the ranking --------------------------------------------------------------------------------------------------

    def ranking(self, rows: Sequence[Record]) -> str:
        """Methods down, the best first: the mean difference to random dropping over the keeps, by block and in all.

        The means are of the schedules that all methods have, the counts of all schedules of each.
        """
        blocks = sorted({r.case.layers for r in rows})
        heads = [f"after block {', '.join(map(str, layers))}" for layers in blocks]
        lines = [f"| method | {' | '.join(heads)} | all | better | worse |", "|---" * (len(heads) + 4) + "|"]
        for m, of in self.alike(rows).items():
            parts = [self.difference(self.mean([r for r in of if r.case.layers == b])) for b in blocks]
            signs = [self.against_random(r) for r in rows if self.name(r) == m]
            counts = (str(signs.count(1)), f"{signs.count(-1)} of {len(signs)}")
            lines.append(f"| {' | '.join([m, *parts, f'**{self.difference(self.mean(of))}**', *counts])} |")
        return "\n".join(lines)

    def alike(self, rows: Sequence[Record]) -> dict[str, list[Record]]:
        """By method, the best first: the records of the schedules that all methods have."""
        own = {m: [r for r in rows if self.name(r) == m] for m in dict.fromkeys(map(self.name, rows)) if m != RANDOM}
        common = set.intersection(*({r.case.schedule for r in of} for of in own.values()))
        found = {m: [r for r in of if r.case.schedule in common] for m, of in own.items()}
        rising = next(m.better for m in rows[0].measurements if m.metric == self.metric) == "lower"
        ranked = sorted(found, key=lambda m: self.mean(found[m]).value, reverse=not rising)
        return {m: found[m] for m in ranked}

    def mean(self, rows: Sequence[Record], other: str = RANDOM) -> stats.Estimate:
        """The mean difference over these schedules, with its interval over the samples: each sample's mean is one."""
        found = [r.measurement(f"{self.metric}_vs_{other}") for r in rows]
        return stats.mean_interval([fmean(of) for of in zip(*(m.samples for m in found if m), strict=True)])

    def difference(self, figure: stats.Estimate) -> str:
        assert figure.low is not None and figure.high is not None
        value, low, high = (f"{v:+.{self.places}f}" for v in (figure.value, figure.low, figure.high))
        return f"{value} ({low} to {high})"


def summary(runs: Mapping[str, tuple[Told, Sequence[Record]]]) -> str:
    """Methods down, runs across, each by its label: the mean differences to random dropping."""
    found = {
        label: {m: told.difference(told.mean(of)) for m, of in told.alike(rows).items()}
        for label, (told, rows) in runs.items()
    }
    methods = dict.fromkeys(m for own in found.values() for m in own)
    lines = [f"| method | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join([m, *(own.get(m, '–') for own in found.values())])} |" for m in methods)]
    )
