"""`repshift operators`: attention operators side by side, exact beside approximate."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli import registry
from repshift_cli.benchmark import engine
from repshift_cli.benchmark.tasks import Station
from repshift_cli.commands.shared import options
from repshift_cli.commands.shared.listing import Row, show_rows
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import Bar
from repshift_cli.machine import device as devices
from repshift_cli.machine.cores import choose_threads
from repshift_cli.records import UsageError, one_line, store
from repshift_cli.renderers import document_of
from repshift_cli.sweep import operators as sweep

if TYPE_CHECKING:
    from repshift_cli.benchmark.engine import Session
    from repshift_cli.counters.base.choice import Choice
    from repshift_cli.records import Run
    from repshift_cli.sweep.operators import OperatorAxes
    from repshift_cli.sweep.plan import Planned

TOKENS = {"cuda": (4096,), "cpu": (1024,)}
HEADS = {"cuda": (16,), "cpu": (4,)}
BUDGET = 2.0
"""Seconds of timing per operator: there are many in each comparison."""

IN_WORDS = {
    "exact": "exact attention",
    "masked": "exact under a mask of places",
    "approximate": "a choice made from the data",
    "trained": "forms that a model must be trained with, here with seeded parameters",
    "decode": "one query against a cache",
}


def _sizes(help_text: str) -> Any:
    return Annotated[list[str] | None, typer.Option(metavar="LIST", help=help_text, rich_help_panel=options.SWEEP)]


def _captured(metavar: str, help_text: str) -> Any:
    told = typer.Option(metavar=metavar, help=f"With --input captured: {help_text}", rich_help_panel=options.SWEEP)
    return Annotated[str | None, told]


OPTIONS: dict[str, Any] = {
    "operator": _sizes("Operators, each alone or with an engine, like sliding:flex. (default: all that run here)"),
    "tokens": _sizes("Tokens: 1k,4k or 1k:64k:x2. (default: 1024 on a CPU, 4096 on CUDA)"),
    "heads": _sizes("Query heads. (default: 4 on a CPU, 16 on CUDA)"),
    "kv_heads": _sizes("KV heads. (default: as many as query heads)"),
    "head_dim": _sizes("Dims of a head. (default: 64)"),
    "batch": options.Batch,
    "window": _sizes("Window of the sliding forms. (default: 256)"),
    "dtype": options.Dtype,
    "causal": Annotated[
        bool | None,
        typer.Option(
            "--causal/--no-causal",
            help="Causal prefill and decoding only, or prefill without a mask. (default: wherever each is defined)",
            rich_help_panel=options.SWEEP,
        ),
    ],
    "backward": Annotated[
        bool, typer.Option("--backward", help="Time the backward pass instead.", rich_help_panel=options.SWEEP)
    ],
    "input": Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="planted (sinks, local bands, heavy hitters), gaussian, or captured. (default: planted)",
            rich_help_panel=options.SWEEP,
        ),
    ],
    "model": _captured("NAME", "whose queries, keys and values are taken."),
    "layer": _captured("N", "which attention call, from 1. (default: 1)"),
    "data": _captured("PATH", "the model's input. (default: random)"),
    "weights": _captured("PATH", "the model's weights. (default: random)"),
    "device": options.Device,
    "threads": options.Threads,
    "cuda_graph": options.CudaGraph,
    "compile": options.Compile,
    "precision": options.Precision,
    "budget": Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS",
            help=f"Seconds of timing per operator after which a comparison stops. (default: {BUDGET:g})",
            rich_help_panel=options.MEASURE,
        ),
    ],
    "rounds": options.Rounds,
    "seed": options.Seed,
    "hbm": options.Hbm,
}
"""Every option that says what is asked for, in the order of the help text: the fields of `OperatorAxes`."""

ListAll = Annotated[bool, typer.Option("--list", help="List all operators by class, and why one is not here.")]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Run file, written after every operator. (default: in repshift-runs/)",
        rich_help_panel=options.OUTPUT,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN", help="Go on with an interrupted run file; its own options apply.", rich_help_panel=options.OUTPUT
    ),
]


@options.declared(OPTIONS)
@output_options("run")
def operators(
    given: dict[str, Any],
    dry_run: options.DryRun = False,
    list_all: ListAll = False,
    out: Out = None,
    resume: Resume = None,
    *,
    outputs: Outputs,
) -> None:
    """Time attention operators side by side, exact beside approximate."""
    if list_all:
        _list_operators()
        return
    earlier = _earlier(given, out, resume)
    asked = sweep.OperatorAxes.from_options(_stored(earlier) if earlier else given)
    where = devices.choose_device(asked.device)
    asked, planned = _planned(asked, where)
    if dry_run:
        options.list_cases(planned)
        return
    path = resume or out or store.default_path(datetime.now(UTC), ["operators"])
    outputs.check({"--out": path})
    _check_new(path, earlier)
    session = _session(path, asked, where, planned, earlier)
    with _said_when_interrupted(session):
        run = engine.measure(session, registry.load(registry.find("benchmark.launchers", "inline")), Bar)
    outputs.emit(document_of(run))
    print(f"run file: {path}", file=sys.stderr)
    raise typer.Exit(engine.exit_code(run))


# --- what is asked for ------------------------------------------------------------------------------------------------


def _earlier(given: dict[str, Any], out: Path | None, resume: Path | None) -> Run | None:
    if resume is None:
        return None
    if given or out is not None:
        named = [f"--{name.replace('_', '-')}" for name in given] or ["--out"]
        raise UsageError(f"--resume takes the options of the run file; leave out {named[0]}")
    return store.load(resume)


def _stored(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.options.items() if name in OPTIONS}


def _planned(asked: OperatorAxes, device: str) -> tuple[OperatorAxes, tuple[Planned, ...]]:
    """The axes with the device's sizes, and their cells."""
    from repshift_cli.benchmark.operators.choice import offered
    from repshift_cli.benchmark.operators.steps import with_captured_sizes

    found = offered(asked.operator, device)
    if asked.input == "captured":
        asked = with_captured_sizes(asked)
    kind = device.partition(":")[0]
    asked = dataclasses.replace(
        asked,
        tokens=asked.tokens or TOKENS[kind],
        heads=asked.heads or HEADS[kind],
        budget=asked.budget or BUDGET,
    )
    planned = sweep.expand(asked, device, found)
    if not planned:
        raise UsageError("no cell comes of this: the operators named are not defined for that mask; leave it out")
    return asked, planned


