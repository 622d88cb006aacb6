"""Where pruning pays: the speed-ups of a sweep over sizes and batches, laid out by workload and keep ratio."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from repshift_cli.analysis.stats import estimate
from repshift_cli.records import METHODS_WITHOUT_PRUNING, OPERATORS, Case, Measurement, Record, Run
from repshift_cli.renderers.sheets.cells import ALWAYS, Cell, Column, Sheet, metric_cell
from repshift_cli.renderers.sheets.metric_columns import ordered_records
from repshift_cli.renderers.sheets.order import rank_of

Workload = tuple[int, int, int, int, int]
"""Tokens that enter, frames, image size, batch, length of a sequence."""
Place = tuple[Workload, float]
"""A workload and a keep ratio."""


def maps(run: Run) -> list[Sheet]:
    """One sheet for each pruned variant and schedule that was measured at two workloads or more."""
    found = {case: {place: m for place, (_, m) in cells.items()} for case, cells in speedups(run).items()}
    return [
        _sheet(case, cells, found.get(dataclasses.replace(case, execution="eager"), {}))
        for case, cells in found.items()
        if len({workload for workload, _ in cells}) > 1
    ]


def speedups(run: Run) -> dict[Case, dict[Place, tuple[Record, Measurement]]]:
    """For each pruned variant and schedule with one keep, the most wanted speed-up at every place, with its record."""
    found: dict[Case, dict[Place, tuple[Record, Measurement]]] = {}
    for record in ordered_records(run):
        ratio = _ratio(record)
        keep = record.case.keep
        if ratio is not None and not isinstance(keep, tuple):
            found.setdefault(_alike(record.case), {})[_workload(record), keep] = record, ratio
    return found


def _ratio(record: Record) -> Measurement | None:
    """The record's most wanted speed-up, where it prunes and was measured."""
    if record.status != "ok" or not record.tokens or record.case.model == OPERATORS:
        return None
    if record.unfit or record.case.pruning == METHODS_WITHOUT_PRUNING:
        return None
    ratios = [m for m in record.measurements if m.unit == "x" and m.better == "higher" and m.samples]
    return min(ratios, key=lambda m: rank_of(m.metric), default=None)


def _alike(case: Case) -> Case:
    """The case without what a map's rows and columns vary."""
    return dataclasses.replace(case, batch=0, image_size=None, frames=None, length=None, keep=1.0)


def _workload(record: Record) -> Workload:
    case = record.case
    return (record.tokens[0], case.frames or 0, case.image_size or 0, case.batch, case.length or 0)


def _sheet(case: Case, cells: dict[Place, Measurement], eager: dict[Place, Measurement]) -> Sheet:
    rows = sorted({workload for workload, _ in cells}, key=lambda w: (w[3], w[0]))
    keeps = sorted({keep for _, keep in cells})
    label = next(iter(cells.values())).label
    layers = ",".join(map(str, case.layers))
    header = (f"where pruning pays: {case.variant} {label}", case.model, case.dtype, f"layers {layers}", case.execution)
    columns = (
        Column("tokens", ALWAYS, tuple(Cell(str(w[0])) for w in rows), numeric=True),
        Column("input", ALWAYS, tuple(Cell(input_words(w)) for w in rows)),
        Column("batch", ALWAYS, tuple(Cell(str(w[3])) for w in rows), numeric=True),
        *(_column(keep, [cells.get((w, keep)) for w in rows]) for keep in keeps),
    )
    return Sheet(header, columns, "", (*_thresholds(cells, rows, keeps), *_hidden(case, cells, eager)))


def input_words(workload: Workload) -> str:
    """`8×224 px`, `160 tokens`."""
    _, frames, size, _, length = workload
    picture = (f"{frames}×" if frames else "") + (f"{size} px" if size else "")
    return picture or (f"{length} tokens" if length else "own")


def _column(keep: float, found: Sequence[Measurement | None]) -> Column:
    cells = tuple(metric_cell(m, estimate(m) if m else None, 1.0) for m in found)
    return Column(f"keep {keep:g}", ALWAYS, cells, numeric=True, metric=True)


def _pays(ratio: Measurement | None) -> bool:
    """Whether the whole interval lies above 1."""
    figure = estimate(ratio) if ratio else None
    return figure is not None and figure.low is not None and figure.low > 1


def _is_known(ratio: Measurement) -> bool:
    """Whether there were rounds enough for an interval."""
    figure = estimate(ratio)
    return figure is not None and figure.low is not None


def _thresholds(cells: dict[Place, Measurement], rows: Sequence[Workload], keeps: Sequence[float]) -> Iterator[str]:
    """From how many tokens on each keep ratio pays, for each batch: at all larger sizes measured too."""
    for keep in keeps:
        words = []
        for batch in sorted({w[3] for w in rows}):
            sizes = [w for w in rows if w[3] == batch and (w, keep) in cells and _is_known(cells[w, keep])]
            words.append(f"{_from(sizes, [_pays(cells[w, keep]) for w in sizes])} at batch {batch}")
        yield f"keep {keep:g} pays: " + ", ".join(words)


def _from(sizes: Sequence[Workload], paying: Sequence[bool]) -> str:
    if not sizes:
        return "not known"
    first = max((i + 1 for i, yes in enumerate(paying) if not yes), default=0)
    return f"from {sizes[first][0]} tokens on" if first < len(sizes) else "nowhere here"


def _hidden(case: Case, cells: dict[Place, Measurement], eager: dict[Place, Measurement]) -> Iterator[str]:
    """Where the gain shows in this execution alone: eager, the host's dispatch hides it."""
    if case.execution == "eager":
        return
    only = [place for place in cells if place in eager and _pays(cells[place]) and not _pays(eager[place])]
    if only:
        named = "; ".join(f"{w[0]} tokens, batch {w[3]}, keep {keep:g}" for w, keep in only)
        yield f"pays here and not in eager, where the host's dispatch hides the gain: {named}"
