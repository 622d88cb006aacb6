"""`repshift tune`: find the schedule and the score that fit this model, on this device."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from repshift_cli import registry
from repshift_cli.benchmark import signals
from repshift_cli.commands.shared import options
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import Bar
from repshift_cli.records import UsageError, store
from repshift_cli.records.tuning import CHOSEN, INTERRUPTED, NOTHING, Tuning
from repshift_cli.renderers.sheets.tuning import document_of
from repshift_cli.sweep.parsing import own_options

SEARCH = "Search"


def _option(kind: Any, metavar: str, help_text: str, **more: Any) -> Any:
    told = typer.Option(metavar=metavar, help=help_text, rich_help_panel=SEARCH, **more)
    return Annotated[kind | None, told]


OPTIONS: dict[str, Any] = {
    "model": options.Model,
    "data": _option(
        str,
        "PATH",
        "Calibration samples, in any format of `repshift eval`; half are held out. (default: random inputs)",
    ),
    "task": _option(
        str,
        "NAME",
        "The loss is that of this task of eval, on labels. (default: the divergence from the unpruned model)",
    ),
    "split": _option(str, "NAME", "Which split of the data is used, where it has several."),
    "train": _option(str, "SPLIT|PATH", "What --task probe is fitted on: a split of the data, or other data."),
    "target": _option(str, "FACTOR", "Seek the least loss at this speed-up: 1.5x. (default: the front of both)"),
    "max_loss": _option(float, "LOSS", "Seek the greatest speed at a loss up to this."),
    "methods": _option(list[str], "LIST", "Methods whose score may be chosen. (default: repshift,norm)"),
    "layers": _option(list[str], "LIST", "Blocks that may be cut: 3,6,9 or 1:12. (default: all but the last)"),
    "keep": _option(str, "LOW:HIGH", "Bounds of the share that stays at one cut. (default: 0.3:0.95)"),
    "cuts": _option(int, "N", "The most cuts of a schedule. (default: 3)", min=1),
    "per_layer": Annotated[
        bool,
        typer.Option("--per-layer", help="Search a keep and a sign for each layer.", rich_help_panel=SEARCH),
    ],
    "trials": _option(int, "N", "Trials of each search: of what is sought, of random, of stride. (default: 60)", min=1),
    "budget": _option(float, "SECONDS", "Seconds for all searches together; each has a third.", min=1),
    "limit": _option(int, "N", "Samples of --data that are used, drawn by --seed. (default: 256)", min=2),
    "column": _option(list[str], "OURS=THEIRS", "Which column of the data is image, text, label ...; may be repeated."),
    "attention": _option(str, "NAME", "Attention back end. (default: flash)"),
    **{
        name: options.OPTIONS[name]
        for name in (
            "batch",
            "dtype",
            "image_size",
            "frames",
            "tokens",
            *own_options(),
            "removal",
            "protect",
            "weights",
        )
    },
    "device": options.Device,
    "threads": options.Threads,
    "rounds": options.Rounds,
    "seed": options.Seed,
}
"""Every option that says what is asked for, in the order of the help text."""

Sensitivity = Annotated[
    bool,
    typer.Option(
        "--sensitivity",
        help="Only cut once, at one block at a time: the loss by block, keep, score and sign.",
        rich_help_panel=SEARCH,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The result as a workload profile: tuned.toml.", rich_help_panel=options.OUTPUT),
]
Study = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Journal of the search; where there is one, it is gone on with. (default: beside --out, else none)",
        rich_help_panel=options.OUTPUT,
    ),
]


@options.declared(OPTIONS)
@output_options("tuning")
def tune(
    given: dict[str, Any],
    sensitivity: Sensitivity = False,
    out: Out = None,
    study: Study = None,
    *,
    outputs: Outputs,
) -> None:
    """Find the schedule and the score that fit this model."""
    from repshift_cli.tuning import engine, search
    from repshift_cli.tuning.order import Order

    order = Order.from_options(_plain(given))
    registry.resolve_model(order.sweep.model[0])
    for path in filter(None, (out, study)):
        store.check_writable(path)
    outputs.check({"--out": out})
    if not sensitivity:
        search.optuna_here()
    with signals.ending_in_order(), Bar(1) as bar:
        bar.phase("reading the data and building the model")
        session = engine.begin(order, bar.update)
        found = session.sensitivity() if sensitivity else session.tune(study or _journal(out))
    outputs.emit(document_of(found))
    if out is not None and not sensitivity:
        _write(out, found, engine.fixed_options(order))
    if found.status == INTERRUPTED:
        if study or out:
            print(f"go on with: {shlex.join(['repshift', *sys.argv[1:]])}", file=sys.stderr)
        raise typer.Exit(130)


def _journal(out: Path | None) -> Path | None:
    """Where the search is noted, beside its result."""
    return None if out is None else out.with_suffix(".journal")


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """The options as `Order` reads them."""
    columns = {}
    for text in given.get("column") or ():
        ours, equals, theirs = text.partition("=")
        if not equals:
            raise UsageError(f"--column {text}: write OURS=THEIRS, like label=fine_label")
        columns[ours] = theirs
    return {name: value for name, value in given.items() if name != "column"} | {"columns": columns}


def _write(out: Path, found: Tuning, fixed: dict[str, Any]) -> None:
    """The recommended schedule as a profile; none where nothing was found."""
    from repshift_cli.tuning.written import profile_text

    own = next((c for c in found.confirmed if c.role == CHOSEN), None)
    if found.status == NOTHING or own is None:
        print(f"{out} is not written: {found.sentence}", file=sys.stderr)
        return
    store.write_text(out, profile_text(found, own, fixed))
    print(f"profile: {out}", file=sys.stderr)
