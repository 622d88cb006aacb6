"""`repshift bench`: sweep, measure, compare."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repshift_cli import registry
from repshift_cli.benchmark import engine
from repshift_cli.benchmark.tasks import Station
from repshift_cli.commands.shared import options
from repshift_cli.commands.shared.options import Asked
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import Bar
from repshift_cli.machine import device as devices
from repshift_cli.machine.cores import choose_threads
from repshift_cli.records import Run, UsageError, store
from repshift_cli.renderers import document_of

if TYPE_CHECKING:
    from repshift_cli.benchmark.engine import Session
    from repshift_cli.counters.base.choice import Choice
    from repshift_cli.sweep.axes import Axes
    from repshift_cli.sweep.plan import Planned


@options.sweep_options()
@output_options("run")
def bench(
    asked: Asked,
    memory_snapshot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write torch's history of allocations during one forward to this file, for the viewer at "
            "pytorch.org/memory_viz; one file per case where there are several. CUDA only.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    timing_only: Annotated[
        bool,
        typer.Option(
            "--timing-only",
            help="Measure time alone: no memory, MACs, HBM or fidelity, and attention is not verified.",
            rich_help_panel=options.MEASURE,
        ),
    ] = False,
    delay: Annotated[float, typer.Option("--delay", hidden=True)] = 0.0,
    dry_run: options.DryRun = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Run file, written after every case. (default: in repshift-runs/)",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with an interrupted run file; its own options apply.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: repeat what failed.", rich_help_panel=options.OUTPUT)
    ] = False,
    *,
    outputs: Outputs,
) -> None:
    """Time a model's variants side by side, or a whole sweep."""
    order = _order(asked, _File(out, resume, retry_failed), timing_only, delay)
    outputs.check({"--out": order.path})
    if not dry_run:
        order.check()
    device = devices.choose_device(order.sweep.device)
    planned = engine.plan_cases(order.sweep, device)
    if dry_run:
        options.list_cases(planned)
        return
    session = _session(order, device, planned, memory_snapshot)
    with _said_when_interrupted(session):
        run = engine.measure(session, registry.load(registry.find("benchmark.launchers", "inline")), Bar)
    outputs.emit(document_of(run))
    _say_where(session)
    raise typer.Exit(engine.exit_code(run))


# --- what is asked for ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _File:
    """The options that name the run file."""

    out: Path | None
    resume: Path | None
    retry_failed: bool


@dataclasses.dataclass(frozen=True)
class _Order:
    """The run file, the sweep, and the run to go on with."""

    path: Path
    sweep: Axes
    earlier: Run | None
    retry_failed: bool
    timing_only: bool
    delay: float

    def check(self) -> None:
        """UsageError where the run file cannot be written, or where a new one would take the place of a file."""
        if self.earlier is None and self.path.is_file():
            there = f"{self.path} exists already"
            raise UsageError(f"{there}; go on with it by --resume {self.path}, or choose another --out")
        store.check_writable(self.path)


def _order(asked: Asked, file: _File, timing_only: bool, delay: float) -> _Order:
    """What the options come to, every name in it checked."""
    earlier = None
    if file.resume is not None:
        named = [f"--{name.replace('_', '-')}" for name in asked.names]
        if named or file.out is not None:
            raise UsageError(f"--resume takes the options of the run file; leave out {(named or ['--out'])[0]}")
        earlier = store.load(file.resume)
    elif file.retry_failed:
        raise UsageError("--retry-failed goes with --resume RUN, which says whose failures to repeat")
    sweep = options.with_full_names(engine.sweep_of(earlier)) if earlier else options.checked_sweep(asked)
    path = file.resume or file.out or store.default_path(datetime.now(UTC), sweep.model)
    return _Order(path, sweep, earlier, file.retry_failed, timing_only, delay)


def _session(order: _Order, device: str, planned: tuple[Planned, ...], memory_snapshot: Path | None) -> Session:
    """The run made ready: a new one, or the earlier one."""
    if memory_snapshot is not None:
        if not device.startswith("cuda"):
            why = "torch keeps a history of CUDA allocations only"
            raise UsageError(f"--memory-snapshot needs a GPU: {why}; leave it out")
        store.check_writable(memory_snapshot)
    snapshots = engine.snapshot_files(memory_snapshot, planned) if memory_snapshot else {}
    choice = _choice("off" if order.timing_only else order.sweep.hbm, device)
    station = Station(device, choice, order.delay, snapshots, choose_threads(order.sweep.threads))
    settings = engine.settings_of(order.sweep, device, passes=not order.timing_only)
    if order.earlier is None:
        return engine.start(order.path, order.sweep, planned, settings, station)
    return engine.resume(order.path, order.earlier, planned, settings, station, order.retry_failed)


def _choice(asked: str, device: str) -> Choice:
    """What measures HBM traffic in this run, calibrated where it has to be."""
    from repshift_cli.counters.base.choice import choose

    with Bar(1) as bar:
        return choose(asked, device, bar.phase)


# --- what is said -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _said_when_interrupted(session: Session) -> Iterator[None]:
    """After Ctrl-C: how far the run came, and the command that goes on with it."""
    try:
        yield
    except KeyboardInterrupt:
        retry = ["--retry-failed"] if session.again - session.done else []
        command = shlex.join(["repshift", "bench", "--resume", str(session.path), *retry])
        counts = f"{len(session.done)} of {len(session.run.planned)}"
        print(f"\ninterrupted; {counts} cases are in the run file", file=sys.stderr)
        print(f"go on with: {command}", file=sys.stderr)
        raise


def _say_where(session: Session) -> None:
    print(f"run file: {session.path}", file=sys.stderr)
    files = session.station.snapshots
    written = " ".join(str(files[r.case]) for r in session.run.records if r.status == "ok" and r.case in files)
    if written:
        print(f"memory snapshots: {written} (open them at pytorch.org/memory_viz)", file=sys.stderr)
