"""Tables: the main one of a run, whose columns sort and filter, and whatever else is laid out as a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repshift_cli.analysis.labelled import is_evaluation
from repshift_cli.records import Case, Record, names_of, written
from repshift_cli.renderers.figures.measured import Measured
from repshift_cli.renderers.figures.shapes import Table
from repshift_cli.renderers.page.markup import Markup, join, tag
from repshift_cli.renderers.sheets import evaluation
from repshift_cli.renderers.sheets.cells import MISSING, Cell, Column, Sheet
from repshift_cli.renderers.sheets.metric_columns import metric_columns, shown_metrics
from repshift_cli.renderers.sheets.row_columns import case_columns, closing_columns

MOST_CHOICES = 40
"""A column of more different values than this is filtered by words alone."""
FIRST_ROWS = 200
"""So many rows stand open at first, for a browser takes long to lay out thousands; a button shows the others."""
FILTERED = 12
"""A further table of more rows than this can be filtered by words."""
MOST_NOTES = 16
"""Of more notes than this the number alone stands open."""
OF_THE_ROW = ("attention", "pruning", "keep", "layers", "execution", "removal")
"""Fields of a case that `case_columns` shows."""


@dataclass(frozen=True)
class Sorted:
    """A column, what each of its cells is sorted by where that is not its text, and whether it can be chosen from."""

    column: Column
    keys: tuple[float | None, ...] | None = None
    choose: bool = False


def main_table(measured: Measured, source: str) -> Markup:
    """Every case of the run with every figure, each row numbered as figures number their cases."""
    columns = list(_columns(measured.records, measured))
    heads = tag("tr", *(_head(c) for c in columns))
    rows = [_line(columns, i, f"{source}-{i}") for i in range(len(measured.records))]
    table = tag("table", tag("thead", heads), tag("tbody", *rows), class_="main", id=f"cases-{source}")
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="all cases")
    return join(_filters(columns, source, len(rows), "cases", FIRST_ROWS), scroll)


def _columns(records: Sequence[Record], measured: Measured) -> list[Sorted]:
    if is_evaluation(measured.run):
        return [
            _of_evaluation(column, measured) for sheet in evaluation.sheets(measured.run) for column in sheet.columns
        ]
    cases = [record.case for record in records]
    found = [Sorted(_of_field(name, cases), choose=True) for name in _telling(cases)]
    found += [Sorted(column, choose=column.title != "tokens") for column in case_columns(records)]
    for column, (_, row) in zip(metric_columns(records), shown_metrics(records), strict=True):
        figures = [measured.figure(r, m) if m else None for r, m in zip(records, row, strict=True)]
        found.append(Sorted(column, tuple(f.value if f else None for f in figures)))
    return found + [Sorted(column, choose=True) for column in closing_columns(records)]


def _of_evaluation(column: Column, measured: Measured) -> Sorted:
    """A column of an evaluation, sorted by its figures, or one to choose from."""
    if not column.metric:
        return Sorted(column, choose=column.title != "tokens")
    own = [(record, record.measurement(column.name)) for record in measured.records]
    figures = [measured.figure(record, m) if m else None for record, m in own]
    return Sorted(column, tuple(figure.value if figure else None for figure in figures))


def _telling(cases: Sequence[Case]) -> list[str]:
    """The fields that tell the groups of cases apart."""
    options = {name for case in cases for name, _ in case.options}
    names = [name for name in names_of(cases) if name not in (*OF_THE_ROW, *options)]
    if cases and cases[0].model == "operators":
        names += sorted(options)
    return [name for name in names if len({case.values.get(name) for case in cases}) > 1]


def _of_field(name: str, cases: Sequence[Case]) -> Column:
    values = [case.values.get(name) for case in cases]
    numeric = any(isinstance(v, (int, float)) for v in values)
    cells = tuple(Cell(MISSING if v is None else written(v)) for v in values)
    return Column(name.replace("_", " "), 0, cells, numeric)


def _head(sorted_: Sorted) -> Markup:
    column = sorted_.column
    kind = "number" if column.numeric or sorted_.keys else "text"
    button = tag("button", column.title, type="button", data_kind=kind)
    return tag("th", button, scope="col", class_="n" if column.numeric else None, aria_sort="none")


def _line(columns: Sequence[Sorted], row: int, name: str) -> Markup:
    first, *rest = columns
    cells = [tag("th", _words(first.column.cells[row]), scope="row")]
    cells += [_cell(c.column, row, None if c.keys is None else c.keys[row]) for c in rest]
    return tag("tr", *cells, data_case=name, hidden=row >= FIRST_ROWS)


def _cell(column: Column, row: int, key: float | None = None) -> Markup:
    cell = column.cells[row]
    classes = " ".join(filter(None, ("n" if column.numeric else "", cell.tone)))
    return tag("td", _words(cell), class_=classes or None, data_sort=None if key is None else f"{key:.9g}")


def _words(cell: Cell) -> Markup:
    return join(cell.text, tag("small", f" {cell.detail}") if cell.detail else None)


def _filters(columns: Sequence[Sorted], source: str, rows: int, what: str, first: int) -> Markup:
    """A field for words, and a choice for each column with few values; what they leave is counted.

    The table has so many rows, called `what`, of which the first so many stand open.
    """
    words = tag("input", type="search", placeholder="flash+repshift 0.6", aria_controls=f"cases-{source}")
    fields = [tag("label", "filter by words ", words)]
    for i, c in enumerate(columns):
        values = sorted({cell.text for cell in c.column.cells}, key=_natural)
        if c.choose and 1 < len(values) <= MOST_CHOICES:
            every = tag("option", "all", value="")
            choices = tag("select", every, *(tag("option", v, value=v) for v in values), data_column=i)
            fields.append(tag("label", f"{c.column.title} ", choices))
    count = tag("output", f"{rows} of {rows} {what}", aria_live="polite")
    more = tag("button", f"show all {rows} rows", type="button", data_more=True) if rows > first else None
    given = {"data_table": f"cases-{source}", "data_rows": str(first), "data_what": what}
    return tag("form", *fields, count, more, class_="filters", **given)


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


# --- other tables -----------------------------------------------------------------------------------------------------


def of_sheet(sheet: Sheet, name: str) -> Markup:
    """A sheet with its header and its notes; its columns sort too. `name` is unique in the page."""
    heading = tag("p", " · ".join(sheet.header), class_="header")
    if not sheet.columns or not sheet.columns[0].cells:
        return join(heading, notes(sheet.notes))
    head = tag("tr", *(_head(Sorted(c)) for c in sheet.columns))
    rows = [
        tag("tr", tag("th", _words(sheet.columns[0].cells[i]), scope="row"), *(_cell(c, i) for c in sheet.columns[1:]))
        for i in range(len(sheet.columns[0].cells))
    ]
    table = tag("table", tag("thead", head), tag("tbody", *rows), id=f"cases-{name}")
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=sheet.header[0])
    filters = _filters((), name, len(rows), "rows", len(rows)) if len(rows) > FILTERED else None
    return join(heading, filters, scroll, notes(sheet.notes))


def notes(texts: Sequence[str]) -> Markup | None:
    """Notes as a list, each once, the warnings last; very many are folded."""
    found = sorted(dict.fromkeys(texts), key=lambda text: _tone(text) is not None)
    if not found:
        return None
    listed = tag("ul", *(tag("li", text, class_=_tone(text)) for text in found), class_="notes")
    warnings = sum(_tone(text) is not None for text in found)
    said = f"{len(found)} notes, {warnings} of them warnings"
    return listed if len(found) <= MOST_NOTES else tag("details", tag("summary", said), listed)


def _tone(text: str) -> str | None:
    return "warning" if text.startswith("warning") else None


def plain(table: Table) -> Markup:
    """The table behind a figure."""
    head = tag("tr", *(tag("th", name, scope="col") for name in table.heads))
    rows = (
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in table.rows
    )
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll", tabindex="0")
