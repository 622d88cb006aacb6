"""A run made ready to be drawn: its rows in order, its cases by name, every figure worked out once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from repshift_cli.analysis.stats import Estimate, estimate
from repshift_cli.records import Case, Measurement, Record, Run
from repshift_cli.records.labels import labels
from repshift_cli.renderers.figures.shapes import Mark
from repshift_cli.renderers.sheets.metric_columns import ordered_records
from repshift_cli.renderers.sheets.order import rank_of

MODELLED = "modelled"


@dataclass(frozen=True)
class Measured:
    """A run with its cases named and its figures worked out once."""

    run: Run

    @cached_property
    def records(self) -> list[Record]:
        """In the order planned: the rows of the main table."""
        return ordered_records(self.run)

    @cached_property
    def names(self) -> dict[Case, str]:
        return labels(record.case for record in self.records)

    @cached_property
    def _figures(self) -> dict[int, Estimate | None]:
        return {id(m): estimate(m) for record in self.records for m in record.measurements}

    def figure(self, record: Record, m: Measurement) -> Estimate | None:
        """The measurement's figure; none of a ratio of times that allow no verdict."""
        return None if record.unfit and m.unit == "x" else self._figures[id(m)]

    def mark(self, row: int, m: Measurement, factor: float = 1.0) -> Mark | None:
        """A figure of the record in this row, divided by `factor`."""
        record = self.records[row]
        figure = self.figure(record, m)
        if figure is None:
            return None
        low, high = (None if end is None else end / factor for end in (figure.low, figure.high))
        name, group = self.names[record.case], record.case.variant
        return Mark(name, figure.value / factor, low, high, group, m.source == MODELLED, row)

    def rows(self, wanted: Callable[[Measurement], bool]) -> list[tuple[int, Measurement]]:
        """The most wanted measurement of this kind of each record that has one, with its row."""
        found = []
        for row, record in enumerate(self.records):
            own = [m for m in record.measurements if m.samples and not m.detail and wanted(m)]
            if own:
                found.append((row, min(own, key=lambda m: rank_of(m.metric))))
        return found


def is_speedup(m: Measurement) -> bool:
    return m.unit == "x" and m.better == "higher"


def is_time(m: Measurement) -> bool:
    return m.unit == "ms" and m.source == "timed" and m.statistic == "median"
