"""The accuracy tables of profiles/baselines/README.md: every schedule, and each method's mean difference to random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from repshift_cli.analysis import stats
from repshift_cli.records import Record

RANDOM = "random"
Columns = dict[tuple[float, ...], list[list[Record]]]


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
        own = {m: [r for r in rows if self.name(r) == m] for m in dict.fromkeys(map(self.name, rows)) if m != RANDOM}
        common = set.intersection(*({r.case.schedule for r in of} for of in own.values()))
        alike = {m: [r for r in of if r.case.schedule in common] for m, of in own.items()}
        whole = {m: self.mean(of) for m, of in alike.items()}
        rising = any(r.measurement(self.metric).better == "lower" for r in rows[:1])  # type: ignore[union-attr]
        lines = [f"| method | {' | '.join(heads)} | all | better | worse |", "|---" * (len(heads) + 4) + "|"]
        for m in sorted(own, key=lambda m: whole[m].value, reverse=not rising):
            parts = [self._difference(self.mean([r for r in alike[m] if r.case.layers == b])) for b in blocks]
            signs = [self.against_random(r) for r in own[m]]
            counts = (str(signs.count(1)), f"{signs.count(-1)} of {len(signs)}")
            lines.append(f"| {' | '.join([m, *parts, f'**{self._difference(whole[m])}**', *counts])} |")
        return "\n".join(lines)

    def mean(self, rows: Sequence[Record], other: str = RANDOM) -> stats.Estimate:
        """The mean difference over these schedules, with its interval over the samples: each sample's mean is one."""
        found = [r.measurement(f"{self.metric}_vs_{other}") for r in rows]
        return stats.mean_interval([fmean(of) for of in zip(*(m.samples for m in found if m), strict=True)])

    def _difference(self, figure: stats.Estimate) -> str:
        assert figure.low is not None and figure.high is not None
        value, low, high = (f"{v:+.{self.places}f}" for v in (figure.value, figure.low, figure.high))
        return f"{value} ({low} to {high})"
