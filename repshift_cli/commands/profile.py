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
from repshift_cli.commands.shared import options
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.machine import device as devices
from repshift_cli.machine.describe import describe
from repshift_cli.machine.packages import is_installed
from repshift_cli.profiling import chrome_trace, digest
from repshift_cli.records import Case, Progress, UsageError, store
from repshift_cli.records.json_codec import json_schema, to_json, to_plain
from repshift_cli.records.profile import PROFILE_SCHEMA_VERSION, Breakdown, ProfileRun
from repshift_cli.renderers import document_of

if TYPE_CHECKING:
    from repshift_cli.sweep.axes import Axes
    from repshift_cli.sweep.plan import Planned

NOTHING_PROFILED = 5
MOST_STEPS = 20
SHOW = "Tables"
ON_A_CPU = "profiled on a CPU: there is no device beside the host, so the host's times are all there is"
VIEWER = "pip install 'repshift[tensorboard]'"


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


@output_options("profile")
def profile(
    model: options.Model = None,
    keep: options.Keep = None,
    layers: options.Layers = None,
    variant: options.Variant = None,
    batch: options.Batch = None,
    dtype: options.Dtype = None,
    image_size: options.ImageSize = None,
    frames: options.Frames = None,
    tokens: options.Tokens = None,
    operation: options.Operation = None,
    distance: options.Distance = None,
    form: options.Form = None,
    removal: options.Removal = None,
    protect: options.Protect = None,
    profile: options.Profile = None,
    weights: options.Weights = None,
    data: options.Data = None,
    device: options.Device = None,
    cuda_graph: options.CudaGraph = False,
    seed: options.Seed = None,
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
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Chrome trace of all variants, for Perfetto; gz when named so.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for TensorBoard, one run per variant.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The tables as JSON, for `repshift show`.", rich_help_panel=options.OUTPUT),
    ] = None,
    stacks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Folded Python stacks, for a flame graph.", rich_help_panel=options.OUTPUT),
    ] = None,
    memory_snapshot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CUDA allocations, for torch's memory viewer.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Print the JSON Schema of --summary and stop.", rich_help_panel=options.OUTPUT),
    ] = False,
    *,
    outputs: Outputs,
) -> None:
    """Show where the time goes, part by part and block by block, and from where pruning pays."""
    given = options.given(locals())
    if schema:
        typer.echo(json.dumps(profile_schema(), indent=2))
        return
    options.check_view(by)
    files = Files(trace, tensorboard, summary, stacks, memory_snapshot)
    views = {"by": by, "diff": diff}
    if read is not None:
        _only_summary(given, profile, files)
    if not dry_run:
        outputs.check(files.named)
        files.check()
    if read is not None:
        run = _read(read)
        run = dataclasses.replace(run, options=run.options | views)
    else:
        sweep = options.sweep_of(given, profile)
        where = devices.choose_device(sweep.device)
        planned = options.plan_cases(sweep, where)
        if dry_run:
            options.list_cases(planned)
            return
        if memory_snapshot is not None and not where.startswith("cuda"):
            raise UsageError("--memory-snapshot shows CUDA's allocator, and this runs on the CPU; leave it out")
        run = _profiled(sweep, where, planned, steps, views, files)
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


def _only_summary(given: dict[str, Any], profile: str | None, files: Files) -> None:
    """UsageError for what --read cannot go with: it runs nothing."""
    names = [*given, *(["profile"] if profile else [])]
    names += [name for name, path in vars(files).items() if path is not None and name != "summary"]
    if names:
        raise UsageError(f"--read shows a stored trace and runs nothing; leave out --{names[0].replace('_', '-')}")


def _read(path: Path) -> ProfileRun:
    from repshift_cli.commands.shared.progress import Bar

    with Bar(1) as bar:
        return digest.read(path, lambda share: bar.update(Progress(f"reading {path.name}", share)))


# --- recording --------------------------------------------------------------------------------------------------------


def _profiled(
    sweep: Axes, device: str, planned: tuple[Planned, ...], steps: int, views: dict[str, Any], files: Files
) -> ProfileRun:
    """Every case in a pass of its own, then all files; an interruption before the end leaves none."""
    options = {k: v for k, v in to_plain(sweep).items() if v not in (None, [], False)}
    run = ProfileRun(
        machine=describe(device),
        options=options | views | {"steps": steps},
        breakdowns=(),
        warnings=() if device.startswith("cuda") else (ON_A_CPU,),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"repshift {__version__}",
    )
    with TemporaryDirectory(prefix="repshift-") as folder, _said_when_interrupted():
        found = list(_recorded(planned, steps, device, Path(folder), files))
        run = dataclasses.replace(run, breakdowns=tuple(b for b, _ in found))
        _write_traces(run, [r for _, r in found if r is not None], files)
    return run


@contextmanager
def _said_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; no trace was written", file=sys.stderr)
        raise


def _recorded(
    planned: tuple[Planned, ...], steps: int, device: str, folder: Path, files: Files
) -> Iterator[tuple[Breakdown, chrome_trace.Recorded | None]]:
    """Each case's breakdown and its trace; a case that fails gives the reason, and the others go on."""
    from repshift_cli.benchmark import builder
    from repshift_cli.benchmark.runner import reason_of
    from repshift_cli.commands.shared.progress import Bar

    workshop = builder.Workshop(device)
    name_of = _names([p.case for p in planned])
    with Bar(len(planned)) as bar:
        for number, p in enumerate(planned):
            about = Breakdown(name_of(p.case), p.case, tokens=p.tokens)
            bar.phase(f"{about.name}: building and warming up" if not p.refused else about.name)
            try:
                if p.refused:
                    yield dataclasses.replace(about, status="skipped", reason=p.refused), None
                else:
                    yield _record_one(about, workshop, steps, folder / f"{number}.json", files, bar)
            except UsageError:
                raise
            except Exception as error:
                yield dataclasses.replace(about, status="failed", reason=reason_of(error)), None
            bar.next()


def _record_one(
    about: Breakdown, workshop: Any, steps: int, path: Path, files: Files, bar: Any
) -> tuple[Breakdown, chrome_trace.Recorded]:
    from repshift_cli.profiling import recorder

    assert about.case is not None
    step = workshop.prepare(about.case)
    about = dataclasses.replace(about, kernel=workshop.parts.verify(step))
    bar.update(Progress(f"{about.name}: recording", 0.5))
    recorder.record(step, path, steps)
    found = digest.digest(about, path)
    if files.stacks is not None:
        recorder.record_stacks(step, path.with_suffix(".stacks"))
    if files.memory_snapshot is not None:
        recorder.record_memory(step, path.with_suffix(".pickle"))
    return found


def _names(cases: list[Case]) -> Any:
    """How variants are called: by what tells them apart, the model and the batch only where these vary."""
    from repshift_cli.renderers.sheets.run import labeller

    label = labeller(cases)
    several = {
        name
        for name in ("model", "batch", "dtype", "image_size", "frames", "length")
        if len({getattr(c, name) for c in cases}) > 1
    }

    def name_of(case: Case) -> str:
        fields = {"model": case.model, "batch": f"batch {case.batch}", "dtype": case.dtype}
        fields |= {"image_size": f"{case.image_size} px", "frames": f"{case.frames} frames"}
        fields |= {"length": f"{case.length} tokens"}
        return " ".join([*(text for name, text in fields.items() if name in several), label(case)])

    return name_of


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