def _check_new(path: Path, earlier: Run | None) -> None:
    if earlier is None and path.is_file():
        raise UsageError(f"{path} exists already; go on with it by --resume {path}, or choose another --out")
    store.check_writable(path)


def _session(
    path: Path, asked: OperatorAxes, device: str, planned: tuple[Planned, ...], earlier: Run | None
) -> Session:
    station = Station(device, _choice(asked.hbm, device), threads=choose_threads(asked.threads))
    settings = engine.settings_of(asked, device, passes=True)
    if earlier is None:
        return engine.start(path, asked, planned, settings, station)
    return engine.resume(path, earlier, planned, settings, station, retry_failed=False)


def _choice(asked: str, device: str) -> Choice:
    from repshift_cli.counters.base.choice import choose

    with Bar(1) as bar:
        return choose(asked, device, bar.phase)


@contextlib.contextmanager
def _said_when_interrupted(session: Session) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        counts = f"{len(session.done)} of {len(session.run.planned)}"
        print(f"\ninterrupted; {counts} cells are in the run file", file=sys.stderr)
        print(f"go on with: {shlex.join(['repshift', 'operators', '--resume', str(session.path)])}", file=sys.stderr)
        raise


# --- the listing ------------------------------------------------------------------------------------------------------


def _list_operators() -> None:
    device = devices.choose_device("auto")
    rows: list[Row] = []
    known = registry.parts("operators").values()
    for kind, words in IN_WORDS.items():
        rows.append((kind.upper(), words, None))
        rows += [_row(part, device) for part in known if part.constants.get("CLASS") == kind]
    kind = device.partition(":")[0]
    footer = f"\nOn this machine's {kind}. Use as --operator NAME or NAME:ENGINE, like --operator flash,sliding:flex."
    show_rows(rows, footer)


def _row(part: registry.Part, device: str) -> Row:
    text = f"{part.help}\n{part.constants.get('PAPER', '')}"
    try:
        engines = registry.load(part).ENGINES
    except Exception as error:
        return part.name, text, one_line(error)
    reasons = {name: engine.unavailable(device) for name, engine in engines.items()}
    others = [f"{name} ({reason})" if reason else name for name, reason in reasons.items() if name != "plain"]
    return part.name, text + (f"\nengines: {', '.join(others)}" if others else ""), reasons["plain"]
