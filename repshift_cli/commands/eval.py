"""`repshift eval`: accuracy on labelled data, beside the speed."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli import registry
from repshift_cli.benchmark import signals
from repshift_cli.benchmark.launchers import Death, Listed, Terms
from repshift_cli.commands.shared import checks, consent, labelled, launching, options
from repshift_cli.commands.shared.listing import Row, show_rows
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import Bar, as_asked
from repshift_cli.records import RepshiftError, Run, UsageError, store
from repshift_cli.records.journal import Journal, StoreError
from repshift_cli.renderers import document_of
from repshift_cli.sweep import axes, profiles
from repshift_cli.sweep.parsing import own_options

if TYPE_CHECKING:
    from repshift_cli.evaluation.order import Order

EVALUATION = "Evaluation"


_option = partial(options.optional, EVALUATION)

OPTIONS: dict[str, Any] = {
    "model": options.Model,
    "data": _option(
        str,
        "PATH",
        "The labelled data: a folder of images with a folder for each class, or a CSV of paths or texts and labels "
        "(--list has all formats).",
    ),
    "task": _option(str, "NAME", "What is asked of the model (--list). (default: classification)"),
    **labelled.reading(EVALUATION, "split", "train"),
    "refit": Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Fit the probe on each variant's own features: could a head learn to do with what is left? "
            "(default: on the unpruned model's: is what is left the same?)",
            rich_help_panel=EVALUATION,
        ),
    ],
    "neighbours": _option(int, "N", "Neighbours of the k-NN probe. (default: 20)", min=1),
    "variant": Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIST",
            help="Attention back end, or BACKEND+METHOD. (default: flash and flash+ repshift, random, stride, lowest)",
            rich_help_panel=options.SWEEP,
        ),
    ],
    "keep": options.Keep,
    "layers": options.Layers,
    "per_layer": options.PerLayer,
    "profile": options.Profile,
    "batch": Annotated[
        str | None, typer.Option(metavar="N", help="Batch size. (default: 32)", rich_help_panel=options.SWEEP)
    ],
    **{
        name: options.OPTIONS[name]
        for name in ("dtype", "image_size", "frames", "tokens", *own_options(), "removal", "protect", "weights")
    },
    **labelled.reading(EVALUATION, "column", "preprocess"),
    "limit": _option(int, "N", "Evaluate a stratified sample of so many, drawn by --seed.", min=2),
    "until": _option(
        str, "POINTS", "Stop when every difference to the unpruned model is known to this half-width: 0.5, ±0.5."
    ),
    "seeds": _option(int, "N", "Seeds of random dropping, each a row. (default: 1)", min=1),
    **labelled.reading(EVALUATION, "workers"),
    "bench": Annotated[
        bool,
        typer.Option(
            "--bench",
            help="Time the same variants on the evaluation's own batch too, and mark those that none beats on both.",
            rich_help_panel=EVALUATION,
        ),
    ],
    **{name: options.OPTIONS[name] for name in ("precision", "budget", "rounds")},
    "device": options.Device,
    "threads": options.Threads,
    "seed": options.Seed,
}
"""Every option that says what is asked for, in the order of the help text."""

ListAll = Annotated[
    bool, typer.Option("--list", help="List the tasks and the formats of data.", rich_help_panel=EVALUATION)
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Run file. (default: in repshift-runs/)", rich_help_panel=options.OUTPUT),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Go on with an interrupted evaluation; its own options apply.",
        rich_help_panel=options.OUTPUT,
    ),
]

InProcess = Annotated[
    bool,
    typer.Option(
        "--in-process",
        help="Evaluate in the command's own process, for a debugger: a variant that crashes ends the evaluation.",
        rich_help_panel=options.MEASURE,
    ),
]


@options.declared(OPTIONS)
@output_options("run")
def evaluate(
    given: dict[str, Any],
    list_all: ListAll = False,
    out: Out = None,
    resume: Resume = None,
    in_process: InProcess = False,
    *,
    outputs: Outputs,
) -> None:
    """Measure accuracy on labelled data: at what loss?"""
    if list_all:
        _list()
        return
    order, path = _resumed(given, out, resume) if resume else _begun(given, out)
    outputs.check({"--out": path})
    run = _evaluated(order, path, in_process, as_asked(outputs.view))
    outputs.emit(document_of(run))
    print(f"run file: {path}", file=sys.stderr)
    raise typer.Exit(1 if any(record.status == "failed" for record in run.records) else 0)


# --- what is asked for ------------------------------------------------------------------------------------------------


def _begun(given: dict[str, Any], out: Path | None) -> tuple[Order, Path]:
    """What the options come to, and where it goes: a new file."""
    from repshift_cli.evaluation.order import Order

    order = _named(Order.from_options(_plain(given)))
    consent.say_imports(given.get("profile"), order.sweep.model, [str(m) for m in given.get("model") or ()])
    path = out or store.default_path(datetime.now(UTC), ["eval", *order.sweep.model])
    if path.exists():
        raise UsageError(f"{path} exists already; go on with it by --resume {path}, or choose another --out")
    store.check_writable(path)
    return order, path


def _resumed(given: dict[str, Any], out: Path | None, resume: Path) -> tuple[Order, Path]:
    """What the run file says that was asked for, and the file."""
    from repshift_cli.evaluation.order import Order

    if given.keys() - {"model"} or out is not None:
        named = [f"--{name.replace('_', '-')}" for name in given if name != "model"] or ["--out"]
        raise UsageError(f"--resume takes the options of the run file; leave out {named[0]}")
    with contextlib.closing(Journal.open(resume)) as journal:
        told = journal.run.options
    if "task" not in told:
        raise UsageError(f"{resume} is no evaluation; go on with it by repshift bench --resume {resume}")
    order = Order.from_options(told)
    consent.check_consent(resume, order.sweep.model, [str(m) for m in given.get("model") or ()])
    return order, resume


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """The options as `Order` reads them."""
    plain = labelled.with_columns(given)
    if "until" in plain:
        plain["until"] = _half_width(plain["until"])
    return _with_profile(plain)


def _with_profile(given: dict[str, Any]) -> dict[str, Any]:
    """The options with what a workload profile says beside them; its data are inputs of bench, no labelled ones."""
    profile = given.pop("profile", None)
    told = profiles.load_profile(profile, "bench") if profile else {}
    return axes.merge({name: value for name, value in told.items() if name != "data"}, given)


def _half_width(text: str) -> float:
    try:
        value = float(text.removeprefix("±").removeprefix("+-"))
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UsageError(f"--until {text}: a half-width in points above 0 is needed, like 0.5")
    return value


def _named(order: Order) -> Order:
    """The order with every name in it checked."""
    import dataclasses

    from repshift_cli.evaluation.tasks import ROOM

    sweep = checks.with_full_names(order.sweep)
    return dataclasses.replace(order, sweep=sweep, task=registry.find(ROOM, order.task).name)


# --- the evaluation ---------------------------------------------------------------------------------------------------


def _evaluated(order: Order, path: Path, in_process: bool, observing: Callable[[int], Bar]) -> Run:
    """The run, on disk. A process that ends at a variant is followed by another, which goes on behind it; after an
    interruption what is known so far is kept, and the command that goes on is said."""
    from repshift_cli.evaluation import shards
    from repshift_cli.evaluation.carried import Evaluating

    launcher = registry.load(
        registry.find("benchmark.launchers", launching.IN_PROCESS if in_process else launching.DEFAULT)
    )
    tasks = Listed([Evaluating(order, path)])
    with signals.ending_in_order(), observing(1) as bar, contextlib.closing(launcher.start(Terms())) as carrier:
        try:
            for event in carrier.carry_out(tasks, bar):
                if isinstance(event.value, Death):
                    _say_death(event.value, at_a_variant=shards.on_its_way(path))
                    tasks.tasks.append(Evaluating(order, path, event.value.reason))
        except (KeyboardInterrupt, SystemExit):
            carrier.close()
            shards.forgive(path)
            print("\ninterrupted; what was evaluated is kept", file=sys.stderr)
            _say_how_to_go_on(path)
            raise
        except StoreError:
            _say_how_to_go_on(path)
            raise
    return store.load(path)


def _say_how_to_go_on(path: Path) -> None:
    if path.exists():
        print(f"go on with: {shlex.join(['repshift', 'eval', '--resume', str(path)])}", file=sys.stderr)


def _say_death(death: Death, at_a_variant: bool) -> None:
    """That a process ended and another goes on; RepshiftError where it would end there again."""
    if not at_a_variant:
        raise RepshiftError(f"{death.reason}, before or between variants; --in-process shows where")
    print(f"{death.reason}; going on in another process", file=sys.stderr)


def _list() -> None:
    """The tasks and the formats of data."""
    rows: list[Row] = [("TASKS", "what is asked of a model", None)]
    rows += [(part.name, part.help, None) for part in registry.parts("evaluation.tasks").values()]
    rows.append(("DATA", "how labelled data lies on the disk", None))
    for part in registry.parts("evaluation.datasets").values():
        rows.append((part.name, part.help, registry.load(part).unavailable()))
    show_rows(rows, "\nUse as --task NAME; the format of --data is found by what lies there.")
