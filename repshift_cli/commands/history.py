"""`repshift history`: each case over time, from a folder of run files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.records import Run, UsageError, store
from repshift_cli.renderers import Document


@output_options("history")
def history(
    folder: Annotated[
        list[Path] | None, typer.Argument(help="Folders or run files. (default: repshift-runs)", show_default=False)
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(help="Only cases with all of these words: a variant, a model, keep=0.6; may be repeated."),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Metric, by name or label. (default: latency)")] = None,
    *,
    outputs: Outputs,
) -> None:
    """Show every case over time. A sparkline each, with step changes marked; each machine has its own history."""
    from repshift_cli.analysis import history as over_time
    from repshift_cli.renderers.sheets.history import sheets

    runs, unreadable = _runs(folder or [store.FOLDER])
    wanted = metric or ["latency"]
    found = over_time.series(runs, wanted)
    words = {word for given in case or [] for word in given.replace(",", " ").split()}
    if words:
        found = [s for s in found if words <= {s.case.variant, s.case.model, *s.case.key.split()}]
    if not found:
        known = dict.fromkeys(m.metric for run in runs for r in run.records for m in r.measurements if m.samples)
        what = f"no case of {len(runs)} runs has {' or '.join(wanted)}" + (
            f" and {' '.join(sorted(words))}" if words else ""
        )
        raise UsageError(f"{what}; measured were {', '.join(known) or 'nothing'}")
    notes = [note for note in (over_time.why_no_steps(),) if note]
    notes += [f"left out: {sentence}" for sentence in unreadable]
    outputs.emit(Document("history", found, lambda: sheets(found, notes), whole="--markdown"))


def _runs(places: list[Path]) -> tuple[list[Run], list[str]]:
    """The runs of the files and folders (and their gates), and what could not be read."""
    runs, unreadable = [], []
    for place in places:
        if not place.exists():
            raise UsageError(f"{place} does not exist; `repshift bench` writes run files into {store.FOLDER}/")
        files = sorted([*place.glob("*.json"), *place.glob("gate-*/head.json")]) if place.is_dir() else [place]
        for path in files:
            try:
                runs.append(store.load(path))
            except UsageError as error:
                unreadable.append(str(error))
    if not runs:
        raise UsageError(f"there is no run file in {', '.join(map(str, places))}")
    return runs, unreadable
