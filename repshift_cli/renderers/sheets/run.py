"""What the table, Markdown and CSV share: which columns there are, what a cell says, the header and the notes.

Pure functions from a run to text; no metric is known by name, a measurement says itself how it wants to be shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import methodcaller
from typing import Any

from repshift_cli.analysis.stats import Estimate, estimate
from repshift_cli.records import (
    METHODS_WITHOUT_PRUNING,
    OPERATORS,
    WITHOUT_ATTENTION,
    Case,
    Machine,
    Measurement,
    Record,
    Run,
    option_order,
    written,
)
from repshift_cli.records.labels import labels

TABLE_RANKS = 100
"""Metrics of this rank and above are in JSON and CSV only, never a column of a table."""
HEADLINE_RANKS = 20
"""Medians ranked before this show their interval in the cell; the rest show the figure alone (CSV has the interval)."""
ALWAYS = 0
MISSING = "–"
REFERENCE = "ref"
"""Shown where a variant would be compared with itself (the measurement's reason starts with `reference`)."""
TOO_FEW = "too few rounds"
"""A ratio without an interval."""
BUSY = "busy"
"""A ratio of times that allow no verdict (`Record.unfit`)."""
NONE_SHOWN = "none shown"
"""A speed-up whose interval holds 1."""
KERNEL = "kernel"
NAMES_IN_A_NOTE = 4

SCALES = {
    "B": (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0)),
    "MAC": (("G", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0)),
}
SILENT_UNITS = ("", "x", "1/s")
"""Units that the heading leaves out: the cell (1.32x) or the label (img/s) says them."""


@dataclass(frozen=True)
class Cell:
    """What one cell says, the interval being the `detail`; `tone` (good, bad, quiet, failed, skipped) is for colour
    and only repeats what the text says."""

    text: str = MISSING
    tone: str = ""
    detail: str = ""

    @property
    def line(self) -> str:
        """The whole cell on one line."""
        return f"{self.text} {self.detail}".strip()


@dataclass(frozen=True)
class Column:
    """One column: `rank` orders what is shown where space is short, `ALWAYS` first."""

    title: str
    rank: int
    cells: tuple[Cell, ...]
    numeric: bool = False
    metric: bool = False

    @property
    def constant(self) -> str | None:
        """The one value of all cells that have one, where that is so."""
        texts = {cell.line for cell in self.cells} - {MISSING}
        return texts.pop() if len(texts) == 1 else None


@dataclass(frozen=True)
class Sheet:
    """One comparison group ready to print; `kernels` is a note for where the kernel's column has no room."""

    header: tuple[str, ...]
    columns: tuple[Column, ...]
    kernels: str
    notes: tuple[str, ...]


def sheets(run: Run) -> list[Sheet]:
    """One sheet per comparison group, in the order planned; the run's own warnings stand under the last."""
    cases = list(dict.fromkeys([*run.planned, *(r.case for r in run.records)]))
    groups = list(dict.fromkeys(case.group for case in cases))
    result = []
    for group in groups:
        own = [case for case in cases if case.group == group]
        general = run.warnings if group == groups[-1] else ()
        result.append(_sheet(run, own, general))
    return result


def ordered_records(run: Run) -> list[Record]:
    """The records in the order in which their cases were planned."""
    places = {case: i for i, case in enumerate(run.planned)}
    return sorted(run.records, key=lambda record: places.get(record.case, len(places)))


def _sheet(run: Run, cases: Sequence[Case], warnings: Sequence[str]) -> Sheet:
    group = cases[0].group
    records = [record for record in ordered_records(run) if record.case.group == group]
    columns = (*_case_columns(records), *_metric_columns(records), *_closing_columns(records))
    label = labels(cases).__getitem__
    notes = [
        *_settings_note(cases),
        *_paths_note(records),
        *_interval_note(records, columns),
        *_fidelity_note(records),
        *_outcome_notes(records, label),
        *_pending_note(cases, records, label),
        *_unmeasured_notes(records, label),
        *_warning_notes(records, label),
        *(f"warning: {_line(text)}" for text in dict.fromkeys(warnings)),
    ]
    return Sheet(header_of(run.machine, cases), columns, _kernels_note(records), tuple(notes))


