"""Example format: a line per case with its latency in milliseconds."""

from typing import TextIO

from repshift_cli.analysis.stats import estimate
from repshift_cli.renderers import Document

TAKES = ("run",)  # or "profile", "gate" ...; ("sheets",) for all that are laid out as tables, ("any",) for every one
SUFFIX = ".txt"
EXPORT = True  # a format of `repshift export` too


def render(document: Document, out: TextIO) -> None:
    for record in document.content.records:
        latency = record.measurement("latency")
        figure = estimate(latency) if latency else None
        out.write(f"{record.case.variant}: {figure.value:.3g} ms\n" if figure else f"{record.case.variant}: none\n")
