"""Where a command has its cases measured: the launcher that its options name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer

from repshift_cli import registry
from repshift_cli.benchmark.launchers import Carrier, Terms
from repshift_cli.commands.shared.options import MEASURE
from repshift_cli.records import UsageError

DEFAULT = "process"
IN_PROCESS = "inline"
BUDGETS, LEAST_PATIENCE = 100, 900.0
"""A step of a case may take so many budgets, and so many seconds at least: a counter's child takes minutes."""

CaseTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        help="A case is ended when one step of it (building, a pass, a round) takes longer than this. "
        f"(default: {BUDGETS} budgets, at least {LEAST_PATIENCE:g})",
        rich_help_panel=MEASURE,
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="WHERE",
        help="Where cases are measured: process (a worker process here), or local:0,1 (a worker for each of these "
        "GPUs; on a CPU each has its share of the cores). (default: process)",
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


@contextlib.contextmanager
def launched(on: str | None, in_process: bool, case_timeout: float | None, budget: float | None) -> Iterator[Carrier]:
    """What the launcher has started, closed afterwards."""
    for option, given in (("--case-timeout", case_timeout), ("--on", on)):
        if in_process and given is not None:
            raise UsageError(f"{option} needs another process than the command's; leave out --in-process")
    patience = case_timeout or max(BUDGETS * (budget or 0), LEAST_PATIENCE)
    name, _, where = (IN_PROCESS if in_process else on or DEFAULT).partition(":")
    part = registry.find("benchmark.launchers", name)
    carrier: Carrier = registry.load(part).start(Terms(where, patience))
    try:
        yield carrier
    finally:
        carrier.close()
