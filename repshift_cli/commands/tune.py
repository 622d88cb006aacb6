"""`repshift tune`: find the schedule and the score that fit this model, on this device."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli import registry
from repshift_cli.benchmark import signals
from repshift_cli.commands.shared import consent, labelled, options
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import Bar
from repshift_cli.records import UsageError, store
from repshift_cli.records.json_codec import json_schema, to_json
from repshift_cli.records.tuning import CHOSEN, INTERRUPTED, NOTHING, TUNING_SCHEMA_VERSION, Tuning
from repshift_cli.renderers import document_of
from repshift_cli.sweep.parsing import own_options

if TYPE_CHECKING:
    from repshift_cli.tuning.order import Order

SEARCH = "Search"


_option = partial(options.optional, SEARCH)

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
    **labelled.reading(SEARCH, "split", "train"),
    "target": _option(str, "FACTOR", "Seek the least loss at this speed-up: 1.5x. (default: the front of both)"),
    "max_loss": _option(float, "LOSS", "Seek the greatest speed at a loss up to this."),
    "methods": _option(list[str], "LIST", "Methods whose score may be chosen. (default: repshift,norm)"),
    "layers": _option(list[str], "LIST", "Blocks that may be cut: 3,6,9 or 1:12. (default: all but the last)"),
    "keep": _option(str, "LOW:HIGH", "Bounds of the share that stays at one cut. (default: 0.3:0.95)"),
    "cuts": _option(int, "N", "The most cuts of a schedule. (default: 3)", min=1),
    "per_layer": Annotated[
        bool,
        typer.Option("--per-layer", help="Search a keep and a score for each layer.", rich_help_panel=SEARCH),
    ],
    "trials": _option(int, "N", "Trials of each search: of what is sought, of random, of stride. (default: 60)", min=1),
    "budget": _option(float, "SECONDS", "Seconds for the searches together, in equal parts.", min=1),
    "limit": _option(int, "N", "Samples of --data that are used, drawn by --seed. (default: 256)", min=2),
    **labelled.reading(SEARCH, "column", "preprocess", "workers"),
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
        help="Journal of the search; where there is one, it is gone on with. (default: beside --out, else beside the "
        "run file)",
        rich_help_panel=options.OUTPUT,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Go on with the search of a run file; its own options apply, but for --trials and --budget.",
        rich_help_panel=options.OUTPUT,
    ),
]
Schema = Annotated[
    bool,
    typer.Option("--schema", help="Print the JSON Schema of the run file and stop.", rich_help_panel=options.OUTPUT),
]


@options.declared(OPTIONS)
@output_options("tuning")
def tune(
    given: dict[str, Any],
    sensitivity: Sensitivity = False,
    out: Out = None,
    study: Study = None,
    resume: Resume = None,
    schema: Schema = False,
    *,
    outputs: Outputs,
) -> None:
    """Find the schedule and the score that fit this model."""
    if schema:
        typer.echo(json.dumps(tuning_schema(), indent=2))
        return
    if resume is None:
        asked = _asked(given, sensitivity, out, study)
    else:
        asked = _gone_on(resume, given, out, {"sensitivity": sensitivity, "study": study})
    for path in filter(None, (asked.file, asked.out, asked.study)):
        store.check_writable(path)
    outputs.check({"--out": out, "--study": asked.study})
    try:
        found = _found(asked)
    except SystemExit:
        _say_what_goes_on(asked)
        raise
    outputs.emit(document_of(found))
    print(f"run file: {asked.file}", file=sys.stderr)
    _write(asked, found)
    if found.status == INTERRUPTED:
        _say_what_goes_on(asked)
        raise typer.Exit(130)


def tuning_schema() -> dict[str, Any]:
    """The JSON Schema of the run file of a search."""
    return json_schema(Tuning, f"repshift tune, version {TUNING_SCHEMA_VERSION}")


# --- what is asked for ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """A search: its options as the run file has them, that file, and its journal; none of one cut at a time alone."""

    options: dict[str, Any]
    order: Order
    file: Path
    study: Path | None
    out: Path | None


def _asked(given: dict[str, Any], sensitivity: bool, out: Path | None, study: Path | None) -> _Asked:
    """A search that begins, or goes on with the journal that lies there."""
    from repshift_cli.tuning.order import Order

    plain = labelled.with_columns(given)
    order = Order.from_options(plain)
    registry.resolve_model(order.sweep.model[0])
    file = store.default_path(datetime.now(UTC), ["sensitivity" if sensitivity else "tune", *order.sweep.model])
    if sensitivity:
        if named := [name for name, path in (("--out", out), ("--study", study)) if path]:
            raise UsageError(f"--sensitivity searches nothing, and so has nothing for {named[0]}; leave it out")
        return _Asked(plain, order, file, None, None)
    beside = file if out is None else out
    return _Asked(plain, order, file, study or beside.with_suffix(".journal"), out)


def _gone_on(resume: Path, given: dict[str, Any], out: Path | None, others: dict[str, Any]) -> _Asked:
    """The search of a run file, which goes on; UsageError for what cannot be said beside it."""
    from repshift_cli.tuning.order import Order

    earlier = store.load_any(resume)
    if not isinstance(earlier, Tuning) or earlier.study is None:
        raise UsageError(f"{resume} holds no search to go on with; --resume takes the run file of a `repshift tune`")
    free = ("trials", "budget")
    if told := [name for name, value in (given | others).items() if value and name not in ("model", *free)]:
        named = told[0].replace("_", "-")
        raise UsageError(
            f"--resume takes the options of the run file, but for --trials and --budget; leave out --{named}"
        )
    plain = earlier.options | {name: given[name] for name in free if name in given}
    order = Order.from_options(plain)
    consent.check_consent(resume, order.sweep.model, [str(m) for m in given.get("model") or ()])
    if not Path(earlier.study).exists():
        raise UsageError(f"the journal {earlier.study} of {resume} is not here: go where it lies, or search anew")
    return _Asked(plain, order, resume, Path(earlier.study), out)


# --- the search -------------------------------------------------------------------------------------------------------


def _found(asked: _Asked) -> Tuning:
    """The outcome, on disk; a run file is there from the beginning on, to go on with."""
    from repshift_cli.tuning import engine, search

    if asked.study is not None:
        search.optuna_here()
        search.check_journal(asked.study, engine.MAIN, asked.order.goal, asked.order.identity())
    notice = signals.Notice()
    with signals.ending_in_order(), Bar(1) as bar:
        bar.phase("reading the data and building the model")
        session = engine.begin(asked.order, bar.update, lambda: _end(notice), asked.options, asked.study)
        if not asked.file.exists():
            store.write_text(asked.file, to_json(session.begun()))
        with signals.noticed(notice):  # Ctrl-C within a line of the journal would leave half of it
            found = session.sensitivity() if asked.study is None else session.tune()
        store.write_text(asked.file, to_json(found))
    return found


def _end(notice: signals.Notice) -> None:
    """Where nothing is half done: the end, if it was asked for."""
    notice.raise_at_once()
    if notice.interrupts:
        raise KeyboardInterrupt


def _say_what_goes_on(asked: _Asked) -> None:
    if asked.study is not None and asked.file.exists():
        out = [] if asked.out is None else ["--out", str(asked.out)]
        command = shlex.join(["repshift", "tune", "--resume", str(asked.file), *out])
        print(f"go on with: {command}", file=sys.stderr)


def _write(asked: _Asked, found: Tuning) -> None:
    """The recommended schedule as a profile; none where nothing was found."""
    from repshift_cli.tuning.written import profile_text

    if asked.out is None:
        return
    own = next((c for c in found.confirmed if c.role == CHOSEN), None)
    if found.status == NOTHING or own is None:
        print(f"{asked.out} is not written: {found.sentence}", file=sys.stderr)
        return
    store.write_text(asked.out, profile_text(found, own, asked.order.sweep.as_options()))
    print(f"profile: {asked.out}", file=sys.stderr)
