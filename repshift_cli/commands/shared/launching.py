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
InProcess = Annotated[
    bool,
    typer.Option(
        "--in-process",
        help="Measure in the command's own process, for a debugger: a case that crashes ends the sweep.",
        rich_help_panel=MEASURE,
    ),
]


@contextlib.contextmanager
def launched(in_process: bool, case_timeout: float | None, budget: float | None) -> Iterator[Carrier]:
    """What the launcher has started, closed afterwards."""
    if in_process and case_timeout is not None:
        raise UsageError("--case-timeout needs a process that can be ended; leave out --in-process")
    patience = case_timeout or max(BUDGETS * (budget or 0), LEAST_PATIENCE)
    part = registry.find("benchmark.launchers", IN_PROCESS if in_process else DEFAULT)
    carrier: Carrier = registry.load(part).start(Terms(patience=patience))
    try:
        yield carrier
    finally:
        carrier.close()