# --- above the table --------------------------------------------------------------------------------------------------


def header_of(machine: Machine, cases: Sequence[Case]) -> tuple[str, ...]:
    """What the cases of one group share: model, input, setting, computer."""
    case = cases[0]
    return (
        *(_operator_words(case) if case.model == OPERATORS else (case.model, f"weights {case.weights}", _input(case))),
        f"batch {case.batch}",
        case.dtype,
        *(["CUDA graph"] if {c.execution for c in cases} == {"graph"} else []),
        *([f"protect {case.protect}"] if case.protect else []),
        *([f"seed {case.seed}"] if case.seed else []),
        *_computer(machine, case.device),
        *[f"{name} {machine.packages[name]}" for name in ("torch",) if name in machine.packages],
    )


def _operator_words(case: Case) -> list[str]:
    """What the operators of one group share: the pass, the mask, the sizes, the input."""
    heads, kv_heads = case.option("heads"), case.option("kv_heads")
    passed = "backward pass" if case.option("backward") else "attention operators"
    masked = "one query" if case.option("decode") else "causal" if case.option("causal") else "no mask"
    grouped = [f"{kv_heads} KV heads"] if kv_heads else []
    taken = case.option("captured")
    source = f"input of {taken}" if taken else f"input {case.input}"
    sizes = [f"{case.length} tokens", f"{heads} heads of {case.option('head_dim')}", *grouped]
    return [passed, masked, *sizes, f"window {case.option('window')}", source]


def _input(case: Case) -> str:
    size = [f"{case.image_size} px"] if case.image_size else []
    frames = [f"{case.frames} frames"] if case.frames else []
    length = [f"{case.length} tokens"] if case.length else []
    return ", ".join([f"input {case.input}", *size, *frames, *length])


def _computer(machine: Machine, device: str) -> list[str]:
    if device.startswith("cpu"):
        threads = f", {machine.threads} threads" if machine.threads else ""
        return [f"CPU ({machine.cpu or 'name not read'}{threads})"]
    peak = [f"peak bandwidth {machine.peak_bandwidth}"] if machine.peak_bandwidth else []
    return [machine.device_name, f"driver {machine.driver}" if machine.driver else "driver not read", *peak]


# --- columns that name the row ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """What a pruned row is told apart by: a field of its case, or an option of its method."""

    name: str
    rank: int
    value: Callable[[Case], Any]
    text: Callable[[Any], str] = written

    def told(self, case: Case) -> str:
        """The value in words; a dash where the case has none."""
        value = self.value(case)
        return MISSING if value is None else self.text(value)


def fields_of(cases: Sequence[Case]) -> tuple[Field, ...]:
    """The fields of these cases, the options of their methods among them."""
    if cases and cases[0].model == OPERATORS:
        return (Field("keep", 13, lambda c: c.keep, lambda keep: f"{keep:g}"),)
    options = option_order(name for case in cases for name, _ in case.options)
    return (
        Field("keep", 13, lambda c: c.keep, lambda keep: f"{keep:g}"),
        Field("layers", 14, lambda c: c.layers, lambda layers: ",".join(map(str, layers))),
        *(Field(name, ALWAYS, methodcaller("option", name)) for name in options),
        Field("removal", ALWAYS, lambda c: c.removal),
    )


def _pruned(case: Case) -> bool:
    return case.pruning != METHODS_WITHOUT_PRUNING


def _varies(field: Field, cases: Sequence[Case]) -> bool:
    return len({field.value(case) for case in cases if _pruned(case)} - {None}) > 1


def _execution_varies(cases: Sequence[Case]) -> bool:
    return len({case.execution for case in cases}) > 1


def _case_columns(records: Sequence[Record]) -> list[Column]:
    cases = [record.case for record in records]
    columns = [Column("variant", ALWAYS, tuple(Cell(case.variant) for case in cases))]
    for field in fields_of(cases):
        varies = _varies(field, cases)
        if varies or (field.rank and any(map(_pruned, cases))):
            cells = tuple(Cell(field.told(case) if _pruned(case) else MISSING) for case in cases)
            numeric = any(isinstance(field.value(case), (int, float)) for case in cases)
            columns.append(Column(field.name, ALWAYS if varies else field.rank, cells, numeric))
    if any(record.tokens for record in records):
        tokens = tuple(Cell(" → ".join(map(str, record.tokens)) or MISSING) for record in records)
        columns.append(Column("tokens", 18, tokens))
    if _execution_varies(cases):
        columns.append(Column("execution", ALWAYS, tuple(Cell(case.execution) for case in cases)))
    return columns


