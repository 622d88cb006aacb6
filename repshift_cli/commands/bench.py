"""`repshift bench`: sweep, measure, compare."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli import __version__
from repshift_cli.commands.shared import options
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.machine import device as devices
from repshift_cli.machine.describe import describe
from repshift_cli.records import SCHEMA_VERSION, Case, Record, Run, UsageError, store
from repshift_cli.records.json_codec import to_plain
from repshift_cli.renderers import document_of
from repshift_cli.sweep import axes, profiles
from repshift_cli.sweep.axes import Axes

if TYPE_CHECKING:
    from repshift_cli.benchmark.builder import Workshop
    from repshift_cli.benchmark.runner import Settings
    from repshift_cli.counters.base.choice import Choice
    from repshift_cli.sweep.plan import Planned

PRECISION = {"cuda": 0.005, "cpu": 0.01}
BUDGET = {"cuda": 5.0, "cpu": 6.0}
NOTHING_MEASURED = 5
ON_A_CPU = "measured on a CPU: there is no HBM, clock or GPU memory to measure"
CPU_FLASH = ", and `flash` is torch's CPU flash kernel"


@output_options("run")
def bench(
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
    compile: options.Compile = False,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Stop when every speed-up's interval has a half-width below this share. "
            "(default: 0.005 on CUDA, 0.01 on a CPU)",
            rich_help_panel=options.MEASURE,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS",
            help="Seconds of timing per case after which a comparison stops. (default: 5 on CUDA, 6 on a CPU)",
            rich_help_panel=options.MEASURE,
        ),
    ] = None,
    rounds: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Exactly this many rounds instead of precision and budget.",
            rich_help_panel=options.MEASURE,
        ),
    ] = None,
    seed: options.Seed = None,
    hbm: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What measures HBM traffic: auto (the best that passes its calibration here), cupti, ncu, gpm, model "
            "(arithmetic only) or off. See `repshift doctor --counters`. (default: auto)",
            rich_help_panel=options.MEASURE,
        ),
    ] = None,
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
    given = options.given(locals())
    path, sweep, earlier = _what_to_run(given, profile, out, resume, retry_failed)
    sweep = options.with_full_names(sweep)
    options.check_scoring(given, sweep)
    outputs.check({"--out": path})
    if not dry_run:
        _check_run_file(path, new=earlier is None)
    where = devices.choose_device(sweep.device)
    planned = options.plan_cases(sweep, where)
    if dry_run:
        options.list_cases(planned)
        return
    snapshot = _snapshots(memory_snapshot, where, planned)
    settings = dataclasses.replace(_settings(sweep, where), passes=not timing_only)
    choice = _choice("off" if timing_only else sweep.hbm, where)
    if earlier is None:
        run = _started(path, sweep, where, planned, settings)
    else:
        run = _continued(path, earlier, where, planned)
    run = dataclasses.replace(run, calibrations=choice.calibrations, schema=SCHEMA_VERSION)
    again = {r.case for r in run.records if retry_failed and r.status == "failed"}
    workshop = _workshop(where, delay, choice, snapshot)
    run = _measure_all(path, run, planned, workshop, settings, again)
    outputs.emit(document_of(run))
    print(f"run file: {path}", file=sys.stderr)
    if snapshot is not None:
        written = " ".join(str(snapshot(r.case)) for r in run.records if r.status == "ok")
        print(f"memory snapshots: {written} (open them at pytorch.org/memory_viz)", file=sys.stderr)
    raise typer.Exit(exit_code(run))


def exit_code(run: Run) -> int:
    """0 measured, 1 at least one case failed, 5 nothing measured."""
    statuses = {record.status for record in run.records}
    return 1 if "failed" in statuses else 0 if "ok" in statuses else NOTHING_MEASURED


# --- what is asked for ------------------------------------------------------------------------------------------------


def _what_to_run(
    given: Mapping[str, Any], profile: str | None, out: Path | None, resume: Path | None, retry_failed: bool
) -> tuple[Path, Axes, Run | None]:
    """The run file, the sweep, and the run to go on with."""
    if resume is not None:
        named = [f"--{name.replace('_', '-')}" for name in given] + ["--profile"] * (profile is not None)
        if named or out is not None:
            raise UsageError(f"--resume takes the options of the run file; leave out {(named or ['--out'])[0]}")
        earlier = store.load(resume)
        return resume, Axes.from_options(_options_of(earlier)), earlier
    if retry_failed:
        raise UsageError("--retry-failed goes with --resume RUN, which says whose failures to repeat")
    sweep = Axes.from_options(axes.merge(profiles.load_profile(profile) if profile else {}, given))
    return out or store.default_path(datetime.now(UTC), sweep.model), sweep, None


def _options_of(run: Run) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(Axes)}
    return {name: value for name, value in run.options.items() if name in known}


def _settings(sweep: Axes, device: str) -> Settings:
    from repshift_cli.benchmark.runner import Settings

    kind = device.partition(":")[0]
    return Settings(sweep.precision or PRECISION[kind], sweep.budget or BUDGET[kind], sweep.rounds, sweep.seed)


def _choice(asked: str, device: str) -> Choice:
    """What measures HBM traffic in this run, calibrated where it has to be."""
    from repshift_cli.commands.shared.progress import Bar
    from repshift_cli.counters.base.choice import choose

    with Bar(1) as bar:
        return choose(asked, device, bar.phase)


def _snapshots(file: Path | None, device: str, planned: tuple[Planned, ...]) -> Callable[[Case], Path] | None:
    """Where each case's allocations go: the file itself for one case, else numbered files beside it."""
    if file is None:
        return None
    if not device.startswith("cuda"):
        raise UsageError("--memory-snapshot needs a GPU: torch keeps a history of CUDA allocations only; leave it out")
    store.check_writable(file)
    cases = [p.case for p in planned if not p.refused]
    if len(cases) == 1:
        return lambda case: file
    names = {case: f"{file.stem}-{number}-{case.variant}{file.suffix}" for number, case in enumerate(cases, 1)}
    return lambda case: file.with_name(names[case])


