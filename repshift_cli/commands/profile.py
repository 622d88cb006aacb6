"""`repshift profile`: where the time and the bytes go."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli import __version__
from repshift_cli.benchmark import engine
from repshift_cli.benchmark.launchers import Terms, inline
from repshift_cli.benchmark.tasks import Recording, Station
from repshift_cli.commands.shared import checks, operating, options
from repshift_cli.commands.shared.options import Asked
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import Bar
from repshift_cli.machine import device as devices
from repshift_cli.machine.cores import choose_threads
from repshift_cli.machine.describe import describe
from repshift_cli.machine.packages import install, is_installed
from repshift_cli.profiling import chrome_trace, digest
from repshift_cli.records import Case, Progress, UsageError, store
from repshift_cli.records.json_codec import json_schema, to_json
from repshift_cli.records.labels import labels
from repshift_cli.records.profile import PROFILE_SCHEMA_VERSION, Breakdown, ProfileRun
from repshift_cli.renderers import document_of

if TYPE_CHECKING:
    from repshift_cli.sweep.axes import Axes
    from repshift_cli.sweep.operators import OperatorAxes
    from repshift_cli.sweep.plan import Planned

NOTHING_PROFILED = 5
MOST_STEPS = 20
SHOW = "Tables"
ON_A_CPU = "profiled on a CPU: there is no device beside the host, so the host's times are all there is"
VIEWER = install("tensorboard")


@dataclasses.dataclass(frozen=True)
class Files:
    """The files asked for."""

    trace: Path | None
    tensorboard: Path | None
    summary: Path | None
    stacks: Path | None
    memory_snapshot: Path | None

    @property
    def named(self) -> dict[str, Path]:
        """Those that are asked for, by their options."""
        return {f"--{name.replace('_', '-')}": path for name, path in vars(self).items() if path is not None}

    def check(self) -> None:
        """UsageError for what cannot be written, before anything runs."""
        for path in self.named.values():
            store.check_writable(path / "trace" if path == self.tensorboard else path)


Trace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Chrome trace of all variants, for Perfetto; gz when named so.",
        rich_help_panel=options.OUTPUT,
    ),
]
TensorBoard = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for TensorBoard, one run per variant.", rich_help_panel=options.OUTPUT),
]
Summary = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The tables as JSON, for `repshift show`.", rich_help_panel=options.OUTPUT),
]
Stacks = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Folded Python stacks, for a flame graph.", rich_help_panel=options.OUTPUT),
]
MemorySnapshot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="CUDA allocations, for torch's memory viewer.", rich_help_panel=options.OUTPUT),
]
Schema = Annotated[
    bool,
    typer.Option("--schema", help="Print the JSON Schema of --summary and stop.", rich_help_panel=options.OUTPUT),
]


@options.sweep_options(without=("compile", "precision", "budget", "rounds", "warmup", "hbm"), more=operating.OPTIONS)
@output_options("profile")
def profile(
    asked: Asked,
    steps: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=MOST_STEPS, help="Forwards recorded per variant.", rich_help_panel=options.MEASURE
        ),
    ] = 5,
    dry_run: options.DryRun = False,
    by: Annotated[
        str, typer.Option(metavar="VIEW", help="Rows of the tables: part, layer, kernel, op.", rich_help_panel=SHOW)
    ] = "part",
    diff: Annotated[
        bool,
        typer.Option("--diff", help="Also what changed from variant to variant, by kernel.", rich_help_panel=SHOW),
    ] = False,
    read: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Show a stored trace instead: ours, or anyone's of torch's profiler (JSON, gz).",
            rich_help_panel=SHOW,
        ),
    ] = None,
    trace: Trace = None,
    tensorboard: TensorBoard = None,
    summary: Summary = None,
    stacks: Stacks = None,
    memory_snapshot: MemorySnapshot = None,
    schema: Schema = False,
    *,
    outputs: Outputs,
) -> None:
    """Show where the time goes. Part by part and block by block, and from where pruning pays."""
    if schema:
        typer.echo(json.dumps(profile_schema(), indent=2))
        return
    checks.check_view(by)
    by = operating.without_parts(by) if operating.are_asked(asked) else by
    files = Files(trace, tensorboard, summary, stacks, memory_snapshot)
    if read is not None:
        _only_summary(asked, files)
    if not dry_run:
        outputs.check(files.named)
        files.check()
    run = _read(read) if read is not None else _recorded(asked, steps, files, dry_run)
    if run is None:
        return
    run = dataclasses.replace(run, options=run.options | {"by": by, "diff": diff})
    if summary is not None:
        store.write_text(summary, to_json(run))
    outputs.emit(document_of(run))
    raise typer.Exit(exit_code(run))


def exit_code(run: ProfileRun) -> int:
    """0 profiled, 1 at least one variant failed, 5 nothing profiled."""
    statuses = {b.status for b in run.breakdowns}
    return 1 if "failed" in statuses else 0 if "ok" in statuses else NOTHING_PROFILED


def profile_schema() -> dict[str, Any]:
    """The JSON Schema of what --summary writes."""
    return json_schema(ProfileRun, f"repshift profile, version {PROFILE_SCHEMA_VERSION}")


# --- a stored trace ---------------------------------------------------------------------------------------------------


def _only_summary(asked: Asked, files: Files) -> None:
    """UsageError for what --read cannot go with: it runs nothing."""
    names = [*asked.names]
    names += [name for name, path in vars(files).items() if path is not None and name != "summary"]
    if names:
        raise UsageError(f"--read shows a stored trace and runs nothing; leave out --{names[0].replace('_', '-')}")


def _read(path: Path) -> ProfileRun:
    with Bar(1) as bar:
        return digest.read(path, lambda share: bar.update(Progress(f"reading {path.name}", share)))


# --- recording --------------------------------------------------------------------------------------------------------


def _recorded(asked: Asked, steps: int, files: Files, dry_run: bool) -> ProfileRun | None:
    """The sweep's profile; None where its cases were only to be listed."""
    sweep, device, planned = _planned(asked)
    if dry_run:
        from repshift_cli.commands.shared.dry_run import list_cases

        list_cases(planned)
        return None
    if files.memory_snapshot is not None and not device.startswith("cuda"):
        raise UsageError("--memory-snapshot shows CUDA's allocator, and this runs on the CPU; leave it out")
    sweep = dataclasses.replace(sweep, threads=choose_threads(sweep.threads))
    return _profiled(sweep, device, planned, steps, files)


