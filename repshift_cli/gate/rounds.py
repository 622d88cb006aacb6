"""Two sides measured in turn: round after round in the order base, head, head, base, after a survey of each.

The survey takes everything that is not timed, once; a round is one fresh process per side that takes times alone: no
process serves two rounds, for what differs from process to process is the noise that the verdict is held against. The
processes of a round run together where they can, ready at the same time and measuring in turn, so that what the machine
does meanwhile comes to all of them alike; else one after another.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.analysis import stats
from repshift_cli.analysis.comparison import EXACT, LEAST, Finding, Lonely
from repshift_cli.gate import outputs, verdict
from repshift_cli.gate.process import Ended, Job, Side, Starter
from repshift_cli.gate.survey import BASE, HEAD, Survey, options_of, part_of, rates_of
from repshift_cli.gate.thresholds import OUTPUT, Thresholds
from repshift_cli.gate.verdict import Check, Judged, NothingMeasured
from repshift_cli.machine import memory
from repshift_cli.machine.cores import usable_cores
from repshift_cli.records import Case, Measurement, Record, Run, store

THROTTLED = "the device was throttled by hardware while it was timed; cool it and measure again"
EVERY_ROUND = "timed"
"""The source of what is measured in every round; everything else is measured once, in the survey."""
BUDGET = 2.0
"""Seconds of which a process on a CPU may spend a fifth on each case's warm-up: it has no clocks to raise."""
Noise = Mapping[str, Mapping[str, float]]
"""Per case key and metric: the share by which A/A gates wander on this runner."""


@dataclass(frozen=True)
class Figure:
    """What one process gave for a check, and the same of each of its turns."""

    value: float
    turns: tuple[float, ...] = ()


Figures = dict[tuple[Case, str], Figure]
"""What one process gave for each check."""


class Broken(NothingMeasured):
    """Cases that base measures in a round and head, started twice, does not."""

    def __init__(self, cases: Sequence[Lonely]) -> None:
        super().__init__(f"nothing measured: head no longer runs: {cases[0].reason}")
        self.cases = tuple(cases)


