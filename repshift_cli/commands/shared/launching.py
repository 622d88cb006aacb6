"""Where a command has its cases measured: the launcher that its options name."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from repshift_cli import registry
from repshift_cli.benchmark import engine
from repshift_cli.benchmark.engine import Order
from repshift_cli.benchmark.launchers import Carrier, Spent, Terms
from repshift_cli.commands.shared.options import MEASURE, OUTPUT
from repshift_cli.records import UsageError
from repshift_cli.sweep.operators import OperatorAxes

DEFAULT = "process"
IN_PROCESS = "inline"
BUILT = 0.01
"""Seconds from which on a model was built, and not just taken from where it was held."""
BUDGETS, LEAST_PATIENCE = 100, 900.0
"""A step of a case may take so many budgets, and so many seconds at least: a counter's child takes minutes."""

CaseTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        help="A case is ended when one step of it (building, a pass, a round) takes longer than this. "
        f"(default: {BUDGETS} budgets, at least {LEAST_PATIENCE:g}; --resume keeps what was given)",
        rich_help_panel=MEASURE,
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Where cases are measured: process (a worker process here), local:0,1 (a worker for each of these "
        "GPUs; on a CPU each has its share of the cores), or ray (a running Ray cluster, else one made here; "
        "ray://HOST:PORT for a far one). (default: process)",
        rich_help_panel=MEASURE,
    ),
]
InProcess = Annotated[
    bool,
    typer.Option(
        "--in-process",
        help="Measure in the command's own process, for a debugger: a case that crashes ends the sweep.",
        rich_help_panel=MEASURE,
    ),
]


Timing = Annotated[
    bool,
    typer.Option(
        "--timing",
        help="Say at the end what the run itself took: to start its workers, to build the models, to measure.",
        rich_help_panel=OUTPUT,
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Comparisons that one machine may measure at once, each on cores of its own. (default: one on a CPU; "
        "under --on ray one for each GPU)",
        rich_help_panel=MEASURE,
    ),
]
DeviceKind = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="With --on ray: measure on devices with this in their name only, like H100.",
        rich_help_panel=MEASURE,
    ),
]


@dataclass(frozen=True)
class Where:
    """The options that say where cases are measured; None where one was not given."""

    on: str | None = None
    in_process: bool = False
    case_timeout: float | None = None
    parallel: int | None = None
    device_kind: str | None = None

    def check(self) -> None:
        """UsageError for options that do not go together."""
        for name in ("case_timeout", "on", "parallel"):
            if self.in_process and getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} needs another process than the command's; leave out --in-process")
        if self.device_kind is not None and (self.on or "").partition(":")[0] != "ray":
            raise UsageError("--device-kind picks among the machines of a cluster; it goes with --on ray")


@contextlib.contextmanager
def launched(where: Where, order: Order) -> Iterator[Carrier]:
    """What the launcher has started for the sweep, closed afterwards."""
    sweep = order.sweep
    where.check()
    patience = where.case_timeout or order.manner.case_timeout or max(BUDGETS * (sweep.budget or 0), LEAST_PATIENCE)
    name, _, argument = (IN_PROCESS if where.in_process else where.on or DEFAULT).partition(":")
    part = registry.find("benchmark.launchers", name)
    if part.name == "ray" and order.manner.memory_snapshot is not None:
        raise UsageError("--memory-snapshot writes on the machine that measures; leave it or --on ray out")
    models = (sweep.model,) if isinstance(sweep, OperatorAxes) else sweep.model
    terms = Terms(
        argument,
        patience,
        where.parallel,
        where.device_kind,
        sweep.device,
        engine.hbm_of(order),
        sweep.threads,
        tuple(filter(None, models)),
        tuple(filter(None, (sweep.data, sweep.weights))),
    )
    carrier: Carrier = registry.load(part).start(terms)
    try:
        yield carrier
    finally:
        carrier.close()


def spent_in_words(spent: Spent, seconds: float) -> str:
    """Where the time of a run went, of `seconds` in all."""
    starts = f"{len(spent.starts)} worker{'s' * (len(spent.starts) != 1)} started"
    if spent.starts:
        each, imports = (statistics.median(values) for values in (spent.starts, spent.imports))
        starts += f", ready after {each:.1f} s each ({imports:.1f} s of imports)"
    built = [took for took in spent.building if took >= BUILT]
    models = f"models built {len(built)} times in {len(spent.building)} comparisons, {sum(built):.1f} s in all"
    return f"timing: {seconds:.1f} s in all; {starts}; {models}"
