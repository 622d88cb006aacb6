"""An evaluation as a sheet: accuracy, what each variant loses against the unpruned model and against random choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from repshift_cli.analysis.labelled import OPTION
from repshift_cli.analysis.stats import Estimate, estimate
from repshift_cli.records import Measurement, Record, Run
from repshift_cli.records.labels import labels
from repshift_cli.renderers.sheets import notes
from repshift_cli.renderers.sheets.cells import ALWAYS, MISSING, REFERENCE, Cell, Column, Sheet
from repshift_cli.renderers.sheets.metric_columns import metric_columns, ordered_records
from repshift_cli.renderers.sheets.order import rank_of
from repshift_cli.renderers.sheets.row_columns import case_columns, closing_columns
from repshift_cli.renderers.sheets.run import header_of

LEVEL = 0.05
"""Below this, adjusted by Holm, a p-value is a difference."""
FIRST, SECOND, THIRD = 1, 2, 3
"""What a narrow table keeps: the loss, the figure itself, and whether it beats random."""


def sheets(run: Run) -> list[Sheet]:
    """One sheet, for one model and one data set."""
    about: dict[str, Any] = run.options[OPTION]
    records = ordered_records(run)
    if not records:
        return []
    cases = [record.case for record in records]
    shown = metric_names(run)
    columns = [*case_columns(records), *_seeds(records)]
    for rank, name in enumerate(shown):
        columns += _columns(records, name, 10 * rank)
    columns += _front(records)
    known = {name for shown_name in shown for name in (shown_name, *_beside(shown_name))}
    others = [replace(r, measurements=tuple(m for m in r.measurements if m.metric not in known)) for r in records]
    columns += [*metric_columns(others), *closing_columns(records)]
    label = labels(cases).__getitem__
    said = [
        *_about(about, records),
        *notes.outcome_notes(records, label),
        *notes.pending_note(list(run.planned), records, labels(run.planned).__getitem__),
        *notes.warning_notes(records, label),
        *(f"warning: {notes.line(text)}" for text in dict.fromkeys(run.warnings)),
    ]
    header = [f"task {run.options.get('task')}", *header_of(run.machine, cases[:1])]
    return [Sheet(tuple(header), tuple(columns), "", tuple(said), answer=answer(records, shown))]


def answer(records: Sequence[Record], shown: Sequence[str]) -> str:
    """What the first metric says of all pruned variants: how many show no loss, and which of these gains most by it."""
    name = next(iter(shown), "")
    known = [(record, lost) for record in records if (lost := _lost(record, name))]
    if not known:
        return ""
    kept = [record for record, lost in known if lost.spans(0) or lost.value < 0]
    chosen, why = _most_gained(kept) if kept else (min(known, key=lambda k: k[1].value)[0], "of least loss")
    own, random = chosen.measurement(name), _beats(chosen.measurement(f"{name}_vs_random"))
    label = own.label if own else name
    figures = [_line(own), _loss(chosen, name).line, f"vs random {random.line}" if random.text != MISSING else ""]
    row = f"{why}: {labels(r.case for r in records)[chosen.case]}, {label} {', '.join(filter(None, figures))}"
    whole = next((m for r in records if (m := r.measurement(name)) and _lost(r, name) is None), None)
    unpruned = f" (unpruned: {_line(whole)})" if whole and whole.samples else ""
    return f"By {label} no loss is shown in {len(kept)} of {len(known)} pruned variants{unpruned}; {row}."


def _most_gained(kept: Sequence[Record]) -> tuple[Record, str]:
    """The fastest by its speed-up, or where none was timed the one with the fewest tokens, and what it is."""
    timed = [(figure.value, record) for record in kept if (figure := _speedup(record))]
    if timed:
        return max(timed, key=lambda pair: pair[0])[1], "the fastest of them"
    return min(kept, key=lambda record: (record.tokens[-1:], record.case.layers)), "of the fewest tokens among them"


def _speedup(record: Record) -> Estimate | None:
    """The most wanted speed-up that was measured."""
    own = [m for m in record.measurements if m.unit == "x" and m.better == "higher" and m.samples]
    return estimate(min(own, key=lambda m: rank_of(m.metric))) if own and not record.unfit else None


def _line(measurement: Measurement | None) -> str:
    """`82.8% (75.2 to 88.4)`."""
    cell = _figure(measurement)
    unit = measurement.unit if measurement else ""
    return f"{cell.text}{'' if unit == '%' else ' '}{unit} {cell.detail}".strip()


def metric_names(run: Run) -> list[str]:
    """The metrics that it was about, as its file names them."""
    names = run.options[OPTION].get("metrics")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def against_unpruned(name: str) -> str:
    """The metric's difference to the unpruned model's."""
    return f"{name}_vs_unpruned"


def _beside(name: str) -> tuple[str, ...]:
    return (against_unpruned(name), f"{name}_vs_random", f"{name}_p", f"{name}_p_holm")


def _seeds(records: Sequence[Record]) -> list[Column]:
    """The seed, where random dropping has several."""
    if len({record.case.seed for record in records}) < 2:
        return []
    cells = tuple(Cell(str(r.case.seed) if r.case.pruning == "random" else MISSING) for r in records)
    return [Column("seed", ALWAYS, cells, numeric=True)]


def _front(records: Sequence[Record]) -> list[Column]:
    """Which variants no other beats on both accuracy and speed, where both were measured."""
    found = [record.measurement("pareto") for record in records]
    if not any(found):
        return []
    cells = tuple(Cell("yes", "good") if m and m.samples[0] else Cell() for m in found)
    return [Column("front", THIRD, cells, name="pareto")]


def _columns(records: Sequence[Record], name: str, rank: int) -> list[Column]:
    """The figure, the loss in words, and whether it beats random, of one metric."""
    own = [record.measurement(name) for record in records]
    like = next((m for m in own if m and m.samples), None)
    if like is None:
        return []
    unit = f" {like.unit}" if like.unit else ""
    figures, lost = tuple(map(_figure, own)), tuple(_loss(record, name) for record in records)
    found = [Column(f"{like.label}{unit}", rank + SECOND, figures, True, True, name)]
    found.append(Column(f"{like.label} vs unpruned", rank + FIRST, lost, False, True, f"{name}_vs_unpruned"))
    beaten = [_beats(record.measurement(f"{name}_vs_random")) for record in records]
    if any(cell.text != MISSING for cell in beaten):
        found.append(Column(f"{like.label} vs random", rank + THIRD, tuple(beaten), False, True, f"{name}_vs_random"))
    return found


def _figure(measurement: Measurement | None) -> Cell:
    figure = estimate(measurement) if measurement else None
    if measurement is None or figure is None:
        return Cell()
    form = _form(measurement)
    return Cell(form(figure.value), detail=_interval(figure, form))


def _form(measurement: Measurement) -> Callable[[float], str]:
    """Points and percent to a tenth; what is smaller to a thousandth."""
    decimals = 1 if measurement.unit in ("%", "points") else 3
    return lambda value: f"{round(value, decimals) + 0.0:.{decimals}f}"


def _interval(figure: Estimate, form: Callable[[float], str]) -> str:
    return "" if figure.low is None or figure.high is None else f"({form(figure.low)} to {form(figure.high)})"


def _loss(record: Record, name: str) -> Cell:
    """`loses 1.2 points (0.4 to 2.0)` or `gains`; `may lose` where Holm's p leaves it open; `no loss shown`."""
    difference, p = record.measurement(against_unpruned(name)), record.measurement(f"{name}_p_holm")
    lost = _lost(record, name)
    if difference is None or lost is None:
        return Cell(REFERENCE, "quiet") if difference else Cell()
    form = _form(difference)
    if lost.spans(0):
        return Cell("no loss shown", "quiet", _interval(lost, form))
    sure = p is not None and p.samples[0] < LEVEL
    unit = f" {difference.unit}" if difference.unit else ""
    if lost.value > 0:
        verb, tone = ("loses", "bad") if sure else ("may lose", "quiet")
        return Cell(f"{verb} {form(lost.value)}{unit}", tone, _interval(lost, form))
    gained = Estimate(-lost.value, *(None if e is None else -e for e in (lost.high, lost.low)))
    verb, tone = ("gains", "good") if sure else ("may gain", "quiet")
    return Cell(f"{verb} {form(gained.value)}{unit}", tone, _interval(gained, form))


