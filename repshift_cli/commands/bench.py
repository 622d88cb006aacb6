"""`repshift bench`: sweep, measure, compare."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from repshift_cli.benchmark import engine, signals
from repshift_cli.benchmark.engine import Manner, Order, Session
from repshift_cli.benchmark.launchers import Carrier
from repshift_cli.benchmark.tasks import Plan
from repshift_cli.commands.shared import checks, consent, launching, options
from repshift_cli.commands.shared.launching import Where
from repshift_cli.commands.shared.options import Asked
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import as_asked
from repshift_cli.commands.shared.stopping import said_where_it_stopped
from repshift_cli.records import UsageError, store
from repshift_cli.records.journal import Journal, exists_already
from repshift_cli.renderers import document_of
from repshift_cli.sweep.axes import Axes

MemorySnapshot = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write torch's history of allocations during one forward to this file, for the viewer at "
        "pytorch.org/memory_viz; one file per case where there are several. CUDA only.",
        rich_help_panel=options.OUTPUT,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Run file, written after every case. (default: in repshift-runs/)",
        rich_help_panel=options.OUTPUT,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Go on with an interrupted run file; its own options apply.",
        rich_help_panel=options.OUTPUT,
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="With --resume: repeat what failed.", rich_help_panel=options.OUTPUT)
]


@options.sweep_options()
@output_options("run")
def bench(
    asked: Asked,
    memory_snapshot: MemorySnapshot = None,
    timing_only: options.TimingOnly = False,
    delay: options.Delay = 0.0,
    dry_run: options.DryRun = False,
    max_cases: options.MaxCases = options.MOST_CASES,
    on: launching.On = None,
    case_timeout: launching.CaseTimeout = None,
    parallel: launching.Parallel = None,
    device_kind: launching.DeviceKind = None,
    in_process: launching.InProcess = False,
    timing: launching.Timing = False,
    out: Out = None,
    resume: Resume = None,
    retry_failed: RetryFailed = False,
    *,
    outputs: Outputs,
) -> None:
    """Time a model's variants side by side, or a whole sweep."""
    begun = time.monotonic()
    manner = Manner(timing_only, delay, str(memory_snapshot) if memory_snapshot else None, case_timeout)
    where = Where(on, in_process, case_timeout, parallel, device_kind)
    file, observing = _File(out, resume, retry_failed), as_asked(outputs.view)
    with signals.ending_in_order(), file.opened(asked, manner) as (order, place):
        checks.check_size(order.sweep, max_cases)
        outputs.check({"--out": place.path})
        if not dry_run:
            file.check(place)
        with launching.launched(where, order) as carrier:
            plan = engine.plan_sweep(order.sweep, carrier, observing)
            if dry_run:
                from repshift_cli.commands.shared.dry_run import list_cases

                list_cases(plan.planned, outputs)
                return
            order = replace(order, sweep=plan.sweep)
            session = _session(order, plan, place, carrier, observing, retry_failed)
            with said_where_it_stopped(session, outputs, _say_how_to_go_on):
                engine.measure(session, carrier, observing)
        run = session.journal.snapshot()
        session.journal.close()
        try:
            outputs.emit(document_of(run))
        finally:
            if not outputs.view.quiet:
                _say_where(session)
            if timing:
                print(launching.spent_in_words(carrier.spent, time.monotonic() - begun), file=sys.stderr)
    raise typer.Exit(engine.exit_code(run))


# --- what is asked for ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Place:
    """The run file: its path, the next one to try where it was not named, and the journal of one to go on with."""

    path: Path
    instead: Callable[[], Path] | None = None
    journal: Journal | None = None