def _planned(asked: Asked) -> tuple[Axes | OperatorAxes, str, tuple[Planned, ...]]:
    """The sweep with its batches found, the device and the cases."""
    from repshift_cli.benchmark import planning

    if operating.are_asked(asked):
        operators = operating.sweep_of(asked)
        device = devices.choose_device(operators.device)
        return operators, device, operating.named(operators, planning.plan_cases(operators, device))
    sweep = checks.checked_sweep(asked)
    checks.check_size(sweep, options.MOST_CASES)
    device = devices.choose_device(sweep.device)
    sweep = planning.with_batches(sweep, device)
    return sweep, device, planning.plan_cases(sweep, device)


def _profiled(
    sweep: Axes | OperatorAxes, device: str, planned: tuple[Planned, ...], steps: int, files: Files
) -> ProfileRun:
    """Every case in a pass of its own, then all files; an interruption before the end leaves none."""
    run = ProfileRun(
        machine=dataclasses.replace(describe(device), threads=sweep.threads),
        options=sweep.as_options() | {"steps": steps},
        breakdowns=(),
        warnings=() if device.startswith("cuda") else (ON_A_CPU,),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"repshift {__version__}",
    )
    with TemporaryDirectory(prefix="repshift-") as folder, _said_when_interrupted():
        tasks = _tasks(planned, Station(device, threads=sweep.threads), steps, Path(folder), files)
        events = engine.carry_out(list(tasks.values()), inline.start(Terms()), Bar)
        made = [event.value for event in events]
        found = dict(zip(tasks, made, strict=True))
        names = labels(p.case for p in planned)
        refused = {p.case: _refused(p, names[p.case]) for p in planned if p.refused}
        breakdowns = tuple(refused[p.case] if p.refused else found[p.case][0] for p in planned)
        run = dataclasses.replace(run, breakdowns=breakdowns)
        _write_traces(run, [trace for _, trace in made if trace is not None], files)
    return run


def _refused(planned: Planned, name: str) -> Breakdown:
    """What is said of a case that was not tried."""
    status = "failed" if planned.failed else "skipped"
    return Breakdown(name, planned.case, status, planned.refused, planned.tokens)


def _tasks(
    planned: tuple[Planned, ...], station: Station, steps: int, folder: Path, files: Files
) -> dict[Case, Recording]:
    names = labels(p.case for p in planned)
    return {
        p.case: Recording(
            station,
            Breakdown(names[p.case], p.case, tokens=p.tokens),
            steps,
            folder / f"{number}.json",
            stacks=files.stacks is not None,
            memory=files.memory_snapshot is not None,
        )
        for number, p in enumerate(planned)
        if not p.refused
    }


@contextmanager
def _said_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; no trace was written", file=sys.stderr)
        raise


# --- files ------------------------------------------------------------------------------------------------------------


def _write_traces(run: ProfileRun, recorded: list[chrome_trace.Recorded], files: Files) -> None:
    if not recorded:
        return
    if files.trace is not None:
        chrome_trace.write(files.trace, recorded, digest.metadata(run))
        _said("trace", files.trace, "open it at ui.perfetto.dev")
    if files.tensorboard is not None:
        for one in recorded:
            folder = files.tensorboard / _slug(one.name)
            folder.mkdir(parents=True, exist_ok=True)
            chrome_trace.write_for_tensorboard(folder / f"repshift.{time.time_ns() // 10**6}.pt.trace.json", one)
        needed = "" if is_installed("torch_tb_profiler") else f"{VIEWER}, then "
        _said("TensorBoard runs", files.tensorboard, f"{needed}tensorboard --logdir {files.tensorboard}")
    if files.stacks is not None:
        lines = (line for r in recorded for line in digest.folded(r.path.with_suffix(".stacks"), r.name))
        store.write_text(files.stacks, "".join(f"{line}\n" for line in lines))
        _said("stacks", files.stacks, "open them at speedscope.app, or with flamegraph.pl")
    if files.memory_snapshot is not None:
        _write_snapshots(files.memory_snapshot, recorded)


def _write_snapshots(target: Path, recorded: list[chrome_trace.Recorded]) -> None:
    """One file per variant, for the viewer takes one at a time: `m.pickle`, or `m-flash+repshift.pickle` of several."""
    for one in recorded:
        path = target if len(recorded) == 1 else target.with_name(f"{target.stem}-{_slug(one.name)}{target.suffix}")
        with store.replacing(path) as temporary:
            shutil.copyfile(one.path.with_suffix(".pickle"), temporary)
        _said("memory snapshot", path, "open it at pytorch.org/memory_viz")


def _said(what: str, path: Path, how: str) -> None:
    print(f"{what}: {path} ({how})", file=sys.stderr)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
