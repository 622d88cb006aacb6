"""A search from its order to its outcome. It prints nothing; whoever calls it gives the observer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from repshift_cli import __version__
from repshift_cli.benchmark import builder
from repshift_cli.machine import device as devices
from repshift_cli.machine.cores import choose_threads, set_threads
from repshift_cli.machine.describe import describe
from repshift_cli.models.inputs.images import IMAGES
from repshift_cli.records import Case, Facts, Progress
from repshift_cli.records.tuning import CHOSEN, INTERRUPTED, NOTHING, Confirmed, Costs, Single, Tuning
from repshift_cli.sweep.plan import Planned
from repshift_cli.tuning import confirm, search
from repshift_cli.tuning.clock import Clock, clock_on, cost_model, few, probes
from repshift_cli.tuning.costs import CostModel, load_of
from repshift_cli.tuning.grounds import Ground, on_data, unlabelled
from repshift_cli.tuning.order import CONTROLS, STEP, Goal, Order
from repshift_cli.tuning.planner import Planner
from repshift_cli.tuning.search import Means, Scored, Search, rungs_of
from repshift_cli.tuning.sensitivity import dressed, greedy, keeps_of, scores_alone, sensitivity, singles
from repshift_cli.tuning.space import Candidate, Space, paper, uniform

Observe = Callable[[Progress], None]
ROUGH = 0.1
"""From this typical error on predictions are said to be rough."""
SENSITIVITYS = 0.25
"""The sensitivity pass ahead of a search ends at this share of the budget."""
MAIN = "tuned"
"""The study of what is sought; the others have the names of the controls."""


@dataclass
class Session:
    """A search on its way: its parts are given, so that a test gives a model and a clock of its own.

    `clock` times what the cost model is fitted to, `final` what is recommended. `options` are what was typed, and
    `file` is the journal, None where the search is not to be gone on with. `pause` is called where nothing is half
    done: it may raise KeyboardInterrupt.
    """

    order: Order
    ground: Ground
    planner: Planner
    clock: Clock
    final: Clock
    observe: Observe = lambda _: None
    threads: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    pause: Callable[[], None] = lambda: None
    _known: dict[tuple[Case, tuple[int, ...]], np.ndarray] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _searching: float = field(default_factory=time.monotonic)

    def losses(self, case: Case, numbers: Sequence[int]) -> np.ndarray:
        """The losses on these batches of the calibration split, measured once."""
        self.pause()
        key = case, tuple(numbers)
        if key not in self._known:
            self._known[key] = self.ground.losses(case, [self.ground.calibration[n] for n in numbers])
        return self._known[key]

    @property
    def _space(self) -> Space:
        """What may be searched of this model on these samples."""
        space = self.planner.space()
        return space if self.ground.protects else replace(space, protects=space.protects[:1])

    def begun(self) -> Tuning:
        """What there is before anything was measured."""
        return self._outcome(INTERRUPTED, "interrupted before anything was found", ())

    def sensitivity(self) -> Tuning:
        """One cut at a time, by every method, sign and operation, and at random; nothing is searched."""
        space = scores_alone(self._space)
        wide = replace(space, methods=(*space.methods, "random"))
        known: list[Single] = []
        try:
            self._singles(known, wide, keeps_of(wide), range(len(self.ground.calibration)), self._deadline())
        except KeyboardInterrupt:
            return self._outcome(INTERRUPTED, "interrupted: one cut at one block at a time, as far as it came", known)
        return self._outcome("sensitivity", "one cut at one block at a time; nothing was searched", known)

    def tune(self) -> Tuning:
        """Search and confirm; an interrupted search gives the best so far, which is not confirmed."""
        search.optuna_here()
        space = self._space
        rungs = rungs_of(len(self.ground.calibration))
        searches: dict[str, Search] = {}
        known: list[Single] = []
        model: CostModel | None = None
        try:
            model = self._costs(space)
            self._searching = time.monotonic()
            depth, unpruned = self.planner.facts.depth, self.planner.unpruned
            means = Means(
                self.planner.planned,
                lambda p: model.milliseconds(load_of(p.tokens, p.case.layers, depth, p.case.pruning)),
                lambda p, rung: self.losses(p.case, rungs[rung]),
                len(rungs),
            )
            narrow = replace(scores_alone(space), methods=(*space.methods, *CONTROLS))
            self._singles(known, narrow, keeps_of(space)[:1], rungs[0], self._deadline(SENSITIVITYS))
            plain = means.cost(unpruned)
            shares = np.linspace(self._spent(), 1, len(CONTROLS) + 2)[1:]
            for name, share in zip((MAIN, *CONTROLS), shares, strict=True):
                own = space if name == MAIN else space.only(name)
                study = search.study_of(name, self.order.goal, self.order.sweep.seed, self.file, self.order.identity())
                searches[name] = Search(study, own, self.order.goal, means, plain)
                searches[name].begin(self._seeds(own, known, means))
                searches[name].run(self.order.trials, self._deadline(share), self._told(name))
            return self._confirmed(searches, known, model)
        except KeyboardInterrupt:
            return self._interrupted(searches, known, model)

    # --- parts of a search --------------------------------------------------------------------------------------------

    def _costs(self, space: Space) -> CostModel:
        """The cost model, of the journal where one is gone on with: then all trials are predicted alike."""
        study = search.study_of(MAIN, self.order.goal, 0, self.file, self.order.identity())
        stored = study.user_attrs.get("costs")
        if stored is None:
            self.observe(Progress("timing a few schedules", 0.0))
            some = probes((*space.methods, *CONTROLS), space.layers)
            planned = [p for p in map(self.planner.planned, some) if p.refused is None]
            model = cost_model(planned, self.planner.facts.depth, self.clock)
            study.set_user_attr("costs", {"coefficients": model.coefficients, "errors": list(model.errors)})
            return model
        return CostModel(dict(stored["coefficients"]), tuple(stored["errors"]))

    def _singles(
        self, known: list[Single], space: Space, keeps: Sequence[float], numbers: Sequence[int], deadline: float | None
    ) -> None:
        """Adds one cut at a time to what is known, until the deadline."""
        asked = singles(space, keeps)
        measured = sensitivity(asked, self.planner.planned, lambda p: self.losses(p.case, numbers))
        for number, single in enumerate(measured, start=1):
            known += [single] if single is not None else []
            self.observe(Progress("sensitivity", number / len(asked), None, f"one cut at a time {number}/{len(asked)}"))
            if deadline is not None and time.monotonic() > deadline:
                return

    def _seeds(self, space: Space, known: Sequence[Single], means: Means) -> list[Candidate]:
        """What is tried first: schedules of the blocks that mind least, the published and the uniform ones.

        These with the score that costs least at their blocks, and as they are.
        Where a speed-up is sought each has the mildest keep that is predicted to reach it. The first is tried under
        every protection.
        """
        depth, target = self.planner.facts.depth, self.order.goal.target
        own = greedy([s for s in known if s.method in space.methods], space)
        published = [c for method in space.methods for c in paper(depth, method)]
        even = uniform(depth, space.methods, self.order.keep)
        seeds = [*own, *(dressed(seed, known, space) for seed in (*even, *published)), *published, *even]
        most = None if target is None else means.cost(self.planner.unpruned) / target

        def fitting(some: Sequence[Candidate]) -> list[Candidate]:
            mildest = [seed if most is None else self._mildest(seed, space, means, most) for seed in some]
            return [seed for seed in mildest if seed is not None]

        seeds = fitting(seeds)
        seeds[1:1] = fitting([replace(seed, protect=p) for seed in seeds[:1] for p in space.protects[1:]])
        return list(dict.fromkeys(seeds))[: max(1, self.order.trials // 2)]

    def _mildest(self, seed: Candidate, space: Space, means: Means, most: float) -> Candidate | None:
        """The candidate with the largest keep, alike at all cuts, whose predicted time is at most this."""
        for step in range(space.steps[1], space.steps[0] - 1, -1):
            own = replace(seed, keep=round(step * STEP, 4))
            planned = self.planner.planned(own)
            if planned.refused is None and means.cost(planned) <= most:
                return own
        return None

    def _deadline(self, share: float = 1.0) -> float | None:
        """When so much of the budget is spent; None where there is none."""
        return None if self.order.budget is None else self._searching + self.order.budget * share

    def _spent(self) -> float:
        """The share of the budget that is spent, at most all: what is left is for the searches, in equal parts."""
        return 0.0 if self.order.budget is None else min(1.0, (time.monotonic() - self._searching) / self.order.budget)

    def _told(self, name: str) -> Callable[[int, Search], None]:
        def told(done: int, own: Search) -> None:
            best = next(iter(own.best()), None)
            words = "none yet that fits"
            if best is not None:
                faster = f"best {own.unpruned / best.milliseconds:.2f}x predicted"
                words = f"{faster}, {self.ground.loss.label} {best.loss:.4g}: {best.candidate.words}"
            text = f"{name} {done}/{self.order.trials} · {words}"
            self.observe(Progress("searching", done / self.order.trials, None, text))

        return told

    # --- how it ends --------------------------------------------------------------------------------------------------

    def _confirmed(self, searches: Mapping[str, Search], known: Sequence[Single], model: CostModel) -> Tuning:
        found = self._recommended(searches[MAIN], model)
        if not found:
            sought = goal_words(self.order.goal, self.ground.loss.label)
            faster = self.order.goal.target is not None
            way = "earlier --layers, a lower --keep, more --cuts" if faster else "later --layers, a higher --keep"
            none = f"nothing found that fits {sought}; allow {way}, or seek less"
            return self._outcome(NOTHING, none, known, searches, model)
        self.observe(Progress("confirming", 0.0, None, "confirming on held-out samples"))
        controls = {name: searches[name].best() for name in CONTROLS}
        asked = confirm.rows(found, controls, paper(self.planner.facts.depth)[:1], self.planner.planned)
        told = confirm.confirmed(asked, self._held_out, self.ground.loss, self.final)
        said = confirm.verdict(told, self.order.goal, self.ground.loss.label)
        if said.number is not None:
            told = [c for c in told if c.number == said.number] + [c for c in told if c.number != said.number]
        return self._outcome(said.status, said.sentence, known, searches, model, told)

    def _held_out(self, case: Case) -> np.ndarray:
        self.pause()
        return self.ground.losses(case, self.ground.held_out)

    def _recommended(self, own: Search, model: CostModel | None) -> list[Scored]:
        """The best, at a target also the best that reaches it with the predictions' error to spare; or a few points of
        the front that lie far apart."""
        best, goal = own.best(), self.order.goal
        if goal.target is not None:
            error = model.typical if model is not None else None
            sure = [s for s in best if s.milliseconds * (1 + (error or 0)) <= own.unpruned / goal.target]
            return list(dict.fromkeys([*best[:1], *sure[:1]]))
        if not goal.front or len(best) <= confirm.MOST_POINTS:
            return list(best if goal.front else best[:1])
        places = np.linspace(0, len(best) - 1, confirm.MOST_POINTS).round().astype(int)
        return [best[place] for place in dict.fromkeys(places.tolist())]

    def _interrupted(self, searches: Mapping[str, Search], known: Sequence[Single], model: CostModel | None) -> Tuning:
        """The best so far as the search saw it."""
        best = self._recommended(searches[MAIN], model) if MAIN in searches else []
        missing = self.ground.loss.missing("not confirmed")
        told = [
            Confirmed(CHOSEN, n, s.planned.case, s.planned.tokens, missing, s.loss, s.milliseconds)
            for n, s in enumerate(best, start=1)
        ]
        return self._outcome(INTERRUPTED, "interrupted: the best so far, not confirmed", known, searches, model, told)

    def _outcome(
        self, status: str, sentence: str, known: Sequence[Single], searches: Mapping[str, Search] | None = None,
        model: CostModel | None = None, told: Sequence[Confirmed] = (),
    ) -> Tuning:  # fmt: skip
        ground, case = self.ground, self.planner.unpruned.case
        samples = tuple(sum(len(b.rows) for b in split) for split in (ground.calibration, ground.held_out))
        return Tuning(
            status=status,
            sentence=sentence,
            machine=replace(describe(ground.device), threads=self.threads),
            model=case.model,
            attention=case.attention,
            data=self.order.data or case.input,
            samples=(samples[0], samples[1]),
            loss=ground.loss.label,
            unit=ground.loss.unit,
            goal=goal_words(self.order.goal, ground.loss.label),
            trials=sum(len(s.study.trials) for s in (searches or {}).values()),
            seconds=time.monotonic() - self._began,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tool=f"repshift {__version__}",
            singles=tuple(known),
            confirmed=tuple(told),
            costs=_costs_of(model),
            notes=(*ground.notes, *_rough(model)),
            options=dict(self.options),
            study=None if self.file is None else str(self.file),
        )


def goal_words(goal: Goal, loss: str) -> str:
    """What is sought, in words."""
    if goal.target is not None:
        return f"the least {loss} at {goal.target:g}x"
    if goal.max_loss is not None:
        return f"the greatest speed at {loss} up to {goal.max_loss:g}"
    return f"the front of {loss} and speed"


def _rough(model: CostModel | None) -> tuple[str, ...]:
    """What must be said of predictions that are far off."""
    if model is None or model.typical is None or model.typical < ROUGH:
        return ()
    return ("times were hard to predict, so that the search may have aimed beside its goal: try a machine at rest",)


def _costs_of(model: CostModel | None) -> Costs | None:
    if model is None:
        return None
    return Costs(len(model.errors), model.typical, max(model.errors, default=None))


def begin(
    order: Order, observe: Observe, pause: Callable[[], None] = lambda: None,
    options: Mapping[str, Any] | None = None, file: Path | None = None,
) -> Session:  # fmt: skip
    """The model built, its inputs read and halved; UsageError for what does not fit together."""
    device = devices.choose_device(order.sweep.device)
    threads = choose_threads(order.sweep.threads)
    set_threads(threads)
    sweep = order.sweep
    size, frames, length = (next(iter(values), None) for values in (sweep.image_size, sweep.frames, sweep.tokens))
    facts = builder.facts_of(sweep.weights, sweep.model[0], size, frames, length)
    backend = builder.backend_for(sweep.variant[0].partition("+")[0], device)
    planner = Planner(order, device, facts, backend, order.data)
    unpruned: Planned = planner.unpruned
    planner.space()
    observe(Progress("building the model", 0.0))
    if order.data is None or loose(order, facts):
        ground = unlabelled(builder.StepBuilder(device).subject(unpruned.case), unpruned.case, device)
    else:
        ground = on_data(order)
    clock, final = (clock_on(ground, unpruned, own, lambda _: pause()) for own in (few(sweep), sweep))
    return Session(order, ground, planner, clock, final, observe, threads, options or {}, file, pause)


def loose(order: Order, facts: Facts) -> bool:
    """Whether the data are inputs without labels, which `bench` reads: images without classes, a decoder's prompts."""
    if order.data is None or order.task is not None:
        return False
    place = Path(order.data)
    if facts.causal and place.suffix == ".txt":
        return True
    return any(f.suffix.lower() in IMAGES for f in (place.iterdir() if place.is_dir() else (place,)))
