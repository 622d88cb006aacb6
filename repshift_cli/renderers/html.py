"""One self-contained page: charts, tables that sort and filter, and the data."""

from __future__ import annotations

from typing import TextIO

from repshift_cli.renderers import Document
from repshift_cli.renderers.page.page import page

TAKES = ("run", "profile", "inspection", "tuning", "gate", "history", "comparison", "report")
SUFFIX = ".html"


def render(document: Document, out: TextIO) -> None:
    """Write the page; the content of a `report` is the documents that it shows one below the other."""
    documents = document.content if document.kind == "report" else [document]
    out.write(page(documents, document.title or f"repshift {document.kind}"))
