"""What a document says in a sentence, ahead of everything else."""

from __future__ import annotations

from collections.abc import Iterator

from repshift_cli.records import Run
from repshift_cli.renderers import Document
from repshift_cli.renderers.figures.measured import Measured, is_speedup
from repshift_cli.renderers.figures.of_run import QUALITY
from repshift_cli.renderers.sheets.cells import metric_cell

MOST_SENTENCES = 3


def verdict(document: Document) -> Iterator[str]:
    """The document's own sentence, or of a run what its fastest pruned cases gained and what that cost."""
    if document.sentence:
        yield document.sentence
    elif isinstance(document.content, Run):
        yield from _of_run(Measured(document.content))


def _of_run(measured: Measured) -> Iterator[str]:
    """The fastest case of each of the first variants, with its interval and its quality."""
    best: dict[str, tuple[float, str]] = {}
    for row, m in measured.rows(is_speedup):
        record, mark = measured.records[row], measured.mark(row, m)
        if mark is None or not record.case.layers:
            continue
        figure = measured.figure(record, m)
        quality = [q for q in record.measurements if q.source in QUALITY and q.samples and not q.detail]
        cost = ", ".join(
            f"{q.label} {metric_cell(q, measured.figure(record, q), 1.0).line}{q.unit and f' {q.unit}'}"
            for q in quality
        )
        said = f"{mark.label}: {metric_cell(m, figure, 1.0).line} {m.label}" + (f"; {cost}" if cost else "")
        if mark.value > best.get(record.case.variant, (0.0, ""))[0]:
            best[record.case.variant] = mark.value, said
    ranked = sorted(best.values(), reverse=True)
    yield from (said for _, said in ranked[:MOST_SENTENCES])