def _lost(record: Record, name: str) -> Estimate | None:
    """By how much the variant is worse than the unpruned model; None where nothing says it."""
    difference = record.measurement(against_unpruned(name))
    figure = estimate(difference) if difference else None
    return _as_loss(difference, figure) if difference and figure else None


def _as_loss(difference: Measurement, figure: Estimate) -> Estimate:
    """The difference turned so that it is above 0 where the variant is worse."""
    if difference.better != "higher":
        return figure
    return Estimate(-figure.value, *(None if end is None else -end for end in (figure.high, figure.low)))


def _beats(difference: Measurement | None) -> Cell:
    """Whether a method is better than dropping as many tokens at random, by the interval of the difference."""
    figure = estimate(difference) if difference and difference.samples else None
    if difference is None or figure is None:
        return Cell()
    lost, form = _as_loss(difference, figure), _form(difference)
    if lost.spans(0):
        return Cell("not shown better", "quiet", _interval(figure, form))
    word, tone = ("beats it by", "good") if lost.value < 0 else ("worse by", "bad")
    ends = sorted(abs(e) for e in (figure.low, figure.high) if e is not None)
    return Cell(f"{word} {form(abs(figure.value))}", tone, _interval(Estimate(0.0, *ends), form) if ends else "")


def _about(about: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """The data, how it was matched and prepared, what the intervals are."""
    count, of = about.get("samples"), about.get("of")
    part = "" if count == of else f" of {of}, each beginning of their order a stratified sample drawn by the seed"
    said = [f"{count} samples{part}, the same for every variant; intervals are 95%"]
    said += map(str, about.get("notes", ()))
    said += [f"images: {about['images']}"] if about.get("images") else []
    if any(record.measurement("pareto") for record in records):
        said.append("front: no other variant is as accurate and as fast, by the figures alone")
    said.append(
        "vs unpruned: paired on the same samples; a loss or a gain is said where its p-value, adjusted by Holm for all "
        f"variants, is below {LEVEL:g} (may: by its interval alone). vs random: the same number of tokens dropped "
        "at random, judged by its interval alone, not adjusted for the number of variants"
    )
    if stopped := {r.stopped_by for r in records if r.stopped_by}:
        said.append(f"stopped by: {', '.join(sorted(stopped))}")
    return said
