"""Markdown for a GitHub page: a table per comparison group, with the header and the notes as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TextIO

from repshift_cli.records import printable_line
from repshift_cli.renderers import Document, plot
from repshift_cli.renderers.figures.of_document import first_of
from repshift_cli.renderers.figures.shapes import Bars
from repshift_cli.renderers.sheets.cells import Sheet

TAKES = ("sheets",)
SUFFIX = ".md"
CHARTED = ("gate",)
"""Kinds of documents that a job summary is made of."""
MOST_BARS, WIDTH = 12, 100

SIGNS = re.compile(r"[\\`*_{}\[\]<>|~!#$&]")
"""What means something in GitHub's Markdown wherever it stands in a line."""
LIST_OR_RULE = re.compile(r"^(\d*)([-+=.)])(?!\w)")
"""What means something at the beginning of a paragraph."""
LINKED = re.compile(r"(?:@|#(?=\d)|GH-(?=\d)|www(?=\.)|:(?=//))(?=\S)", re.IGNORECASE)
"""What GitHub makes a mention, an issue or a link of, without any sign of Markdown."""
NO_LINK = "&#8203;"
"""A space without width: with it in between GitHub links nothing."""


def render(document: Document, out: TextIO) -> None:
    """Write every table with all its columns, the title above the first."""
    title = f"### {escape(document.title)}\n\n{paragraph(document.sentence)}\n\n" if document.title else ""
    out.write(title + "\n".join([*charts(document), *(section(sheet) for sheet in document.sheets)]))


def charts(document: Document) -> Iterator[str]:
    """What a summary shows at a glance: bars of text, for GitHub shows no picture that is drawn in a summary."""
    for figure in first_of(document) if document.kind in CHARTED else ():
        if isinstance(figure, Bars):
            shown = replace(figure, marks=figure.marks[:MOST_BARS])
            lines = [line.plain.rstrip() for line in plot.drawn(shown, plot.Paper(WIDTH, plot.UNICODE))]
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", "".join(lines))), default=0))
            more = f"; the largest {MOST_BARS} of {len(figure.marks)}" if len(figure.marks) > MOST_BARS else ""
            yield "\n".join([f"{escape(figure.caption + more)}", "", f"{fence}text", *lines, fence, ""])


def section(sheet: Sheet) -> str:
    """One sheet as GitHub Markdown."""
    columns = sheet.columns
    rows = [[cell.line for cell in row] for row in zip(*(column.cells for column in columns), strict=True)]
    lines = [
        f"**{escape(' · '.join(sheet.header))}**",
        "",
        _row([column.title for column in columns]),
        _row(["---:" if column.numeric else "---" for column in columns]),
        *map(_row, rows),
        "",
        *(f"- {paragraph(note)}" for note in sheet.notes),
    ]
    lines += ["", "```python", *sheet.code.splitlines(), "```"] * bool(sheet.code)
    lines += ["", f"**{escape(sheet.answer)}**"] * bool(sheet.answer)
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"


def escape(text: str) -> str:
    """Text that GitHub shows as it is, on one line: nothing of it is a link, a mention, an image or HTML."""
    text = LINKED.sub("\\g<0>\x00", printable_line(text))
    return SIGNS.sub(r"\\\g<0>", text).replace("\x00", NO_LINK)


def paragraph(text: str) -> str:
    """The same where a line begins with it."""
    return LIST_OR_RULE.sub(r"\1\\\2", escape(text))