# --- columns of metrics -----------------------------------------------------------------------------------------------


def metrics_of(records: Sequence[Record]) -> list[Measurement]:
    """One example of each metric, source and unit in the records, most wanted first; a source has its own column."""
    found: dict[tuple[str, str, str], Measurement] = {}
    for record in records:
        for measurement in record.measurements:
            found.setdefault(_identity(measurement), measurement)
    return sorted(found.values(), key=lambda m: m.rank)


def find(record: Record, like: Measurement) -> Measurement | None:
    """The record's measurement of the same metric, source and unit, or None."""
    return next((m for m in record.measurements if _identity(m) == _identity(like)), None)


def _identity(m: Measurement) -> tuple[str, str, str]:
    return (m.metric, m.source, m.unit)


def _metric_columns(records: Sequence[Record]) -> list[Column]:
    shown = []
    for like in metrics_of(records):
        row = [find(record, like) for record in records]
        if like.rank < TABLE_RANKS and any(m and m.samples for m in row):
            shown.append((like, row))
    labels = [like.label for like, _ in shown]
    unfit = [record.unfit is not None for record in records]
    return [_metric_column(like, row, labels.count(like.label) > 1, unfit) for like, row in shown]


def _metric_column(
    like: Measurement, row: Sequence[Measurement | None], name_source: bool, unfit: Sequence[bool]
) -> Column:
    estimates = [estimate(m) if m else None for m in row]
    unit, factor = scale(like.unit, [e.value for e in estimates if e])
    cells = tuple(
        Cell(BUSY, "skipped") if e and busy and like.unit == "x" else metric_cell(m, e, factor)
        for m, e, busy in zip(row, estimates, unfit, strict=True)
    )
    words = [like.label, f"({like.source})" if name_source else "", "" if unit in SILENT_UNITS else unit]
    return Column(" ".join(filter(None, words)), like.rank, cells, numeric=True, metric=True)


def scale(unit: str, values: Sequence[float]) -> tuple[str, float]:
    """The unit that suits the largest of the values, and what to divide by: bytes as MiB, MACs as G."""
    if unit not in SCALES:
        return unit, 1.0
    largest = max(map(abs, values))
    return next((scale for scale in SCALES[unit] if largest >= scale[1]), SCALES[unit][-1])


def metric_cell(measurement: Measurement | None, figure: Estimate | None, factor: float) -> Cell:
    """A measurement in its column, its figure divided by `factor`."""
    if measurement is None:
        return Cell()
    if figure is None:
        few = Cell(TOO_FEW, "quiet") if measurement.samples else Cell()
        return Cell(REFERENCE, "quiet") if _is_reference(measurement) else few
    if measurement.unit == "x":
        return _ratio_cell(figure, measurement.better)
    figure = Estimate(figure.value / factor, *(b if b is None else b / factor for b in (figure.low, figure.high)))
    if measurement.statistic == "value" or measurement.rank >= HEADLINE_RANKS:
        figure = Estimate(figure.value)
    return _figure_cell(figure, least=4 if measurement.statistic == "value" else 3)


def _is_reference(measurement: Measurement) -> bool:
    return (measurement.reason or "").startswith("reference")


def _ratio_cell(figure: Estimate, better: str) -> Cell:
    """A ratio with its interval; where that holds 1, a column in which more is better says that none was shown."""
    decimals = max(_decimals(figure, least=3, floor=1.0), _decimals(Estimate(figure.value), least=2))
    if figure.low is None or figure.high is None:
        return Cell(TOO_FEW, "quiet")
    while not figure.spans(1) and 1 in (round(figure.low, decimals), round(figure.high, decimals)):
        decimals += 1  # an interval that ends beside 1 must not read as if it held it
    value = f"{figure.value:.{decimals}f}x"
    interval = f"({figure.low:.{decimals}f}–{figure.high:.{decimals}f})"
    if better != "higher":
        return Cell(value, "", interval)
    if figure.spans(1):
        return Cell(NONE_SHOWN, "quiet", interval)
    return Cell(value, "good" if figure.low > 1 else "bad", interval)


