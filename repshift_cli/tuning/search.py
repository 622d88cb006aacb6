"""A search by Optuna: what it tries first, how hopeless trials end early, and what it has found.

The samples of the calibration split come in rungs, each about twice as large as the one before (successive halving). At
the end of a rung a candidate that several earlier ones beat there, on the same samples, in loss and in time, ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from repshift_cli.analysis import pareto
from repshift_cli.evaluation.tasks import NotFinite
from repshift_cli.machine.packages import install
from repshift_cli.records import CaseBroken, UsageError
from repshift_cli.sweep.plan import Planned
from repshift_cli.tuning.order import Goal
from repshift_cli.tuning.space import Candidate, Space

PENALTY = 1e6
"""What misses the target or the bound comes behind all that does not."""
RUNGS = 3
BEATEN = 2
"""A candidate that so many others beat in a rung is given up."""
LEAST = 3
"""So many are tried however small the budget is."""
FIRST = 10
"""Trials that are drawn at random before the sampler learns."""


@dataclass(frozen=True)
class Scored:
    """A candidate with its mean loss on the whole calibration split and its predicted time."""

    candidate: Candidate
    planned: Planned
    loss: float
    milliseconds: float


@dataclass(frozen=True)
class Means:
    """What a search works with: `plan` makes a case, `cost` predicts its time, `losses(planned, rung)` measures."""

    plan: Callable[[Candidate], Planned]
    cost: Callable[[Planned], float]
    losses: Callable[[Planned, int], np.ndarray]
    rungs: int


def rungs_of(count: int) -> list[range]:
    """So many batches as successive halving takes them: 8 are 2, 2 and 4."""
    ends = sorted({max(1, count // 2 ** (RUNGS - 1 - i)) for i in range(RUNGS - 1)} | {count})
    return [range(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


@dataclass
class Search:
    """One study. `unpruned` is the predicted time of the unpruned model in milliseconds."""

    study: Any
    space: Space
    goal: Goal
    means: Means
    unpruned: float
    found: list[Scored] = field(default_factory=list)
    _reached: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def begin(self, seeds: Sequence[Candidate]) -> None:
        """Take up what an earlier search has tried, or line up what is tried first."""
        if not self.study.trials:
            for seed in dict.fromkeys(seeds):
                self.study.enqueue_trial(self.space.parameters(seed))
        for trial in self._finished():
            for rung, point in enumerate(trial.user_attrs.get("rungs", ())):
                self._reached.setdefault(rung, []).append((point[0], point[1]))
            if "loss" in trial.user_attrs:
                self._note(self.space.suggest(trial_of(trial)), trial.user_attrs["loss"])

    def run(self, trials: int, deadline: float | None, told: Callable[[int, Search], None]) -> None:
        """Try until there are so many trials, or until the deadline (of `time.monotonic`), but a few in any case."""
        from optuna import TrialPruned
        from optuna.trial import TrialState

        done = len(list(self._finished()))
        while done < trials and (deadline is None or done < LEAST or time.monotonic() < deadline):
            trial = self.study.ask()
            try:
                self.study.tell(trial, self._tried(trial))
            except TrialPruned:
                self.study.tell(trial, state=TrialState.PRUNED)
            except (CaseBroken, NotFinite) as error:
                trial.set_user_attr("broken", str(error))
                self.study.tell(trial, state=TrialState.PRUNED)
            except BaseException:
                self.study.tell(trial, state=TrialState.FAIL)
                raise
            done += 1
            told(done, self)

    def _finished(self) -> Iterator[Any]:
        return (trial for trial in self.study.trials if trial.state.is_finished() and trial.state.name != "FAIL")

    def _tried(self, trial: Any) -> Any:
        """What the study is told of one candidate; TrialPruned where it is given up."""
        from optuna import TrialPruned

        candidate = self.space.suggest(trial)
        planned = self.means.plan(candidate)
        if planned.refused is not None:
            raise TrialPruned
        milliseconds = self.means.cost(planned)
        if self.goal.target is not None and milliseconds > self.unpruned / self.goal.target:
            return PENALTY + milliseconds
        loss = self._loss(trial, planned, milliseconds)
        trial.set_user_attr("loss", loss)
        self._note(candidate, loss)
        if self.goal.front:
            return milliseconds, loss
        if self.goal.max_loss is None:
            return loss
        return milliseconds if loss <= self.goal.max_loss else PENALTY + loss

    def _loss(self, trial: Any, planned: Planned, milliseconds: float) -> float:
        """The mean loss over all samples, rung by rung; TrialPruned where others are clearly better."""
        from optuna import TrialPruned

        losses: list[np.ndarray] = []
        points: list[tuple[float, float]] = []
        for rung in range(self.means.rungs):
            losses.append(self.means.losses(planned, rung))
            here = float(np.concatenate(losses).mean()), milliseconds
            points.append(here)
            others = self._reached.setdefault(rung, [])
            beaten = sum(loss < here[0] and cost <= here[1] for loss, cost in others)
            others.append(here)
            trial.set_user_attr("rungs", points)
            if rung < self.means.rungs - 1 and beaten >= BEATEN:
                raise TrialPruned
        return here[0]

    def _note(self, candidate: Candidate, loss: float) -> None:
        planned = self.means.plan(candidate)
        if planned.refused is None:
            self.found.append(Scored(candidate, planned, loss, self.means.cost(planned)))

    def best(self) -> list[Scored]:
        """What the goal asks for, the best first; of the front all that none beats, the fastest first."""
        known = list({scored.planned.case: scored for scored in self.found}.values())
        if self.goal.front:
            on_it = pareto.front([(-s.milliseconds, -s.loss) for s in known]) if known else []
            return sorted((s for s, yes in zip(known, on_it, strict=True) if yes), key=lambda s: s.milliseconds)
        if self.goal.target is not None:
            fast = [s for s in known if s.milliseconds <= self.unpruned / self.goal.target]
            return sorted(fast, key=lambda s: (s.loss, s.milliseconds))
        assert self.goal.max_loss is not None
        return sorted((s for s in known if s.loss <= self.goal.max_loss), key=lambda s: (s.milliseconds, s.loss))


def trial_of(frozen: Any) -> Any:
    """A finished trial as one that suggests what it had."""
    from optuna.trial import FixedTrial

    return FixedTrial(frozen.params)


def study_of(name: str, goal: Goal, seed: int, file: Path | None, identity: str) -> Any:
    """The study of that name in a journal, or in memory; UsageError where the journal is of another search."""
    optuna = optuna_here()
    storage = None
    if file is not None:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    way = {"directions": ["minimize"] * 2} if goal.front else {"direction": "minimize"}
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, **way)
    if study.user_attrs.get("identity", identity) != identity:
        raise UsageError(f"{file} is the journal of a search with other options; name another --study, or remove it")
    study.set_user_attr("identity", identity)
    drawn = seed + len(study.trials)
    if goal.front:
        study.sampler = optuna.samplers.NSGAIISampler(seed=drawn, population_size=FIRST)
    else:
        study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=FIRST)
    return study


def check_journal(file: Path, name: str, goal: Goal, identity: str) -> None:
    """UsageError where the file is the journal of another search."""
    if file.exists():
        study_of(name, goal, 0, file, identity)


def optuna_here() -> Any:
    """The package; UsageError says how to get it."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError(f"tune needs the package optuna: {install('tune')}") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
