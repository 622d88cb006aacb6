"""What can be drawn of a document, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from repshift_cli.analysis.labelled import is_evaluation
from repshift_cli.renderers import Document
from repshift_cli.renderers.figures import (
    of_evaluation,
    of_findings,
    of_history,
    of_inspection,
    of_profile,
    of_run,
    of_tuning,
)
from repshift_cli.renderers.figures.shapes import Figure, Heat

DRAWN: Mapping[str, Callable[[Any], Iterable[Figure]]] = {
    "run": lambda run: (of_evaluation if is_evaluation(run) else of_run).figures(run),
    "profile": of_profile.figures,
    "inspection": of_inspection.figures,
    "tuning": of_tuning.figures,
    "history": of_history.figures,
    "gate": lambda outcome: of_findings.figures(outcome.findings),
    "comparison": lambda told: of_findings.figures([f for pair in told for f in pair["findings"]]),
}


def figures_of(document: Document) -> list[Figure]:
    """Everything that there is, in the order of a reader's questions."""
    return list(DRAWN[document.kind](document.content)) if document.kind in DRAWN else []


def first_of(document: Document) -> list[Figure]:
    """What a terminal has room for: of a run speed, what it costs and the raw rounds, of an inspection its maps."""
    if document.kind == "inspection":
        return [figure for figure in figures_of(document) if isinstance(figure, Heat)]
    if document.kind != "run":
        return figures_of(document)
    return list((of_evaluation if is_evaluation(document.content) else of_run).in_short(document.content))
