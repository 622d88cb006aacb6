"""The Typer app: the commands, and what becomes of errors.

A command's file is imported when the command is called, and is light itself: it imports torch and whatever else is
heavy inside its function.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections import UserDict
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from repshift_cli import __version__
from repshift_cli.commands.shared import streams
from repshift_cli.commands.shared.output import METAVAR, with_stdout
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


COMMANDS = {
    "bench": "Time a model's variants side by side, or a whole sweep.",
    "operators": "Time attention operators side by side: exact, approximate.",
    "eval": "Measure accuracy on labelled data: at what loss?",
    "tune": "Find the schedule and the score that fit this model.",
    "profile": "Show where the time goes.",
    "analyze": "Say why a token can go.",
    "show": "Show a stored run, profile, inspection or search again.",
    "report": "Write one self-contained HTML page of stored runs.",
    "tokens": "Show which tokens stay.",
    "compare": "Lay stored runs side by side.",
    "gate": "Measure two revisions in turn and say whether head is slower.",
    "export": "Write a run for Bencher, github-action-benchmark or asv.",
    "history": "Show every case over time.",
    "explain": "Say what was found of a model.",
    "models": "List the models that --model takes, by family.",
    "methods": "List the pruning methods.",
    "metrics": "List the metrics.",
    "backends": "List the attention back ends, or why one is not here.",
    "profiles": "List the workload profiles, or print one.",
    "doctor": "Say what this machine has, and how to get what it lacks.",
}
"""The commands in the order of the help, each with the first sentence of its own; its file has the command's name."""
FUNCTIONS = {"eval": "evaluate"}
"""Commands that are not called as their functions, whose names Python has for something else."""


class Commands(UserDict[str, Any]):
    """The commands by name, each imported and built when it is first asked for."""

    def __getitem__(self, name: str) -> Any:
        if super().__getitem__(name) is None:
            self[name] = _built(name)
        return super().__getitem__(name)


def _built(name: str) -> Any:
    module = importlib.import_module(f"repshift_cli.commands.{name}")
    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=Command)(vars(module)[FUNCTIONS.get(name, name)])
    return typer.main.get_command(alone)


class Group(TyperGroup):
    """The commands, whose help needs none of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands(dict.fromkeys(COMMANDS))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The table of the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    name="repshift",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
