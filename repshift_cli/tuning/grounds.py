"""Where losses are measured: a built model, calibration and held-out samples in batches, a loss for each sample."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from repshift_cli import registry
from repshift_cli.benchmark import builder
from repshift_cli.evaluation import tasks
from repshift_cli.evaluation.assembly import Assembled, assemble
from repshift_cli.evaluation.decoding import Damaged
from repshift_cli.evaluation.engine import order_of
from repshift_cli.evaluation.samples import Sample
from repshift_cli.evaluation.tasks import Judge, finite
from repshift_cli.probes.fidelity import cosine, divergence
from repshift_cli.records import Case, Metric, Step, Subject, UsageError
from repshift_cli.tuning.order import Order


@dataclass(frozen=True)
class Batch:
    """One batch of inputs. `rows` are places in it that count: the last batch is filled up with repeated samples."""

    number: int
    inputs: Any
    rows: tuple[int, ...]
    samples: tuple[Sample, ...] = ()


Judged = Callable[[Case, Any, Batch], np.ndarray]
"""(case, output, batch) -> the loss of each row that counts."""


@dataclass
class Ground:
    """`loss` says what is measured and in which unit; lower is better. `case` is the unpruned one."""

    subject: Subject
    case: Case
    loss: Metric
    judged: Judged
    calibration: Sequence[Batch]
    held_out: Sequence[Batch]
    device: str
    notes: tuple[str, ...] = ()

    @property
    def protects(self) -> bool:
        """Whether a case may protect more tokens than the model does: where its samples are rows of one length."""
        return not (self.subject.marked or self.subject.central or self.subject.grid)

    def step(self, case: Case) -> Step:
        """The case on the subject, with what the case protects beside what the subject does already."""
        same = case.protect == self.case.protect
        return builder.eager_step(case, self.subject if same else builder.protected(self.subject, case))

    def losses(self, case: Case, batches: Sequence[Batch]) -> np.ndarray:
        """The loss of every sample of these batches, (N,); the same draws for the same case and batch."""
        step = self.step(case)
        found = []
        with step.active():
            for batch in batches:
                torch.manual_seed(zlib.crc32(f"{case.seed} {batch.number}".encode()))
                found.append(self.judged(case, step.run(batch.inputs), batch))
        return np.concatenate(found)


def divided(batches: Sequence[Batch]) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Every other batch for the search, the rest for the confirmation; UsageError where there is one only."""
    if len(batches) < 2:
        raise UsageError(
            "half of the inputs is held out, and there is one batch: give a smaller --batch or more --data"
        )
    return batches[::2], batches[1::2]


# --- without labels: how far from the unpruned model ------------------------------------------------------------------

KL = Metric(
    "tuning_kl", "KL", "nat", "lower", "mean", "compared",
    "Divergence of the class probabilities from those of the unpruned model, input by input.",
)  # fmt: skip
ANGLE = Metric(
    "tuning_angle", "1 - cosine", "", "lower", "mean", "compared",
    "One minus the cosine between the pooled output and that of the unpruned model, input by input.",
)  # fmt: skip


class Divergence:
    """The loss against the unpruned model's outputs, which are taken once."""

    def __init__(self, subject: Subject, case: Case, batches: Sequence[Batch]) -> None:
        self._subject = subject
        self._known: dict[int, Any] = {}
        step = builder.eager_step(case, subject)
        with step.active():
            for batch in batches:
                self._known[batch.number] = self._output(step.run(batch.inputs))

    @property
    def metric(self) -> Metric:
        """KL for what puts out logits, else the cosine."""
        return KL if next(iter(self._known.values()))[0] else ANGLE

    def __call__(self, case: Case, output: Any, batch: Batch) -> np.ndarray:
        classifies, known = self._known[batch.number]
        rows = self._output(output)[1]
        away = divergence(known, rows) if classifies else 1 - cosine(known, rows)
        return away.double().numpy()[list(batch.rows)]

    def _output(self, output: Any) -> tuple[bool, Any]:
        logits = self._subject.logits(output)
        return logits is not None, finite(self._subject.pooled(output) if logits is None else logits).cpu()


def unlabelled(subject: Subject, case: Case, device: str) -> Ground:
    """A ground on the subject's own inputs."""
    count = range(case.batch)
    batches = [Batch(number, inputs, tuple(count)) for number, inputs in enumerate(subject.evaluation)]
    return of_batches(subject, case, batches, device)