def _check_run_file(path: Path, new: bool) -> None:
    """UsageError where the run file cannot be written, or where a new one would take the place of a file."""
    if new and path.is_file():
        raise UsageError(f"{path} exists already; go on with it by --resume {path}, or choose another --out")
    store.check_writable(path)


# --- measuring --------------------------------------------------------------------------------------------------------


def _started(path: Path, sweep: Axes, device: str, planned: tuple[Planned, ...], settings: Settings) -> Run:
    """A new run file as it stands before the first case; its options hold the settings that really apply."""
    sweep = dataclasses.replace(sweep, precision=settings.precision, budget=settings.budget)
    run = Run(
        machine=describe(device),
        options={k: v for k, v in to_plain(sweep).items() if v not in (None, [], False)},
        planned=tuple(p.case for p in planned),
        records=tuple(Record(p.case, "skipped", p.refused, p.tokens) for p in planned if p.refused),
        warnings=() if device.startswith("cuda") else (_on_a_cpu(planned),),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"repshift {__version__}",
    )
    store.create(path, run)
    return run


def _continued(path: Path, earlier: Run, device: str, planned: tuple[Planned, ...]) -> Run:
    """The earlier run, where this machine and this version measure the same: UsageError otherwise."""
    here = describe(device)
    for name in ("device_name", "uuid", "driver", "cpu"):
        if getattr(earlier.machine, name) != getattr(here, name):
            raise UsageError(f"{path} was begun on another machine ({name}: {getattr(earlier.machine, name)})")
    if earlier.machine.packages.get("torch") != here.packages.get("torch"):
        raise UsageError(f"{path} was begun with torch {earlier.machine.packages.get('torch')}; use that, or a new run")
    if tuple(p.case for p in planned) != earlier.planned:
        raise UsageError(f"{path} has other cases than its options give now: the model or repshift changed; start anew")
    return earlier


def _on_a_cpu(planned: tuple[Planned, ...]) -> str:
    return ON_A_CPU + CPU_FLASH * any(p.case.attention == "flash" for p in planned)


def _workshop(device: str, delay: float, choice: Choice, snapshot: Callable[[Case], Path] | None) -> Workshop:
    """`delay` makes every forward longer by that share, for the gate's test of itself."""
    from repshift_cli.benchmark.builder import Workshop

    return Workshop(device, delay, choice, snapshot)


def _measure_all(
    path: Path, run: Run, planned: tuple[Planned, ...], workshop: Workshop, settings: Settings, again: set[Case]
) -> Run:
    """Every comparison that is not yet in the run or has a case to measure `again`, each record on disk at once."""
    from repshift_cli.benchmark import runner
    from repshift_cli.commands.shared.progress import Bar
    from repshift_cli.sweep import plan

    done = {record.case for record in run.records} - again
    blocks = [block for block in plan.comparisons(planned) if any(p.case not in done for p in block)]
    try:
        with Bar(len(blocks)) as bar:
            for block in blocks:
                wanted = {p.case for p in block} - done
                broken = {r.case for r in run.records if r.status == "failed"} - wanted
                cases = [(p.case, p.tokens) for p in block]
                for record in _records(runner, workshop, cases, wanted, settings, bar, broken):
                    run = store.append(path, run, record)
                    done.add(record.case)
                bar.next()
    except KeyboardInterrupt:
        retry = ["--retry-failed"] if again - done else []
        command = shlex.join(["repshift", "bench", "--resume", str(path), *retry])
        print(f"\ninterrupted; {len(done)} of {len(run.planned)} cases are in the run file", file=sys.stderr)
        print(f"go on with: {command}", file=sys.stderr)
        raise
    return run


def _records(
    runner: Any, workshop: Any, cases: Any, wanted: set[Case], settings: Settings, bar: Any, broken: set[Case]
) -> Any:
    """The comparison's records; a model that cannot be built fails its cases, not the sweep."""
    bar.phase(f"building {cases[0][0].model}")
    try:
        workshop.subject(cases[0][0])
    except UsageError:
        raise
    except Exception as error:
        yield from (runner.failed(case, tokens, error) for case, tokens in cases if case in wanted)
        return
    yield from runner.compare(cases, wanted, workshop.parts, settings, bar.update, broken)