@dataclass
class BaseAndHead:
    """Base and head with one sweep, measured by the `starter`'s processes."""

    base: Side
    head: Side
    thresholds: Thresholds
    starter: Starter
    survey: Survey
    observe: Callable[..., None] = lambda *_: None
    processes: dict[str, list[Figures]] = field(default_factory=lambda: {BASE: [], HEAD: []})
    warned: Counter[str] = field(default_factory=Counter)
    watched: list[Check] = field(default_factory=list)
    unsteady: list[Lonely] = field(default_factory=list)
    """What failed on head in a round and not when it was started again."""
    notes: list[str] = field(default_factory=list)
    throttled: int = 0
    count: int = 0
    together: bool = False
    """Whether the processes of a round run together and measure in turn."""
    examples: dict[str, str] = field(default_factory=dict)
    also: BaseAndHead | None = None
    """Another head against the same base, which is measured in the rounds of this one too."""
    ready: deque[dict[str, Figures]] = field(default_factory=deque)
    """Rounds that were measured already, with another pair."""
    _surveys: int = 0

    def __post_init__(self) -> None:
        self._surveys = len(self.starter.seconds)

    @property
    def both(self) -> tuple[Side, Side]:
        """Base, then head."""
        return self.base, self.head

    def plan(self) -> str:
        """What is to come, and how long it takes at most, before the first round: a survey does more than a process."""
        first, most, turns = self.thresholds.rounds, self.thresholds.most_rounds, len(self._turns())
        at_once = min(turns, usable_cores()) if self.together else 1
        each = turns / at_once * min(self.starter.seconds[: self._surveys], default=0.0)
        processes = "one process per side" if turns == len(self.both) else f"{turns} processes"
        how = ", measuring in turn" if self.together else ""
        return (
            f"{first} rounds of {processes}{how}, at most about {_minutes(first * each)}; up to {most}, at most "
            f"about {_minutes(most * each)}, where the noise asks for them; a failure is measured once more"
        )

    def _progress(self, names: str, before: int, starts: int) -> str:
        """`round 9 of 12: head, about 3 min left`, the total growing where a look leaves something open.

        A round has so many `starts`, of which these are `before` the next one.
        """
        first, most = self.thresholds.rounds, self.thresholds.most_rounds
        total = next((n for n in (first, most, most + first) if n >= self.count), 2 * most)
        done = self.starter.seconds[self._surveys :] or self.starter.seconds
        left = (starts * (total - self.count + 1) - before) * sum(done) / max(len(done), 1)
        return f"round {self.count} of {total}: {names}, about {_minutes(left)} left"

    def _turns(self) -> list[tuple[BaseAndHead, Side]]:
        """Who is measured in a round, and for which pair; every second round the other way round."""
        others = [(self.also, self.also.head)] if self.also else []
        turns = [(self, self.base), (self, self.head), *others]
        return turns if self.count % 2 else turns[::-1]

    def _may_share(self) -> bool:
        """Whether the processes of a round can run together: on a CPU, where all know of turns and have room.

        Two models on one GPU have not been tried.
        """
        on_cpu = all(record.case.device == "cpu" for record in self.survey.head.records)
        room, needed = memory.free_bytes(), memory.largest_child_bytes() * len(self._turns())
        return on_cpu and {side.name for side in self.both} <= self.starter.turning and (room is None or needed <= room)

    # --- rounds -------------------------------------------------------------------------------------------------------

    def checks(self, noise: Noise) -> list[Check]:
        """Every timed metric of the cases that both sides measure."""
        found = []
        for _, record in self.survey.pairs:
            for m in record.measurements:
                if m.source != EVERY_ROUND or m.statistic == EXACT or not m.gateable or not m.samples:
                    continue
                share = self.thresholds.share(record.case, m.metric)
                own = noise.get(record.case.key, {}).get(m.metric, 0.0)
                least = LEAST if share is None else share
                found.append(Check(record.case, m.metric, max(least, own, self.thresholds.least), share is not None))
        return found

    def why_nothing(self) -> str:
        """The first reason why no case was measured."""
        runs = ((BASE, self.survey.base), (HEAD, self.survey.head))
        reasons = (f"{side}: {record.reason}" for side, run in runs for record in run.records if record.reason)
        return next(reasons, "no case was planned")

    def measure(self) -> dict[Check, float]:
        """One round: a fresh process per side, the sides in turn the first.

        NothingMeasured where base does not give every figure, Broken where head alone does not.
        """
        self.count += 1
        figures = self.ready.popleft() if self.ready else self._round()
        for name, found in figures.items():
            self.processes[name].append(found)
        return {c: self._worse(c, figures[BASE], figures[HEAD]) for c in self.watched}

    def _round(self) -> dict[str, Figures]:
        turns = self._turns()
        ended = dict(zip((side.name for _, side in turns), self._started_together(turns), strict=False))
        came = dict[str, tuple[Figures, dict[Case, str]]]()
        for before, (pair, side) in enumerate(turns):
            if not self.together:
                self.observe(self._progress(side.name, before, len(turns)), self.count > 1)
            came[side.name] = pair.twice(side, self.count, ended.get(side.name))
        base, lost = came.pop(self.base.name)
        for case, why in lost.items():
            raise NothingMeasured(f"nothing measured: base in round {self.count}: {case.variant}: {why}")
        for _, lost in came.values():
            if lost:
                raise Broken([Lonely(case, BASE, "failed", f"failed: {why}") for case, why in lost.items()])
        if self.also:
            self.also.ready.append({BASE: base, HEAD: came[self.also.head.name][0]})
        return {BASE: base, HEAD: came[self.head.name][0]}

    def _started_together(self, turns: Sequence[tuple[BaseAndHead, Side]]) -> list[Ended]:
        """How the processes of a round ended; none where they are to run one after another."""
        if not self.together:
            return []
        self.observe(self._progress(", ".join(side.name for _, side in turns), 0, 1), self.count > 1)
        return self.starter.together([pair.job(side, _name(side, self.count)) for pair, side in turns])

    def start(self, checks: Sequence[Check]) -> None:
        """Measure these from now on."""
        self.watched, self.together = list(checks), self._may_share()
        if self.also:
            self.also.watched, self.also.together = self.watched, self.together

    def _worse(self, check: Check, before: Figures, after: Figures) -> float:
        """Turn by turn where they took as many in the same round, so that both saw the machine in the same moods."""
        base, head = (figures[check.case, check.metric] for figures in (before, after))
        ratio = head.value / base.value
        if self.together and len(head.turns) == len(base.turns):
            ratio = statistics.median(stats.paired_ratios(head.turns, base.turns))
        return 1 / ratio if self._like(check).better == "higher" else ratio

    def twice(self, side: Side, number: int, ended: Ended | None = None) -> tuple[Figures, dict[Case, str]]:
        """One process, which may have `ended` already, and another where it lacks a figure; then whatever case still
        lacks one, with why."""
        name = _name(side, number)
        figures, lost = self._figures(ended or self._process(side, name))
        if not lost:
            return figures, lost
        figures, still = self._figures(self._process(side, f"{name}-again"))
        if not still:
            once = [Lonely(case, BASE, "failed", f"round {number}: {why}") for case, why in lost.items()]
            if side is self.head:
                self.unsteady += once
            else:
                self.notes.append(f"base failed once in {once[0].reason}; not when it was started again")
        return figures, still

    def _process(self, side: Side, name: str) -> Ended:
        (ended,) = self.starter.together([self.job(side, name)])
        return ended

    def job(self, side: Side, name: str) -> Job:
        """The process of one side that takes the times of what is watched."""
        more = ["--timing-only"] if all(self.starter.takes(one, "--timing-only") for one in self.both) else []
        asked: dict[str, Any] = options_of(part_of(self.starter.command, check.case) for check in self.watched)
        if self.starter.options.get("keep") is not None:
            asked |= rates_of(check.case for check in self.watched)
        if all(check.case.device == "cpu" for check in self.watched):
            asked["budget"] = min(self.starter.options.get("budget") or BUDGET, BUDGET)
        rounds = ("--rounds", str(self.thresholds.process_rounds))
        return self.starter.job(side, name, *rounds, *more, **asked)

    def _figures(self, ended: Ended) -> tuple[Figures, dict[Case, str]]:
        """What a process gave for each check, and why it gave none for a case."""
        records = {r.case: r for r in ended.run.records} if ended.run else {}
        self._note_warnings(records.values())
        figures: Figures = {}
        lost: dict[Case, str] = {}
        for check in self.watched:
            record = records.get(check.case)
            m = record.measurement(check.metric) if record else None
            value = stats.point(m) if m else None
            if m is None or value is None:
                lost[check.case] = (record.reason if record else None) or ended.how
            else:
                figures[check.case, check.metric] = Figure(value, tuple(stats.rounds_of(m)))
        return figures, lost

    def _note_warnings(self, records: Collection[Record]) -> None:
        """Count each warning once per process, whatever its numbers."""
        texts = {re.sub(r"\d+", "N", text): text for record in records for text in record.warnings}
        self.warned.update(texts.keys())
        self.throttled += any(record.throttled for record in records)
        self.examples = texts | self.examples

    # --- what came out ------------------------------------------------------------------------------------------------

    def findings(self, judged: Mapping[Check, Judged]) -> list[Finding]:
        """The judged checks, and every exact metric of the surveys."""
        found = [verdict.timed(c, j, self._of(BASE, c), self._of(HEAD, c)) for c, j in judged.items()]
        for base, head in self.survey.pairs:
            if base.output is not None and head.output is not None:
                share, wanders = self.thresholds.share(head.case, OUTPUT), head.case in self.survey.wandering
                found.append(outputs.compared(head.case, base.output, head.output, share, wanders))
            for m in head.measurements:
                old = base.measurement(m.metric)
                if m.statistic == EXACT and m.samples and old is not None and old.samples:
                    share = self.thresholds.share(head.case, m.metric) if m.gateable else None
                    found.append(verdict.exact(head.case, old, m, share))
        return found

    def warnings(self) -> list[str]:
        """What processes warned of, with the number of those that did; what all of them say is no news, unless they
        were slowed down."""
        processes = 2 * self.count
        news = [(self.examples[text], n) for text, n in self.warned.most_common() if n < processes]
        if processes and self.throttled == processes:
            news.append((THROTTLED, processes))
        return [f"warning in {n} of {processes} processes: {text}" for text, n in news]

    def unknown_rules(self, found: Sequence[Finding]) -> list[str]:
        """Thresholds that judged nothing, in words."""
        judged = {f.metric for f in found if f.verdict not in ("", verdict.INFORM)}
        named = dict.fromkeys(r.metric for r in self.thresholds.rules if r.share is not None)
        return [
            f"{name} has a threshold and was not judged: no case measured it on both sides"
            for name in named
            if name not in judged
        ]

    def _like(self, check: Check) -> Measurement:
        record = next(r for r in self.survey.head.records if r.case == check.case)
        found = record.measurement(check.metric)
        assert found is not None
        return found

    def _of(self, side: str, check: Check) -> Measurement:
        """The check's metric with one sample per process of the side."""
        values = tuple(figures[check.case, check.metric].value for figures in self.processes[side])
        return dataclasses.replace(self._like(check), samples=values, per_round=1)

    def summary(self, side: str, broken: Sequence[Lonely] = ()) -> Run:
        """The side as one run: times with one sample per process, the rest from its survey."""
        checks = {(c.case, c.metric): c for c in self.watched} if self.processes[side] else {}
        reasons = {one.case: one.reason for one in broken if side == HEAD}
        run, records = self.survey.run_of(side), []
        for record in run.records:
            if record.case in reasons:
                records.append(Record(record.case, "failed", reasons[record.case], record.tokens))
                continue
            own = [
                self._of(side, checks[record.case, m.metric]) if (record.case, m.metric) in checks else m
                for m in record.measurements
            ]
            records.append(_timed_record(record, own, len(self.processes[side])))
        return dataclasses.replace(run, records=tuple(records), options={**run.options, "rounds": self.count})

    def write(self, broken: Sequence[Lonely] = ()) -> None:
        """`base.json` and `head.json`: what `compare`, `history` and `export` read."""
        for side in (BASE, HEAD):
            store.create(self.starter.folder.parent / f"{side}.json", self.summary(side, broken))


def _name(side: Side, number: int) -> str:
    """A process's run file."""
    return f"{side.name}-{number:03d}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _timed_record(record: Record, measurements: Sequence[Measurement], rounds: int) -> Record:
    return dataclasses.replace(record, measurements=tuple(measurements), rounds=rounds if record.status == "ok" else 0)
