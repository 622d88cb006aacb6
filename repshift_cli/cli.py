"""The Typer app: the commands, and what becomes of errors.

A command's file is light: it imports torch and whatever else is heavy inside its function.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from repshift_cli import __version__
from repshift_cli.commands.analyze import analyze
from repshift_cli.commands.backends import backends
from repshift_cli.commands.bench import bench
from repshift_cli.commands.compare import compare
from repshift_cli.commands.doctor import doctor
from repshift_cli.commands.eval import evaluate
from repshift_cli.commands.explain import explain
from repshift_cli.commands.export import export
from repshift_cli.commands.gate import gate
from repshift_cli.commands.history import history
from repshift_cli.commands.methods import methods
from repshift_cli.commands.metrics import metrics
from repshift_cli.commands.models import models
from repshift_cli.commands.operators import operators
from repshift_cli.commands.profile import profile
from repshift_cli.commands.profiles import profiles
from repshift_cli.commands.report import report
from repshift_cli.commands.shared import streams
from repshift_cli.commands.shared.output import METAVAR, with_stdout
from repshift_cli.commands.show import show
from repshift_cli.commands.tokens import tokens
from repshift_cli.records import RepshiftError, UsageError, one_line, printable


class Command(TyperCommand):
    """A command whose options are shown in Rich's panels; the app's own help is plain, for speed."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings | {"rich_markup_mode": "rich"})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """An output option without a file writes to stdout."""
        outputs = {name for option in self.params if option.metavar == METAVAR for name in option.opts}
        return super().parse_args(ctx, with_stdout(args, outputs))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Without what is taken only to be refused, which has no name."""
        return [piece for piece in super().collect_usage_pieces(ctx) if piece.strip("[].")]


app = typer.Typer(
    name="repshift",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
NAMES: dict[Any, str] = {evaluate: "eval"}
"""Commands that are not called as their functions, whose names Python has for something else."""
for command in (
    bench,
    operators,
    evaluate,
    profile,
    analyze,
    show,
    report,
    tokens,
    compare,
    gate,
    export,
    history,
    explain,
    models,
    methods,
    metrics,
    backends,
    profiles,
    doctor,
):
    app.command(NAMES.get(command), cls=Command)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"repshift {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors; may stand anywhere.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Does dropping tokens by representation shift make a model faster on this device, and at what loss?"""


def main() -> None:
    """The console script: every error becomes one line on stderr and an exit code; --debug shows the traceback."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler chatters on stderr otherwise
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # so does its allocator, of blocks older than a profile
    streams.prepare()
    arguments, debug = debug_first(sys.argv[1:])
    streams.end(run(arguments, debug))


def run(arguments: list[str], debug: bool) -> int:
    """Run one command line and give the exit code."""
    try:
        app(arguments, prog_name="repshift")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of a file that is a pipe
        return 1
    except Exception as error:
        return _report(error, debug)
    return 0


def _report(error: Exception, debug: bool) -> int:
    if isinstance(error, OSError) and error.filename is not None:  # a name too long, a folder without permission
        error = UsageError(f"{error.strerror}: {str(error.filename)[:200]}")
    known = isinstance(error, RepshiftError)
    if debug:
        traceback.print_exception(error)
    if known:
        print(f"error: {printable(str(error))}", file=sys.stderr)
    elif not debug:
        what = f"{type(error).__name__}: {one_line(error)}"
        print(f"internal error: {what}; run again with --debug for the traceback", file=sys.stderr)
    return error.exit_code if isinstance(error, RepshiftError) else 1


def debug_first(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments with `--debug` in front, wherever it stood before a `--`, and whether it was there."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before = [a for a in arguments[:end] if a != "--debug"]
    debug = len(before) < end
    return (["--debug"] if debug else []) + before + arguments[end:], debug
