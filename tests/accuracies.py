"""The accuracy tables of profiles/baselines/README.md: every schedule, and each method's mean difference to random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from repshift_cli.analysis import paired, stats
from repshift_cli.records import Case, Record

RANDOM = "random"
LEVEL = 0.05


@dataclass(frozen=True)
class Told:
    """What is shown of a run: a metric, with so many places, by the name of a method."""

    metric: str
    places: int
    name: Callable[[Record], str]

    def schedules(self, rows: Sequence[Record]) -> str:
        """Schedules down, methods across; + and - where a method is shown better or worse than random dropping."""
        methods, shown = list(dict.fromkeys(map(self.name, rows))), self.shown(rows)
        cells: dict[tuple[tuple[int, ...], float], dict[str, list[Record]]] = {}
        for r in rows:
            cells.setdefault((r.case.layers, r.case.keep), {}).setdefault(self.name(r), []).append(r)
        lines = [f"| after block | keep | {' | '.join(methods)} |", "|---" * (len(methods) + 2) + "|"]
        for (layers, keep), own in sorted(cells.items()):
            told = [self._cell(own[m], shown.get(own[m][0].case, 0)) if m in own else "–" for m in methods]
            lines.append(f"| {', '.join(map(str, layers))} | {keep:g} | {' | '.join(told)} |")
        return "\n".join(lines)

    def _cell(self, seeds: Sequence[Record], sign: int) -> str:
        mean = fmean(self._figure(r, "").value for r in seeds)
        return f"{mean:.{self.places}f}" + {1: " +", -1: " -", 0: ""}[sign]

    def _figure(self, record: Record, kind: str) -> stats.Estimate:
        measurement = record.measurement(self.metric + kind)
        figure = stats.estimate(measurement) if measurement else None
        assert figure is not None, f"{record.case} has no {self.metric}{kind}"
        return figure

    def shown(self, rows: Sequence[Record]) -> dict[Case, int]:
        """By case 1 where it is shown better than random dropping, -1 where worse, 0 where neither: the paired means
        by Student's t, adjusted by Holm for all of these rows."""
        found = {r.case: m.samples for r in rows if (m := r.measurement(f"{self.metric}_vs_{RANDOM}")) and m.samples}
        return dict(zip(found, self.signs(list(found.values()), rows[0]), strict=True))

    def signs(self, differences: Sequence[Sequence[float]], record: Record) -> list[int]:
        """1 for better, -1 for worse, 0 where none was shown of these paired differences together (Holm)."""
        adjusted = paired.holm([stats.mean_p(values) for values in differences])
        better = 1 if self.rising(record) else -1
        return [
            0 if p >= LEVEL else better if fmean(values) > 0 else -better
            for values, p in zip(differences, adjusted, strict=True)
        ]

    def rising(self, record: Record) -> bool:
        """Whether higher is better."""
        return next(m.better for m in record.measurements if m.metric == self.metric) == "higher"

    # --- the ranking --------------------------------------------------------------------------------------------------

    def ranking(self, rows: Sequence[Record]) -> str:
        """Methods down, the best first: the mean difference to random dropping over the keeps, by block and in all.

        The means are of the schedules that all methods have, the counts of all schedules of each.
        """
        blocks, shown, overall = sorted({r.case.layers for r in rows}), self.shown(rows), self.overall(rows)
        heads = [f"after block {', '.join(map(str, layers))}" for layers in blocks]
        lines = [f"| method | {' | '.join(heads)} | all | better | worse |", "|---" * (len(heads) + 4) + "|"]
        for m, of in self.alike(rows).items():
            parts = [self.difference(self.mean([r for r in of if r.case.layers == b])) for b in blocks]
            signs = [shown.get(r.case, 0) for r in rows if self.name(r) == m]
            counts = (str(signs.count(1)), f"{signs.count(-1)} of {len(signs)}")
            lines.append(f"| {' | '.join([m, *parts, self.bold(of, overall[m]), *counts])} |")
        return "\n".join(lines)

    def overall(self, rows: Sequence[Record]) -> dict[str, int]:
        """By method 1, -1 or 0 for its mean over the schedules that all have, adjusted for the methods (Holm)."""
        own = self.alike(rows)
        signs = self.signs([self.samples(of) for of in own.values()], rows[0])
        return dict(zip(own, signs, strict=True))

    def bold(self, of: Sequence[Record], sign: int) -> str:
        """A mean over schedules with its interval, bold where it is shown better or worse."""
        mark = "**" if sign else ""
        return f"{mark}{self.difference(self.mean(of))}{mark}"

    def alike(self, rows: Sequence[Record]) -> dict[str, list[Record]]:
        """By method, the best first: the records of the schedules that all methods have."""
        own = {m: [r for r in rows if self.name(r) == m] for m in dict.fromkeys(map(self.name, rows)) if m != RANDOM}
        common = set.intersection(*({r.case.schedule for r in of} for of in own.values()))
        found = {m: [r for r in of if r.case.schedule in common] for m, of in own.items()}
        ranked = sorted(found, key=lambda m: self.mean(found[m]).value, reverse=self.rising(rows[0]))
        return {m: found[m] for m in ranked}

    def mean(self, rows: Sequence[Record]) -> stats.Estimate:
        """The mean difference over these schedules, with its interval over the samples."""
        return stats.mean_interval(self.samples(rows))

    def samples(self, rows: Sequence[Record]) -> list[float]:
        """Each sample's mean difference to random dropping over these schedules."""
        found = [r.measurement(f"{self.metric}_vs_{RANDOM}") for r in rows]
        return [fmean(of) for of in zip(*(m.samples for m in found if m), strict=True)]

    def difference(self, figure: stats.Estimate) -> str:
        assert figure.low is not None and figure.high is not None
        value, low, high = (f"{v:+.{self.places}f}" for v in (figure.value, figure.low, figure.high))
        return f"{value} ({low} to {high})"


def summary(runs: Mapping[str, tuple[Told, Sequence[Record]]]) -> str:
    """Methods down, runs across, each by its label: the mean differences to random dropping."""
    found = {
        label: {m: told.bold(of, told.overall(rows)[m]) for m, of in told.alike(rows).items()}
        for label, (told, rows) in runs.items()
    }
    methods = dict.fromkeys(m for own in found.values() for m in own)
    lines = [f"| method | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    return "\n".join(
        [*lines, *(f"| {' | '.join([m, *(own.get(m, '–') for own in found.values())])} |" for m in methods)]
    )
