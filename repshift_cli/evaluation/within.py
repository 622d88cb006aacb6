"""The unpruned model on labelled data while something in it is changed: what an ablation does to its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from repshift_cli import registry
from repshift_cli.evaluation import results, tasks
from repshift_cli.evaluation.assembly import Assembled, assemble
from repshift_cli.evaluation.engine import SHARD, order_of
from repshift_cli.evaluation.loop import TRAINING, Contender, Loop
from repshift_cli.evaluation.order import Order
from repshift_cli.evaluation.shards import Shards
from repshift_cli.evaluation.tasks import Judge
from repshift_cli.records import METHODS_WITHOUT_PRUNING, Metric, Record, Subject

Change = Callable[[Subject], AbstractContextManager[Any]]
"""Something in the built model that is changed within a context."""


@dataclass(frozen=True)
class Labelled:
    """An evaluation of the order's unpruned variant, made ready: data read, model built, task begun."""

    order: Order
    ready: Assembled
    judge: Judge
    metrics: tuple[Metric, ...]

    @classmethod
    def of(cls, order: Order) -> Labelled:
        """UsageError where data, task and model do not fit together."""
        task = registry.load(registry.find(tasks.ROOM, order.task))
        ready = assemble(order)
        return cls(order, ready, task.begin(ready.context), task.METRICS)

    def records(self, changes: Mapping[str, Change]) -> list[Record]:
        """What `eval` would say of the model as it is, first, and within each change, by its name as the method: every
        metric, with its paired difference to the model as it is. What is fitted is fitted on the model as it is."""
        own = next(c for c in self.ready.contenders if c.case.pruning == METHODS_WITHOUT_PRUNING)
        contenders = [own, *(self._changed(own, name, change) for name, change in changes.items())]
        samples = order_of(self.judge, self.ready.data.samples, self.order)[: self.order.limit]
        batch = self.order.sweep.batch[0]
        with TemporaryDirectory(prefix="repshift-") as folder:
            shards = Shards(Path(folder, "run.json"), "")
            shard = max(1, SHARD // batch) * batch
            loop = Loop(self.judge, self.ready.feed, self.ready.decoder, shards, batch, shard)
            try:
                if self.judge.trains:
                    learner = Contender(own.case, own.tokens, own.step)
                    loop.run([learner], self.ready.data.training, TRAINING)
                    self.judge.fit(own.case, learner.whole, self.ready.data.training)
                loop.run(contenders, samples)
            finally:
                loop.decoder.close()
        return results.records(contenders, samples, self.judge, self.metrics, self.order.sweep.seed)

    def _changed(self, own: Contender, name: str, change: Change) -> Contender:
        step = own.step
        assert step is not None

        @contextmanager
        def active() -> Iterator[None]:
            with step.active(), change(step.subject):
                yield

        return Contender(replace(own.case, pruning=name), own.tokens, replace(step, active=active))
