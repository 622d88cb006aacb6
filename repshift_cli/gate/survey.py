"""The survey: one look at every case on each side, at all that is not timed, before anything is judged.

What base measures and head does not is looked at twice before it counts; so is an output that differs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.analysis import comparison
from repshift_cli.analysis.comparison import Lonely
from repshift_cli.gate import outputs
from repshift_cli.gate.process import Ended, Side, Starter
from repshift_cli.gate.thresholds import OUTPUT, Thresholds
from repshift_cli.gate.verdict import NoBase, NothingMeasured
from repshift_cli.records import METHODS_WITHOUT_PRUNING, OPERATORS, Case, Record, Run, UsageError

BASE, HEAD = "base", "head"

Part = tuple[tuple[str, str], ...]
"""Options by name, each with the one value that a case stands for."""

OF_INTERPRETERS = ("torch", "CUDA")
"""What may differ where the two sides have interpreters of their own."""


def part_of(command: str, case: Case) -> Part:
    """What of the command's options names the case."""
    if command == OPERATORS:
        return (("operator", case.attention),)
    return ("model", case.model), ("variant", case.variant)


def options_of(parts: Iterable[Part]) -> dict[str, list[str]]:
    """The options that ask for these parts and no others."""
    asked: dict[str, dict[str, None]] = {}
    for name, value in itertools.chain.from_iterable(parts):
        asked.setdefault(name, {})[value] = None
    return {name: [*values] for name, values in asked.items()}


def rates_of(cases: Iterable[Case]) -> dict[str, list[float]]:
    """The option that leaves out the keep ratios of which none of the cases has one; none where they are not plain."""
    pruned = [case for case in cases if case.pruning != METHODS_WITHOUT_PRUNING]
    keeps = [case.keep for case in pruned if isinstance(case.keep, float) and case.remove is None]
    return {"keep": sorted(set(keeps))} if keeps and len(keeps) == len(pruned) else {}


@dataclass(frozen=True)
class Survey:
    """What each side measured of each case, and what to know about it.

    `unsteady` are the cases that failed on head once and not when it was started again, `wandering` those whose output
    differs between two processes of base.
    """

    base: Run
    head: Run
    notes: tuple[str, ...] = ()
    unsteady: tuple[Lonely, ...] = ()
    wandering: frozenset[Case] = frozenset()

    def run_of(self, side: str) -> Run:
        """The run of base or head, by its name."""
        return self.base if side == BASE else self.head

    @property
    def pairs(self) -> list[tuple[Record, Record]]:
        """The records of the cases that both sides measured."""
        return comparison.paired(self.base, self.head)[0]

    @property
    def lonely(self) -> list[Lonely]:
        """The cases that one side alone measured."""
        return comparison.paired(self.base, self.head)[1]


