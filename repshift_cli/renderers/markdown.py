"""Markdown for a GitHub page: a table per comparison group, with the header and the notes as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from repshift_cli.renderers import Document
from repshift_cli.renderers.sheets.cells import Sheet

TAKES = ("sheets",)
SUFFIX = ".md"


def render(document: Document, out: TextIO) -> None:
    """Write every table with all its columns, the title above the first."""
    title = f"### {document.title}\n\n{escape(document.sentence)}\n\n" if document.title else ""
    out.write(title + "\n".join(section(sheet) for sheet in document.sheets))


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
        *(f"- {escape(note)}" for note in sheet.notes),
    ]
    lines += ["", "```python", *sheet.code.splitlines(), "```"] * bool(sheet.code)
    lines += ["", f"**{escape(sheet.answer)}**"] * bool(sheet.answer)
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape, cells)) + " |"


def escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    for sign in "\\|*_<`":
        text = text.replace(sign, "\\" + sign)
    return text