def of_batches(subject: Subject, case: Case, batches: Sequence[Batch], device: str) -> Ground:
    """A ground on these batches, the loss being the divergence from the unpruned model."""
    calibration, held_out = divided(batches)
    judge = Divergence(subject, case, batches)
    notes = tuple(dict.fromkeys(subject.warnings))
    return Ground(subject, case, judge.metric, judge, calibration, held_out, device, notes)


# --- with data: eval's tasks, or the divergence on its samples --------------------------------------------------------


def on_data(order: Order) -> Ground:
    """A ground on the samples of `--data`, as eval reads, orders and prepares them."""
    ready = assemble(order.evaluation)
    case = next(c.case for c in ready.contenders)
    if order.task is None:
        column = ready.context.column
        samples = list(ready.data.samples[: order.limit])
        batches = _batches(ready, samples, lambda sample: sample[column], order.sweep.batch[0])
        ready.decoder.close()
        return of_batches(ready.context.subject, case, batches, ready.device)
    judge, metric = _judge(order, ready)
    samples = list(order_of(judge, ready.data.samples, order.evaluation)[: order.limit])
    batches = _batches(ready, samples, lambda sample: _item(judge, sample), order.sweep.batch[0])
    ready.decoder.close()
    calibration, held_out = divided(batches)
    judged = _by_task(judge, metric)
    loss = Metric(
        f"tuning_{metric.name}", f"lost {metric.label}" if metric.better == "higher" else metric.label,
        "points" if metric.unit == "%" else metric.unit, "lower", "mean", "labelled", metric.description,
    )  # fmt: skip
    subject = ready.context.subject
    notes = tuple(dict.fromkeys((*subject.warnings, *judge.notes)))
    return Ground(subject, case, loss, judged, calibration, held_out, ready.device, notes)


def _judge(order: Order, ready: Assembled) -> tuple[Judge, Metric]:
    """The task begun and taught, and its headline; UsageError for one that has no loss for each sample."""
    task = registry.load(registry.find(tasks.ROOM, str(order.task)))
    metric: Metric = task.METRICS[0]
    if metric.statistic not in ("wilson", "mean"):
        raise UsageError(f"--task {order.task} has no loss for each sample; leave it out for the divergence")
    judge: Judge = task.begin(ready.context)
    if judge.trains:
        training = ready.data.training
        step = builder.eager_step(ready.context.case, ready.context.subject)
        kept = []
        batches = _batches(ready, training, lambda sample: _item(judge, sample), order.sweep.batch[0])
        with step.active():
            for batch in batches:
                found = judge.features(ready.context.case, step.run(batch.inputs), batch.samples)
                kept.append(found[list(batch.rows)])
        used = [batch.samples[row] for batch in batches for row in batch.rows]
        judge.fit(ready.context.case, np.concatenate(kept)[:, None], used)
    return judge, metric


def _by_task(judge: Judge, metric: Metric) -> Judged:
    def judged(case: Case, output: Any, batch: Batch) -> np.ndarray:
        kept = judge.read(case, output, batch.samples)[list(batch.rows)]
        values = judge.scores(kept[:, None], [batch.samples[row] for row in batch.rows])[metric.name]
        return np.asarray(100.0 - values if metric.better == "higher" else values, dtype=float)

    return judged


def _item(judge: Judge, sample: Sample) -> Any:
    (item,) = judge.items(sample)
    return item


def _batches(ready: Assembled, samples: Sequence[Sample], item: Callable[[Sample], Any], size: int) -> list[Batch]:
    """The samples that can be read, as batches of the model's inputs."""
    ready.decoder.ask(0, [item(sample) for sample in samples])
    pairs = [(s, i) for s, i in zip(samples, ready.decoder.take(0), strict=True) if not isinstance(i, Damaged)]
    if not pairs:
        raise UsageError("none of the samples could be read")
    items = [i for _, i in pairs]
    made, seen = [], set()
    for number, places in enumerate(ready.feed.batches(items, size)):
        fresh = [row for row, place in enumerate(places) if place not in seen and place not in places[:row]]
        seen.update(places)
        inputs = ready.feed.inputs([items[place] for place in places])
        made.append(Batch(number, inputs, tuple(fresh), tuple(pairs[place][0] for place in places)))
    return made
