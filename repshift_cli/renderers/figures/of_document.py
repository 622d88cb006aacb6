"""What can be drawn of a document, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from repshift_cli.renderers import Document
from repshift_cli.renderers.figures import of_findings, of_history, of_profile, of_run
from repshift_cli.renderers.figures.shapes import Figure

DRAWN: Mapping[str, Callable[[Any], Iterable[Figure]]] = {
    "run": of_run.figures,
    "profile": of_profile.figures,
    "history": of_history.figures,
    "gate": lambda outcome: of_findings.figures(outcome.findings),
    "comparison": lambda told: of_findings.figures([f for pair in told for f in pair["findings"]]),
}


def figures_of(document: Document) -> list[Figure]:
    """Everything that there is, in the order of a reader's questions."""
    return list(DRAWN[document.kind](document.content)) if document.kind in DRAWN else []


def first_of(document: Document) -> list[Figure]:
    """What a terminal has room for: of a run speed, what it costs and the raw rounds; of others everything."""
    return list(of_run.in_short(document.content)) if document.kind == "run" else figures_of(document)
