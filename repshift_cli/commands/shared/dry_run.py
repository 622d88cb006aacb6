"""The list of cases that `bench --dry-run` prints."""

from __future__ import annotations

import sys
from collections import Counter

from rich.table import Table

from repshift_cli.commands.shared.output import Outputs
from repshift_cli.records import Case, printable_line
from repshift_cli.records.json_codec import to_plain
from repshift_cli.records.labels import words
from repshift_cli.renderers import Document
from repshift_cli.renderers.table import console_for
from repshift_cli.sweep.plan import Planned


def list_cases(planned: tuple[Planned, ...], outputs: Outputs | None = None) -> None:
    """What `--dry-run` prints: the list, and as JSON where that was asked for."""
    if outputs is not None:
        outputs.write(document_of_cases(planned))
    if outputs is None or not outputs.own_stdout:
        show_cases(planned)


def document_of_cases(planned: tuple[Planned, ...]) -> Document:
    """The same list for a program: every case with its tokens, and why it is refused where it is."""
    cases = [to_plain(p.case) | {"tokens": list(p.tokens), "refused": p.refused} for p in planned]
    return Document("plan", {"cases": cases})


def show_cases(planned: tuple[Planned, ...]) -> None:
    """Every case with its tokens, the reasons of those that cannot be measured below, each once, then the count."""
    console = console_for(sys.stdout)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("model", "variant", "keep", "layers", "tokens", "setting", ""):
        table.add_column(heading, overflow="fold")
    for p in planned:
        cut = (p.case.rate, ",".join(map(str, p.case.layers))) if p.case.layers else ("", "")
        tokens = " → ".join(map(str, p.tokens))
        table.add_row(*map(printable_line, (p.case.model, p.case.variant, *cut, tokens, _setting(p.case), _state(p))))
    console.print(table)
    refused = Counter((_state(p), printable_line(p.refused)) for p in planned if p.refused is not None)
    for (state, reason), count in refused.items():
        console.print(f"· {count} {state}: {reason}", markup=False, highlight=False)
    failed = sum(p.failed for p in planned)
    skipped = refused.total() - failed
    count = len(planned) - skipped - failed
    more = f", {failed} failed" if failed else ""
    console.print(f"{count} {'case' if count == 1 else 'cases'} to measure, {skipped} refused{more}")


def _state(planned: Planned) -> str:
    """One word for a case that cannot be measured."""
    return "" if planned.refused is None else "failed" if planned.failed else "refused"


def _setting(case: Case) -> str:
    """What else tells cases apart, in a few words."""
    own = [name for name, _ in case.options]
    names = ["frames", "image_size", "length", "batch", "dtype", *own, "removal", "protect"]
    return " ".join(words(case, [*names, "execution"] if case.execution != "eager" else names))