@dataclass
class Surveyor:
    """Takes the survey of two sides; the `starter`'s options are then what base knows of them."""

    base: Side
    head: Side
    starter: Starter
    thresholds: Thresholds
    observe: Callable[..., None]
    _notes: list[str] = field(default_factory=list)

    def survey(self) -> Survey:
        """Both sides looked at; UsageError where both refuse, NothingMeasured where base ends without a run."""
        self.observe("head: one look at every case")
        ended = self._look(self.head)
        if self._is_one_side and ended.run is not None:
            self.starter.turning |= {self.base.name} if self.head.name in self.starter.turning else set()
            return Survey(ended.run, ended.run)
        self.observe("base: one look at every case")
        base = self._base(ended)
        head = _whole(ended, base)
        self._check_machines(base, head)
        head, unsteady = self._second_look(base, head, ended)
        wandering = self._wandering(base, head)
        return Survey(base, head, tuple(self._notes), unsteady, wandering)

    @property
    def _is_one_side(self) -> bool:
        """Whether one look tells of both: the same code and the same interpreter."""
        return (self.base.folder, self.base.python) == (self.head.folder, self.head.python)

    def _look(self, side: Side, name: str = "survey") -> Ended:
        return self.starter.measure(side, f"{side.name}-{name}", "--rounds", "1")

    def _base(self, head: Ended) -> Run:
        """Base may be older than what the profile names: then it is asked for each model and variant by itself."""
        ended = self._look(self.base)
        if ended.refused:
            if head.run is None:
                raise UsageError(f"head ({self.head.words}): {head.said}")
            self._narrow(head.run, ended)
            ended = self._look(self.base, "second-survey")
        if ended.run is None:
            raise NothingMeasured(f"nothing measured: base ended with {ended.how}")
        return ended.run

    def _narrow(self, head: Run, refusal: Ended) -> None:
        """Ask from now on for the models and variants alone that base knows."""
        parts = dict.fromkeys(part_of(self.starter.command, r.case) for r in head.records)
        known = [part for i, part in enumerate(parts) if self._knows(part, f"base-asked-{i}")]
        if not known:
            raise NoBase(f"no base: base ({self.base.words}): {refusal.said}")
        self._notes.append(f"base refused part of the profile: {refusal.said}")
        self.starter.options = {**self.starter.options, **options_of(known)}

    def _knows(self, part: Part, name: str) -> bool:
        wanted: dict[str, Any] = {option: [value] for option, value in part}
        return self.starter.measure(self.base, name, "--dry-run", **wanted).code == 0

    def _check_machines(self, base: Run, head: Run) -> None:
        found = comparison.differences(base.machine, head.machine)
        if base.machine.uuid != head.machine.uuid:
            found["UUID"] = f"GPU {base.machine.uuid} and {head.machine.uuid}"
        if self.base.python != self.head.python:
            wanted = [found.pop(name) for name in OF_INTERPRETERS if name in found]
            self._notes += [f"base and head differ in {words}, as their interpreters do" for words in wanted]
        if found:
            raise NoBase(f"environment mismatch: base and head differ in {'; '.join(found.values())}")

    def _second_look(self, base: Run, head: Run, ended: Ended) -> tuple[Run, tuple[Lonely, ...]]:
        """Where a case fails on head alone, head is started once more; what runs then is unsteady, and no failure."""
        failed = [one for one in comparison.paired(base, head)[1] if one.is_broken and one.status == "failed"]
        if not failed or ended.refused:
            return head, ()
        self.observe("head: another look at what failed")
        again = {r.case: r for r in _whole(self._look(self.head, "another-survey"), base).records if r.status == "ok"}
        records = tuple(again.get(r.case, r) if r.status == "failed" else r for r in head.records)
        return dataclasses.replace(head, records=records), tuple(one for one in failed if one.case in again)

    def _wandering(self, base: Run, head: Run) -> frozenset[Case]:
        """Where head puts out something else, base is started once more: does its own output differ from itself?"""
        if not any(self._differ(*pair) for pair in comparison.paired(base, head)[0]):
            return frozenset()
        self.observe("base: another look at what it puts out")
        again = self._look(self.base, "another-survey").run
        pairs = comparison.paired(base, again)[0] if again else []
        return frozenset(old.case for old, new in pairs if self._differ(old, new))

    def _differ(self, old: Record, new: Record) -> bool:
        tolerance = self.thresholds.share(new.case, OUTPUT)
        if tolerance is None or old.output is None or new.output is None:
            return False
        return outputs.differ(old.output, new.output, tolerance)


def _whole(ended: Ended, base: Run) -> Run:
    """Head's run with a failed record for every case that it planned and did not measure.

    A head that ended without a run has failed at all that base measured.
    """
    if ended.run is None:
        records = tuple(Record(r.case, "failed", f"head ended with {ended.how}") for r in base.records)
        return dataclasses.replace(base, records=records)
    there = {record.case for record in ended.run.records}
    missing = (case for case in ended.run.planned if case not in there)
    failed = (Record(case, "failed", f"not measured: head ended with {ended.how}") for case in missing)
    return dataclasses.replace(ended.run, records=(*ended.run.records, *failed))