def _figure_cell(figure: Estimate, least: int) -> Cell:
    form = ".2e" if 0 < abs(figure.value) < 1e-3 else f".{_decimals(figure, least)}f"
    if figure.low is None or figure.high is None:
        return Cell(f"{figure.value:{form}}")
    return Cell(f"{figure.value:{form}}", detail=f"({figure.low:{form}}–{figure.high:{form}})")


def _decimals(figure: Estimate, least: int, floor: float = 0.0) -> int:
    """Decimals for `least` significant digits, and one more where the interval would vanish in the last."""
    size = max(abs(figure.value), floor)
    decimals = max(0, least - 1 - math.floor(math.log10(size))) if size else 0
    if figure.low is not None and figure.high is not None and figure.high - figure.low < 2 * 10**-decimals:
        decimals += 1
    return decimals


# --- columns at the end -----------------------------------------------------------------------------------------------


def _closing_columns(records: Sequence[Record]) -> list[Column]:
    columns = []
    if any(record.kernel for record in records):
        kernels = tuple(Cell(short_kernel(record.kernel) or MISSING) for record in records)
        columns.append(Column(KERNEL, TABLE_RANKS - 1, kernels))
    if any(record.status != "ok" for record in records):
        cells = tuple(Cell(record.status, record.status) for record in records)
        columns.append(Column("status", ALWAYS, cells))
    return columns


def short_kernel(name: str | None) -> str:
    """A kernel's name without the prefix that all of torch's attention operators share; JSON and CSV have it whole."""
    return (name or "").removeprefix("aten::").removeprefix("_scaled_dot_product_")


# --- below the table --------------------------------------------------------------------------------------------------


def _settings_note(cases: Sequence[Case]) -> list[str]:
    """What the methods' options are where they do not vary, once for all methods that take the same ones."""
    alike: dict[tuple[str, ...], list[Case]] = {}
    for method in dict.fromkeys(case.pruning for case in cases if case.options):
        own = [case for case in cases if case.pruning == method]
        alike.setdefault(tuple(f.name for f in fields_of(own)), []).extend(own)
    notes = []
    for own in alike.values():
        fields = [f for f in fields_of(own) if f.rank == ALWAYS and not _varies(f, cases)]
        values = [(f.name, next((f.told(c) for c in own if f.value(c) is not None), None)) for f in fields]
        words = [f"{name} {value}" for name, value in values if value is not None]
        methods = ", ".join(dict.fromkeys(case.pruning for case in own))
        notes += [f"{methods}: {', '.join(words)}"] * bool(words)
    return notes


def _paths_note(records: Sequence[Record]) -> list[str]:
    """How pruning's kernels ran, where there is a choice: on CUDA."""
    ran = sorted({path for r in records for path in r.paths if r.case.device.startswith("cuda")})
    return ["pruning's kernels: " + ", ".join(path.replace(":", " by ") for path in ran)] if ran else []


def _interval_note(records: Sequence[Record], columns: Sequence[Column]) -> list[str]:
    done = [record for record in records if record.rounds]
    if not done:
        return []
    low, high = min(r.rounds for r in done), max(r.rounds for r in done)
    rounds = f"{low} rounds" if low == high else f"{low} to {high} rounds"
    stops = " or ".join(sorted({r.stopped_by for r in done if r.stopped_by}))
    said = f"in brackets: the 95% interval over {rounds}" + (f" (stopped by {stops})" if stops else "")
    words = {
        NONE_SHOWN: "the interval holds 1, so no speed-up was shown",
        BUSY: "no ratio is judged, see the warning",
        REFERENCE: "what others are compared with",
    }
    texts = {cell.text for column in columns for cell in column.cells}
    notes = ["; ".join([said, *(f"{word}: {meaning}" for word, meaning in words.items() if word in texts)])]
    if len({(r.case.keep, r.case.layers) for r in done if _pruned(r.case)}) > 1:
        notes.append("schedules were timed one after another, each with its references: compare rows by their ratios")
    return notes


