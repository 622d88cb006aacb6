"""Two sides measured in turn: a survey of each, then round after round in the order base, head, head, base.

The survey takes everything that is not timed, once; a round is one fresh process per side that takes times alone.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repshift_cli.analysis import comparison, stats
from repshift_cli.analysis.comparison import EXACT, LEAST, Finding, Lonely
from repshift_cli.gate import process, verdict
from repshift_cli.gate.process import Side
from repshift_cli.gate.thresholds import Thresholds
from repshift_cli.gate.verdict import Check, Judged, NoBase, NothingMeasured
from repshift_cli.records import Case, Measurement, Record, Run, UsageError, store

BASE, HEAD = "base", "head"
THROTTLED = "the device was throttled by hardware while it was timed; cool it and measure again"
EVERY_ROUND = "timed"
"""The source of what is measured in every round; everything else is measured once, in the survey."""

OF_INTERPRETERS = ("torch", "CUDA")
"""What may differ where the two sides have interpreters of their own."""

Noise = Mapping[str, Mapping[str, float]]
"""Per case key and metric: the share by which A/A gates wander on this runner."""


@dataclass
class BaseAndHead:
    """Base and head with one sweep; `folder` takes the run file and the log of every process."""

    base: Side
    head: Side
    options: dict[str, Any]
    thresholds: Thresholds
    folder: Path
    observe: Callable[..., None] = lambda *_: None
    surveys: dict[str, Run] = field(default_factory=dict)
    processes: dict[str, list[dict[tuple[Case, str], float]]] = field(default_factory=lambda: {BASE: [], HEAD: []})
    notes: list[str] = field(default_factory=list)
    warned: Counter[str] = field(default_factory=Counter)
    watched: list[Check] = field(default_factory=list)
    throttled: int = 0
    only_time: bool = True
    count: int = 0
    now: Callable[[], float] = time.monotonic
    seconds: list[float] = field(default_factory=list)
    """What each process took; the first two are the surveys."""
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def both(self) -> tuple[Side, Side]:
        """Base, then head."""
        return self.base, self.head

    # --- the survey ---------------------------------------------------------------------------------------------------

    def survey(self) -> None:
        """What each side can measure, everything but time, and the proof that both run on the same machine."""
        self.only_time = all(self._takes(side, "--timing-only") for side in self.both)
        self.observe("head: one look at every case")
        self.surveys[HEAD] = self._surveyed(self.head, self.options)
        self.observe("base: one look at every case")
        self.surveys[BASE] = self._base_survey()
        self._check_machines()

    def know(self, other: BaseAndHead) -> None:
        """What another pair of the same sides has surveyed."""
        self.surveys, self.only_time = dict(other.surveys), other.only_time
        self.seconds, self.notes = list(other.seconds[:2]), list(other.notes)

    def plan(self) -> str:
        """What is to come, and about how long it takes, before the first round: by what the surveys took."""
        first, most = self.thresholds.rounds, self.thresholds.most_rounds
        each = 2 * min(self.seconds[:2], default=0.0)
        return (
            f"{first} rounds of one process per side, about {_minutes(first * each)}; up to {most}, about "
            f"{_minutes(most * each)}, where the noise asks for them; a failure is measured once more"
        )

    def _progress(self, side: Side) -> str:
        """`round 9 of 12: head, about 3 min left`, the total growing where a look leaves something open."""
        first, most = self.thresholds.rounds, self.thresholds.most_rounds
        total = next((n for n in (first, most, most + first) if n >= self.count), 2 * most)
        done = self.seconds[2:] or self.seconds
        left = (2 * (total - self.count) + 2 - (side is not self._order()[0])) * sum(done) / max(len(done), 1)
        return f"round {self.count} of {total}: {side.name}, about {_minutes(left)} left"

    def _order(self) -> tuple[Side, Side]:
        return self.both if self.count % 2 else (self.head, self.base)

    def _takes(self, side: Side, option: str) -> bool:
        log = self.folder / f"{side.name}-help.log"
        command = [side.python, "-m", "repshift_cli", "bench", "--help"]
        code = process.run(command, side.folder, {**side.environment, "COLUMNS": "200", "NO_COLOR": "1"}, log)
        if code:
            raise NoBase(f"environment mismatch: repshift does not run on {side.name}: {process.last_line(log)}")
        return option in log.read_text(encoding="utf-8", errors="replace")

    def _surveyed(self, side: Side, options: Mapping[str, Any], name: str = "survey") -> Run:
        code, run = self._bench(side, options, f"{side.name}-{name}", "--rounds", "1")
        log = self.folder / f"{side.name}-{name}.log"
        if code == process.USAGE:
            raise UsageError(f"{side.name} ({side.words}): {process.last_line(log)}")
        if run is None:
            raise NothingMeasured(
                f"nothing measured: {side.name} ended with exit code {code}: {process.last_line(log)}"
            )
        return run

    def _base_survey(self) -> Run:
        """Base may be older than what the profile names: then it is asked for each model and variant by itself."""
        try:
            return self._surveyed(self.base, self.options)
        except UsageError as refusal:
            pairs = [(r.case.model, r.case.variant) for r in self.surveys[HEAD].records]
            known = [p for i, p in enumerate(dict.fromkeys(pairs)) if self._known(p, f"asked-{i}")]
            if not known:
                raise NoBase(f"no base: {refusal}") from refusal
            self.notes.append(f"base refused part of the profile: {str(refusal).partition(': ')[2]}")
            models, variants = ([*dict.fromkeys(values)] for values in zip(*known, strict=True))
            self.options = {**self.options, "model": models, "variant": variants}
            return self._surveyed(self.base, self.options, "second-survey")

    def _known(self, pair: tuple[str, str], name: str) -> bool:
        options = {**self.options, "model": [pair[0]], "variant": [pair[1]]}
        code, _ = self._bench(self.base, options, f"base-{name}", "--dry-run")
        return code == 0

    def _check_machines(self) -> None:
        base, head = self.surveys[BASE], self.surveys[HEAD]
        found = comparison.differences(base.machine, head.machine)
        if base.machine.uuid != head.machine.uuid:
            found["UUID"] = f"GPU {base.machine.uuid} and {head.machine.uuid}"
        if self.base.python != self.head.python:
            wanted = [found.pop(name) for name in OF_INTERPRETERS if name in found]
            self.notes += [f"base and head differ in {words}, as their interpreters do" for words in wanted]
        if found:
            raise NoBase(f"environment mismatch: base and head differ in {'; '.join(found.values())}")

    # --- rounds -------------------------------------------------------------------------------------------------------

    def checks(self, noise: Noise) -> list[Check]:
        """Every timed metric of the cases that both sides measure."""
        pairs, _ = comparison.paired(self.surveys[BASE], self.surveys[HEAD])
        found = []
        for _, record in pairs:
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
        reasons = [r.reason for run in self.surveys.values() for r in run.records if r.reason]
        return next(iter(reasons), "no case was planned")

    def measure(self) -> dict[Check, float]:
        """One round: a fresh process per side, the sides in turn the first."""
        self.count += 1
        for side in self._order():
            self.observe(self._progress(side), self.count > 1)
            self.processes[side.name].append(self._process(side))
        before, after = self.processes[BASE][-1], self.processes[HEAD][-1]
        return {c: self._worse(c, before, after) for c in self.watched}

    def start(self, checks: Sequence[Check]) -> None:
        """Measure these from now on."""
        self.watched = list(checks)

    def _worse(self, check: Check, before: Mapping[Any, float], after: Mapping[Any, float]) -> float:
        place = (check.case, check.metric)
        ratio = after[place] / before[place]
        return 1 / ratio if self._like(check).better == "higher" else ratio

    def _process(self, side: Side) -> dict[tuple[Case, str], float]:
        name = f"{side.name}-{self.count:03d}"
        more = ["--timing-only"] if self.only_time else []
        code, run = self._bench(side, self.options, name, "--rounds", str(self.thresholds.process_rounds), *more)
        records = {r.case: r for r in run.records} if run else {}
        self._note_warnings(records.values())
        found = {}
        for check in self.watched:
            record = records.get(check.case)
            m = record.measurement(check.metric) if record else None
            figure = stats.point(m) if m else None
            if figure is None:
                why = (record.reason if record else None) or process.last_line(self.folder / f"{name}.log")
                raise NothingMeasured(f"nothing measured: {side.name} in round {self.count} (exit code {code}): {why}")
            found[check.case, check.metric] = figure
        return found

    def _note_warnings(self, records: Collection[Record]) -> None:
        """Count each warning once per process, whatever its numbers."""
        texts = {re.sub(r"\d+", "N", text): text for record in records for text in record.warnings}
        self.warned.update(texts.keys())
        self.throttled += any(record.throttled for record in records)
        self.examples = texts | self.examples

    def _bench(self, side: Side, options: Mapping[str, Any], name: str, *arguments: str) -> tuple[int, Run | None]:
        profile = self.folder / "profile.toml"
        profile.write_text(process.toml(options, "what the gate measures"), encoding="utf-8")
        begun = self.now()
        try:
            done = process.bench(side, ["--profile", str(profile), *arguments], self.folder / f"{name}.json")
            self.seconds.append(self.now() - begun)
            return done
        except UsageError as error:  # the run file of another version
            raise NoBase(f"no base: {side.name} wrote what this repshift cannot read: {error}") from error

    # --- what came out ------------------------------------------------------------------------------------------------

    def findings(self, judged: Mapping[Check, Judged]) -> list[Finding]:
        """The judged checks, and every exact metric of the surveys."""
        found = [verdict.timed(c, j, self._of(BASE, c), self._of(HEAD, c)) for c, j in judged.items()]
        pairs, _ = comparison.paired(self.surveys[BASE], self.surveys[HEAD])
        for base, head in pairs:
            for m in head.measurements:
                old = base.measurement(m.metric)
                if m.statistic == EXACT and m.samples and old is not None and old.samples:
                    share = self.thresholds.share(head.case, m.metric) if m.gateable else None
                    found.append(verdict.exact(head.case, old, m, share))
        return found

    def lonely(self) -> list[Lonely]:
        """The cases that one side alone measured."""
        return comparison.paired(self.surveys[BASE], self.surveys[HEAD])[1]

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
        record = next(r for r in self.surveys[HEAD].records if r.case == check.case)
        found = record.measurement(check.metric)
        assert found is not None
        return found

    def _of(self, side: str, check: Check) -> Measurement:
        """The check's metric with one sample per process of the side."""
        values = tuple(figures[check.case, check.metric] for figures in self.processes[side])
        return dataclasses.replace(self._like(check), samples=values, per_round=1)

    def summary(self, side: str) -> Run:
        """The side as one run: times with one sample per process, the rest from its survey."""
        checks = {(c.case, c.metric): c for c in self.watched}
        run = self.surveys[side]
        records = []
        for record in run.records:
            own = [
                self._of(side, checks[record.case, m.metric]) if (record.case, m.metric) in checks else m
                for m in record.measurements
            ]
            records.append(_timed_record(record, own, len(self.processes[side])))
        return dataclasses.replace(run, records=tuple(records), options={**run.options, "rounds": self.count})

    def write(self) -> None:
        """`base.json` and `head.json`: what `compare`, `history` and `export` read."""
        for side in (BASE, HEAD):
            store.create(self.folder.parent / f"{side}.json", self.summary(side))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _timed_record(record: Record, measurements: Sequence[Measurement], rounds: int) -> Record:
    return dataclasses.replace(record, measurements=tuple(measurements), rounds=rounds if record.status == "ok" else 0)
