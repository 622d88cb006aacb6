"""An evaluation from its order to its run file: it prints nothing; whoever calls it gives the observer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from repshift_cli import __version__, registry
from repshift_cli.analysis import stats
from repshift_cli.benchmark.launchers import Stopped
from repshift_cli.evaluation import results, speed, tasks
from repshift_cli.evaluation.assembly import Assembled, assemble
from repshift_cli.evaluation.loop import DEATHS, EVALUATED, TRAINING, Contender, Loop
from repshift_cli.evaluation.order import Order
from repshift_cli.evaluation.samples import Sample, listing, stratified
from repshift_cli.evaluation.shards import TIMING, Shards
from repshift_cli.evaluation.tasks import Judge
from repshift_cli.machine.describe import describe
from repshift_cli.records import Case, Metric, Progress, Record, Run, UsageError
from repshift_cli.records.journal import Journal

SHARD = 128
"""Samples that are decoded, run through every variant and kept together: full batches of about as many."""
LEAST = 100
"""Before so many samples no interval ends an evaluation."""
SECONDS_BETWEEN_WORDS = 0.1
INTERRUPTED, PRECISION = "interrupted", "precision"
NAMED = 3
"""How many damaged files a warning names."""

UNKNOWN = "a crash, or memory"
"""Why an earlier process ended, where nobody saw it."""

Observe = Callable[[Progress], None]


@dataclass
class Session:
    """An evaluation on its way."""

    order: Order
    journal: Journal
    ready: Assembled
    judge: Judge
    metrics: tuple[Metric, ...]
    samples: Sequence[Sample]
    loop: Loop
    observe: Observe
    began: float = 0.0
    stopped_by: str | None = None
    times: dict[Case, Record] = field(default_factory=dict)
    headline: str = ""
    said: float = 0.0

    def measure(self) -> Run:
        """Evaluate what is not yet on disk and record it; what is done is recorded too when it is interrupted."""
        self.began = time.monotonic()
        try:
            if self.judge.trains:
                self._train()
            self.began, self.loop.moved = time.monotonic(), self._moved
            self.loop.run(self.ready.contenders, self.samples, told=self._told)
            if self.order.bench:
                self._time()
        except (KeyboardInterrupt, SystemExit, Stopped):
            self.loop.shards.end()
            self.stopped_by = INTERRUPTED
            self._record()
            raise
        finally:
            self.loop.decoder.close()
        self._record()
        self.loop.shards.remove()
        return self.journal.snapshot()

    def _train(self) -> None:
        """Give the judge what the training samples give: of the unpruned model, or of every variant."""
        wanted = self.judge.taught_by(self.ready.context)
        for contender in (c for c in self.ready.contenders if c.case in wanted):
            learner = Contender(contender.case, contender.tokens, contender.step)
            training = self.ready.data.training
            self.loop.run([learner], training, TRAINING, self._told_of_training)
            if learner.failure:
                self._untaught(contender, wanted, learner.failure)
                continue
            if len(unread := self.loop.damaged[TRAINING]) == len(training):
                raise UsageError(f"none of the {len(training)} training samples could be read: {_some(unread)}")
            self.judge.fit(contender.case, learner.whole, training)

    def _untaught(self, contender: Contender, wanted: Sequence[Case], reason: str) -> None:
        """A variant fails from which nothing could be learnt, and so do those that would have been judged by it."""
        contender.failure = reason
        for other in self.ready.contenders:
            if other.case not in wanted and other.failure is None:
                other.failure = f"nothing could be learnt from {contender.case.variant}: {reason}"

    def _time(self) -> None:
        """How fast the variants are on the first batch; what was evaluated is in the run file before."""
        self._record()
        inputs, shards = self.loop.first_batch(self.samples), self.loop.shards
        if inputs is None:
            return
        ready = []
        for contender in self.ready.contenders:
            if len(deaths := shards.deaths(contender.case, TIMING)) >= DEATHS:
                reason = f"the process ended {len(deaths)} times while it was: {deaths[-1]}"
                self.times[contender.case] = Record(contender.case, "failed", reason, contender.tokens)
            else:
                ready.append(contender)
        at = partial(shards.begin, doing=TIMING)
        self.times |= speed.timed(ready, inputs, self.order.sweep, self.ready.device, self.observe, at)
        shards.end()

    def _told_of_training(self, done: int, contenders: Sequence[Contender]) -> bool:
        self._say("training samples", done, len(self.ready.data.training))
        return False

    def _told(self, done: int, contenders: Sequence[Contender]) -> bool:
        samples = self.samples
        made = self._records()
        self.headline = _running(made, self.metrics[0])
        self._say(self.headline, done, len(samples))
        if self.order.until is None or done < LEAST or done >= len(samples):
            return False
        name = f"{self.metrics[0].name}_vs_unpruned"
        found = [m for record in made for m in record.measurements if m.metric == name and m.samples]
        widths = [
            (e.high - e.low) / 2 for e in map(stats.estimate, found) if e and e.low is not None and e.high is not None
        ]
        if found and len(widths) == len(found) and max(widths) <= self.order.until:
            self.stopped_by = PRECISION
        return self.stopped_by is not None

    def _moved(self, done: float, begins: bool) -> None:
        if begins and not self.headline and sum(bool(c.outputs) for c in self.ready.contenders) > 1:
            self.headline = _running(self._records(), self.metrics[0])  # of the first shard, which may take long
        if begins or time.monotonic() - self.said >= SECONDS_BETWEEN_WORDS:
            self._say(self.headline or "variants, one after the other", done, len(self.samples))

    def _say(self, text: str, done: float, count: int) -> None:
        self.said = time.monotonic()
        spent = self.said - self.began
        left = spent / done * (count - done) if done else None
        self.observe(Progress("evaluating", done / count, left, f"{text} · {done:.0f}/{count}"))

    def _records(self) -> list[Record]:
        seed = self.order.sweep.seed
        made = results.records(self.ready.contenders, self.samples, self.judge, self.metrics, seed, self.stopped_by)
        return speed.beside(made, self.times, self.metrics[0]) if self.times else made

    def _record(self) -> None:
        """What is known of every variant, into the run file; nothing where no shard is done."""
        made = self._records() if any(c.outputs or c.failure for c in self.ready.contenders) else []
        if not made:
            return
        damaged = self.loop.damaged[EVALUATED]
        count = max((int(m.samples[0]) for r in made for m in r.measurements[:1]), default=0)
        if damaged and not count and len(damaged) >= len(self.samples):
            raise UsageError(f"none of the {len(damaged)} samples could be read: {_some(damaged)}")
        self.journal.change(options=self.order.as_options() | {"evaluation": self._about(count)})
        self.journal.change(warnings=tuple(self._warnings(count)))
        for record in made:
            self.journal.add(record)

    def _about(self, count: int) -> dict[str, Any]:
        """What the table says of the data, for the run file."""
        data, how = self.ready.data, self.ready.preprocessing
        return {
            "samples": count,
            "of": len(self.judge.samples or data.samples),
            "format": data.format,
            "images": how.words if how else None,
            "notes": list(self.judge.notes),
            "metrics": [metric.name for metric in self.metrics],
            "seen": self._seen(),
        }

    def _seen(self) -> dict[str, Any] | None:
        """Which samples the figures are of, so that those of another run can be paired with them."""
        known = listing(self.judge.samples or self.ready.data.samples)
        if known is None:
            return None
        digest, places = known
        seen = results.seen_by_all(self.ready.contenders)
        return {"listing": digest, "places": [places[self.samples[i].name] for i in seen]}

    def _warnings(self, count: int) -> list[str]:
        words = list(self.ready.notes)
        known = {EVALUATED: ("samples", count + len(self.loop.damaged[EVALUATED]))}
        known[TRAINING] = ("training samples", len(self.ready.data.training))
        for role, (what, of) in known.items():
            if damaged := self.loop.damaged[role]:
                share = f"{len(damaged)} of {of} {what} could not be read"
                words.append(f"{share} and count for no variant: {_some(damaged)}")
        return words


def begin(order: Order, journal_of: Callable[[Run], Journal], observe: Observe, why: str = UNKNOWN) -> Session:
    """Everything made ready, and the run file as it stands before the first sample. `why` an earlier process ended."""
    task = registry.load(registry.find(tasks.ROOM, order.task))
    ready = assemble(order)
    judge = task.begin(ready.context)
    if ready.context.frames and not judge.frames:
        raise UsageError(
            f"{ready.context.case.model} takes images, and the data are clips: --task retrieval of a checkpoint of "
            "images and texts takes the mean of their frames, any other task needs a model of clips"
        )
    run = Run(
        machine=replace(describe(ready.device), threads=ready.threads),
        options=order.as_options(),
        planned=ready.cases,
        records=ready.refused,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"repshift {__version__}",
    )
    journal = journal_of(run)
    batch = order.sweep.batch[0]
    shards = Shards(journal.path, _identity(order, ready))
    shards.account(why)
    loop = Loop(judge, ready.feed, ready.decoder, shards, batch, max(1, SHARD // batch) * batch)
    samples = order_of(judge, ready.data.samples, order)[: order.limit]
    return Session(order, journal, ready, judge, task.METRICS, samples, loop, observe)


def order_of(judge: Judge, samples: Sequence[Sample], order: Order) -> Sequence[Sample]:
    """What is evaluated, in order: the data's samples, or what the task has made of them, drawn by the seed."""
    if judge.samples is None:
        return samples
    return [judge.samples[i] for i in stratified([None] * len(judge.samples), order.sweep.seed)]


def _identity(order: Order, ready: Assembled) -> Any:
    """All that what is kept of a sample depends on, beside the variant."""
    how = dataclasses.asdict(ready.preprocessing) if ready.preprocessing else None
    asked = {k: v for k, v in order.as_options().items() if k not in ("workers", "until", "bench", "threads", "limit")}
    names = [[s.name for s in samples] for samples in (ready.data.samples, ready.data.training)]
    return [how, asked, names]


def _running(made: Sequence[Record], metric: Metric) -> str:
    """The headline of the first two variants so far: `top-1 flash 81.3, flash+repshift 79.9`."""
    told = [(r.case.variant, m) for r in made if (m := r.measurement(metric.name)) and m.samples]
    values = [(variant, m.samples[0] if m.statistic == "bootstrap" else np.mean(m.samples)) for variant, m in told]
    return f"{metric.label} " + ", ".join(f"{variant} {value:.4g}" for variant, value in values[:2])


def _some(damaged: dict[str, str]) -> str:
    named = [f"{name} ({reason})" for name, reason in list(damaged.items())[:NAMED]]
    return ", ".join(named) + (f" and {len(damaged) - NAMED} more" if len(damaged) > NAMED else "")