def _fidelity_note(records: Sequence[Record]) -> list[str]:
    """On how many inputs the outputs were compared."""
    found = [m for r in records if (m := r.measurement("fidelity_inputs")) and m.samples]
    counts = sorted({int(m.samples[0]) for m in found})
    if not counts:
        return []
    said = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    top1 = any((m := r.measurement("fidelity_top1")) and m.samples for r in records)
    interval = "; same top-1 with Wilson's 95% interval" if top1 else ""
    return [f"outputs compared with the untouched model's on {said} input{'s' * (counts[-1] > 1)}{interval}"]


def _outcome_notes(records: Sequence[Record], label: Callable[[Case], str]) -> list[str]:
    bad = [record for record in records if record.status != "ok"]
    reasons = dict.fromkeys((record.status, _line(record.reason or "no reason recorded")) for record in bad)
    notes = []
    for status, reason in reasons:
        own = [r.case for r in bad if (r.status, _line(r.reason or "no reason recorded")) == (status, reason)]
        notes.append(f"{status}: {_names(own, label)}: {reason}")
    return notes


def _pending_note(cases: Sequence[Case], records: Sequence[Record], label: Callable[[Case], str]) -> list[str]:
    done = {record.case for record in records}
    pending = [case for case in cases if case not in done]
    return [f"not run yet: {_names(pending, label)}"] if pending else []


def _unmeasured_notes(records: Sequence[Record], label: Callable[[Case], str]) -> list[str]:
    """What rows that ran lack, and why: once per metric and reason, the rows named only where it is not all of them."""
    ran = [record for record in records if record.status == "ok"]
    lacking: dict[tuple[str, str], list[Case]] = {}
    for record in ran:
        for m in record.measurements:
            if not m.samples and m.rank < TABLE_RANKS and not _is_reference(m):
                lacking.setdefault((m.label, _line(m.reason or "")), []).append(record.case)
    notes: dict[tuple[str, str], list[str]] = {}
    for (name, reason), cases in lacking.items():
        who = "" if len(cases) == len(ran) else f" ({_names(cases, label)})"
        notes.setdefault((who, reason), []).append(name)
    return [f"not measured: {', '.join(names)}{who}: {reason}" for (who, reason), names in notes.items()]


def _warning_notes(records: Sequence[Record], label: Callable[[Case], str]) -> list[str]:
    concerned: dict[str, list[Case]] = {}
    for record in records:
        for text in dict.fromkeys(record.warnings):
            concerned.setdefault(_line(text), []).append(record.case)
    ran = sum(record.status != "skipped" for record in records)
    return [
        f"warning: {text}" if len(cases) >= ran else f"warning ({_names(cases, label)}): {text}"
        for text, cases in concerned.items()
    ]


def _kernels_note(records: Sequence[Record]) -> str:
    attending = [r for r in records if r.case.attention != WITHOUT_ATTENTION]
    pairs = [(short_kernel(r.kernel), r.case.variant) for r in attending if r.kernel]
    kernels = dict.fromkeys(kernel for kernel, _ in pairs)
    said = [f"{k} ({', '.join(dict.fromkeys(v for own, v in pairs if own == k))})" for k in kernels]
    return "attention ran on " + ", ".join(said) if said else ""


def _names(cases: Sequence[Case], label: Callable[[Case], str]) -> str:
    """The rows by name, or the variants with their number of rows where that would be long."""
    if len(cases) <= NAMES_IN_A_NOTE:
        return ", ".join(map(label, cases))
    variants = groupby(sorted(case.variant for case in cases))
    counts = [(variant, len(list(rows))) for variant, rows in variants]
    return ", ".join(f"{variant} ({n} rows)" if n > 1 else variant for variant, n in counts)


def _line(text: str) -> str:
    return " ".join(text.split())


# --- for other tools --------------------------------------------------------------------------------------------------


def exported(run: Run) -> list[tuple[Case, Measurement, Estimate]]:
    """Every figure that a table may show, case by case in the order planned: what dashboards get."""
    found = []
    for record in ordered_records(run):
        for m in record.measurements:
            figure = None if m.rank >= TABLE_RANKS or (record.unfit and m.unit == "x") else estimate(m)
            if figure is not None:
                found.append((record.case, m, figure))
    return found