@dataclasses.dataclass(frozen=True)
class _File:
    """The options that name the run file."""

    out: Path | None
    resume: Path | None
    retry_failed: bool

    @contextlib.contextmanager
    def opened(self, asked: Asked, manner: Manner) -> Iterator[tuple[Order, _Place]]:
        """What the options come to, every name in it checked, and where it goes; a file to go on with is locked."""
        if self.resume is not None:
            named = [f"--{name.replace('_', '-')}" for name in asked.names if name != "model"]
            named += [
                f"--{f.name.replace('_', '-')}"
                for f in dataclasses.fields(manner)
                if getattr(manner, f.name) and f.name != "case_timeout"
            ]
            if named or self.out is not None:
                raise UsageError(f"--resume takes the options of the run file; leave out {(named or ['--out'])[0]}")
            with contextlib.closing(Journal.open(self.resume)) as journal:
                order = engine.order_of(journal.run)
                if not isinstance(order.sweep, Axes):
                    raise UsageError(f"go on with this run by repshift operators --resume {self.resume}")
                _check_models(self.resume, order.sweep, asked)
                sweep = checks.with_full_names(order.sweep)
                yield replace(order, sweep=sweep), _Place(self.resume, journal=journal)
            return
        if self.retry_failed:
            raise UsageError("--retry-failed goes with --resume RUN, which says whose failures to repeat")
        sweep = checks.checked_sweep(asked)
        consent.say_imports(asked.profile, sweep.model, _named(asked))

        def free() -> Path:
            return store.default_path(datetime.now(UTC), sweep.model)

        yield Order(sweep, manner), _Place(self.out or free(), None if self.out else free)

    def check(self, place: _Place) -> None:
        """UsageError where the run file cannot be written, or where a new one would take the place of a file."""
        if place.journal is None and place.path.is_file():
            raise exists_already(place.path)
        folder = place.path.parent
        made = not folder.exists()
        store.check_writable(place.path)
        if made:
            folder.rmdir()  # the journal makes it again; what is refused after this leaves no empty folder


def _named(asked: Asked) -> tuple[str, ...]:
    """The models on the command line."""
    return Axes.from_options({"model": asked.given.get("model")}).model if "model" in asked.given else ()


def _check_models(file: Path, sweep: Axes, asked: Asked) -> None:
    """UsageError for a --model that is not the file's, and for code of the file's that nobody asked to run."""
    named = _named(asked)
    if strange := [model for model in named if model not in sweep.model]:
        raise UsageError(f"--resume takes the options of the run file; {file} has no model {strange[0]}")
    consent.check_consent(file, sweep.model, named)


def _session(
    order: Order, plan: Plan, place: _Place, carrier: Carrier, observing: engine.Observing, retry_failed: bool
) -> Session:
    """The run made ready: a new one, or the earlier one."""
    if order.manner.memory_snapshot is not None:
        if not plan.device.startswith("cuda"):
            why = "torch keeps a history of CUDA allocations only"
            raise UsageError(f"--memory-snapshot needs a GPU: {why}; leave it out")
        store.check_writable(Path(order.manner.memory_snapshot))
    equipment = engine.equip(order, plan.device, carrier, observing)
    if place.journal is None:
        return engine.start(place.path, order, plan, equipment, place.instead)
    return engine.resume(place.journal, order, plan, equipment, retry_failed, carrier.isolated, carrier.named)


# --- what is said -----------------------------------------------------------------------------------------------------


def _say_how_to_go_on(session: Session, what: str) -> None:
    retry = ["--retry-failed"] if session.again - session.done else []
    own = consent.own_models(dict.fromkeys(p.case.model for p in session.planned))
    named = ["--model", ",".join(own)] if own else []
    command = shlex.join(["repshift", "bench", "--resume", str(session.journal.path), *named, *retry])
    counts = f"{len(session.done)} of {len(session.planned)}"
    print(f"{what}; {counts} cases are in the run file", file=sys.stderr)
    print(f"go on with: {command}", file=sys.stderr)


def _say_where(session: Session) -> None:
    print(f"run file: {session.journal.path}", file=sys.stderr)
    files = session.station.snapshots
    written = " ".join(str(files[case]) for case in files if case in session.done - session.failed)
    if written:
        print(f"memory snapshots: {written} (open them at pytorch.org/memory_viz)", file=sys.stderr)
