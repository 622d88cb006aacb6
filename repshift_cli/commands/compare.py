"""`repshift compare`: stored runs side by side, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.records import Run, UsageError, store
from repshift_cli.renderers import Document

if TYPE_CHECKING:
    from repshift_cli.analysis.comparison import Finding, Lonely
    from repshift_cli.renderers.sheets.cells import Sheet

BETWEEN_PROCESSES = (
    "change: head / base with its 95% interval over each run's rounds; a run of bench is one process, and processes "
    "differ by more than rounds do: repshift gate judges"
)


@output_options("comparison")
def compare(
    base: Annotated[Path, typer.Argument(help="The run file that others are compared with.", show_default=False)],
    head: Annotated[list[Path], typer.Argument(help="One run file or more.", metavar="HEAD...", show_default=False)],
    metric: Annotated[
        list[str] | None, typer.Option(help="Only this metric, by name or label; may be repeated.")
    ] = None,
    only_changed: Annotated[bool, typer.Option("--only-changed", help="Only what is better or worse.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="A row too for what is the same on both sides, and for the machine's state.")
    ] = False,
    delta: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="A change below this share is none: 0.01 is 1%.")
    ] = 0.01,
    across: Annotated[
        bool, typer.Option("--across", help="Lay runs of different machines side by side, without judging them.")
    ] = False,
    *,
    outputs: Outputs,
) -> None:
    """Lay stored runs side by side. How every metric of every case changed, the largest change first."""
    reference = store.load(base)
    others = [(path, store.load(path)) for path in head]
    asked = (metric or [], only_changed, everything, delta, across)
    found = [_compared(base, reference, path, run, *asked) for path, run in others]
    told, sheets = zip(*found, strict=True)
    outputs.emit(Document("comparison", told, lambda: sheets, whole="--markdown"))


def _compared(
    base: Path,
    old: Run,
    head: Path,
    new: Run,
    metrics: list[str],
    only_changed: bool,
    everything: bool,
    delta: float,
    across: bool,
) -> tuple[dict[str, Any], Sheet]:
    """What JSON says of one pair of runs, every finding, and the sheet of it."""
    from repshift_cli.analysis import comparison, labelled
    from repshift_cli.gate.verdict import NoBase
    from repshift_cli.renderers.sheets.comparison import by_size, sheet

    different = [*comparison.differences_of(old, new).values(), *comparison.dtype_difference(old, new)]
    if different and not across:
        raise NoBase(
            f"environment mismatch: {base} and {head} differ in {'; '.join(different)}; --across describes only"
        )
    if across:
        old, new = comparison.without_place(old), comparison.without_place(new)
    found, lonely = comparison.compare(old, new, delta)
    found = _selected(by_size(found), metrics)
    if different:
        found = [comparison.described(f) for f in found]
    shown = _shown(found, only_changed, everything or bool(metrics))
    how = labelled.pairing(old, new)
    notes = [*_notes(found, lonely, shown, different), *([how.words] if how else [])]
    header = (f"base: {base}", f"head: {head}", *_made(old, new))
    told: dict[str, Any] = {
        "base": str(base),
        "head": str(head),
        "differences": different,
        "findings": found,
        "lonely": lonely,
    }
    told |= {"paired": how.order is not None, "unpaired_because": how.reason or None} if how else {}
    return told, sheet(shown, lonely, header, notes)


def _shown(found: list[Finding], only_changed: bool, everything: bool) -> list[Finding]:
    """What is a row of its own: the same, and what only explains, stands in a line below, unless it was asked for."""
    from repshift_cli.analysis import comparison

    if only_changed:
        return [f for f in found if f.word in comparison.CHANGES]
    return found if everything else [f for f in found if f.word != comparison.SAME and not f.aside]


def _selected(found: list[Finding], metrics: list[str]) -> list[Finding]:
    known = dict.fromkeys(name for f in found for name in (f.metric, f.label) if name)
    for name in metrics:
        if name not in known:
            raise UsageError(f"--metric: no case has {name!r} on both sides; there are {', '.join(known) or 'none'}")
    return [f for f in found if not metrics or f.metric in metrics or f.label in metrics]


def _made(old: Run, new: Run) -> list[str]:
    commits = [
        run.machine.commit[:10] + ("+dirty" if "dirty" in run.machine.commit else "")
        for run in (old, new)
        if run.machine.commit
    ]
    return [" → ".join(commits)] if len(commits) == 2 else []


def _notes(found: list[Finding], lonely: list[Lonely], shown: list[Finding], different: list[str]) -> list[str]:
    in_rounds = any(f.difference is None and not f.aside for f in found)
    notes = [BETWEEN_PROCESSES] if in_rounds or not found else []
    notes = [f"not judged, for the machines differ in {'; '.join(different)}"] if different else notes
    counts = {word: sum(f.word == word for f in found) for word in dict.fromkeys(f.word for f in found)}
    summed = ", ".join(f"{count} {word}" for word, count in counts.items())
    notes.append(f"{len(found)} metrics of cases that both have: {summed}" if found else "no case is on both sides")
    hidden = [f for f in found if f not in shown]
    said = "are " + " or ".join(dict.fromkeys(f.word for f in hidden if not f.aside))
    for aside, words in ((False, said), (True, "only explain the others")):
        if told := [f for f in hidden if f.aside == aside]:
            named = ", ".join(dict.fromkeys(f.label or f.metric for f in told))
            notes.append(f"{len(told)} more {words} ({named}); --all shows them")
    return notes
