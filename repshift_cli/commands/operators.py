"""`repshift operators`: attention operators side by side, exact beside approximate."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from repshift_cli import registry
from repshift_cli.benchmark import engine, signals
from repshift_cli.benchmark.engine import Manner, Order, Session
from repshift_cli.benchmark.launchers import Carrier
from repshift_cli.benchmark.tasks import Plan
from repshift_cli.commands.shared import consent, launching, options
from repshift_cli.commands.shared.launching import Where
from repshift_cli.commands.shared.listing import Row, show_rows
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import as_asked
from repshift_cli.commands.shared.stopping import said_where_it_stopped
from repshift_cli.machine import device as devices
from repshift_cli.records import OPERATORS, UsageError, one_line, store
from repshift_cli.records.journal import Journal
from repshift_cli.renderers import document_of
from repshift_cli.sweep.axes import merge
from repshift_cli.sweep.operators import OperatorAxes
from repshift_cli.sweep.profiles import load_profile

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
    "profile": options.Profile,
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
    "cache": Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Before each time: cold (the last-level cache is flushed) or warm. (default: cold on CUDA, warm on a "
            "CPU)",
            rich_help_panel=options.SWEEP,
        ),
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
    "warmup": options.Warmup,
    "seed": options.Seed,
    "hbm": options.Hbm,
}
"""Every option that says what is asked for, in the order of the help text: `profile`, the fields of `OperatorAxes`."""

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
    timing_only: options.TimingOnly = False,
    delay: options.Delay = 0.0,
    dry_run: options.DryRun = False,
    list_all: ListAll = False,
    case_timeout: launching.CaseTimeout = None,
    in_process: launching.InProcess = False,
    out: Out = None,
    resume: Resume = None,
    *,
    outputs: Outputs,
) -> None:
    """Time attention operators side by side: exact, approximate."""
    if list_all:
        _list_operators()
        return
    observing = as_asked(outputs.view)
    where = Where(in_process=in_process, case_timeout=case_timeout)
    with signals.ending_in_order(), _opened(given, Manner(timing_only, delay), out, resume) as (order, path, journal):
        outputs.check({"--out": path})
        with launching.launched(where, order) as carrier:
            plan = engine.plan_sweep(order.sweep, carrier, observing)
            if dry_run:
                from repshift_cli.commands.shared.dry_run import list_cases

                list_cases(plan.planned)
                return
            session = _session(order, plan, path, journal, carrier, observing)
            with said_where_it_stopped(session, outputs, _say_how_to_go_on):
                engine.measure(session, carrier, observing)
        run = session.journal.snapshot()
        session.journal.close()
    try:
        outputs.emit(document_of(run))
    finally:
        if not outputs.view.quiet:
            print(f"run file: {path}", file=sys.stderr)
    raise typer.Exit(engine.exit_code(run))


# --- what is asked for ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(
    given: dict[str, Any], manner: Manner, out: Path | None, resume: Path | None
) -> Iterator[tuple[Order, Path, Any]]:
    """What the options come to, where it goes, and the journal of a run to go on with, which is locked."""
    if resume is None:
        path = out or store.default_path(datetime.now(UTC), [OPERATORS])
        yield Order(_axes(given), manner), path, None
        return
    if given.keys() - {"model"} or manner != Manner() or out is not None:
        named = [f"--{name.replace('_', '-')}" for name in given if name != "model"]
        named += [*["--timing-only"] * manner.timing_only, "--out"]
        raise UsageError(f"--resume takes the options of the run file; leave out {named[0]}")
    with contextlib.closing(Journal.open(resume)) as journal:
        order = engine.order_of(journal.run)
        if not isinstance(order.sweep, OperatorAxes):
            raise UsageError(f"{resume} is no run of operators; go on with it by repshift bench --resume {resume}")
        consent.check_consent(resume, [m for m in (order.sweep.model,) if m], [str(given.get("model"))])
        yield order, resume, journal


def _axes(given: dict[str, Any]) -> OperatorAxes:
    """The profile's sweep with the options given in their place."""
    told = load_profile(given["profile"], OPERATORS) if "profile" in given else {}
    own = {name: value for name, value in given.items() if name != "profile"}
    return OperatorAxes.from_options({"budget": BUDGET} | merge(told, own))


def _session(
    order: Order, plan: Plan, path: Path, journal: Journal | None, carrier: Carrier, observing: engine.Observing
) -> Session:
    """The run made ready: a new one, or the earlier one."""
    if journal is None and path.is_file():
        raise UsageError(f"{path} exists already; go on with it by --resume {path}, or choose another --out")
    store.check_writable(path)
    equipment = engine.equip(order, plan.device, carrier, observing)
    if journal is None:
        return engine.start(path, order, plan, equipment)
    return engine.resume(journal, order, plan, equipment, False, carrier.isolated, carrier.named)


def _say_how_to_go_on(session: Session, what: str) -> None:
    counts = f"{len(session.done)} of {len(session.planned)}"
    print(f"{what}; {counts} cells are in the run file", file=sys.stderr)
    command = shlex.join(["repshift", "operators", "--resume", str(session.journal.path)])
    print(f"go on with: {command}", file=sys.stderr)


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
