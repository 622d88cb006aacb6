"""An evaluation as a task that a launcher carries to another process, so that a crash there ends no more than that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repshift_cli.benchmark.launchers import Observer
from repshift_cli.evaluation import engine
from repshift_cli.evaluation.order import Order
from repshift_cli.records import Case, Run
from repshift_cli.records.journal import Journal


@dataclass(frozen=True)
class Evaluating:
    """What is asked for, and the run file, which is gone on with where it is there. `why` an earlier process ended."""

    order: Order
    path: Path
    why: str = engine.UNKNOWN
    subjects: tuple[Case, ...] = ()

    def perform(self, observer: Observer) -> Iterator[Path]:
        """Evaluate; the answer is in the run file."""
        observer.phase("reading the data and building the model")
        session = engine.begin(self.order, self._journal, observer.update, self.why)
        try:
            session.measure()
        finally:
            session.journal.close()
        yield self.path

    def _journal(self, run: Run) -> Journal:
        return Journal.open(self.path) if self.path.exists() else Journal.create(self.path, run)
