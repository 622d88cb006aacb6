"""Where a run is shown: the table, or JSON, CSV and Markdown in files or alone on stdout."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repshift_cli.records import Run, UsageError
from repshift_cli.records.profile import ProfileRun
from repshift_cli.records.store import check_writable, write_text

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = "-"


def check_outputs(json_to: str | None, csv_to: str | None, markdown_to: str | None) -> None:
    """UsageError for targets that cannot be; to be called before anything is measured."""
    named = [(f"--{name}", target) for name, target in _targets(json_to, csv_to, markdown_to)]
    files = [(option, str(Path(target).resolve()) if target != STDOUT else target) for option, target in named]
    for i, (option, target) in enumerate(files):
        clash = next((other for other, same in files[:i] if same == target), None)
        if clash:
            place = "stdout (-)" if target == STDOUT else target
            raise UsageError(f"{clash} and {option} both write to {place}; give one of them another file")
    for _, target in named:
        if target != STDOUT and not _is_stream(Path(target)):
            check_writable(Path(target))


def emit(
    run: Run | ProfileRun,
    json_to: str | None,
    csv_to: str | None,
    markdown_to: str | None,
    console: Console | None = None,
) -> None:
    """Write the outputs asked for; the table goes to stdout (`console`) unless one of them has stdout to itself."""
    check_outputs(json_to, csv_to, markdown_to)
    prepare_stdout()
    targets = _targets(json_to, csv_to, markdown_to)
    for name, target in targets:
        text = io.StringIO()
        _renderer(name).render(run, text)
        write(target, text.getvalue())
    if all(target != STDOUT for _, target in targets):
        _renderer("table").render(run, sys.stdout, console)


def prepare_stdout() -> None:
    """A terminal without Unicode shows ? for a dash."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _targets(json_to: str | None, csv_to: str | None, markdown_to: str | None) -> list[tuple[str, str]]:
    named = (("json", json_to), ("csv", csv_to), ("markdown", markdown_to))
    return [(name, target) for name, target in named if target is not None]


def _renderer(name: str) -> Any:
    return importlib.import_module(f"repshift_cli.renderers.{name}")


def write(target: str, text: str) -> None:
    """Write text to stdout (`-`), a stream or a file, which is replaced whole."""
    if target == STDOUT:
        sys.stdout.write(text)
    elif _is_stream(Path(target)):
        Path(target).write_text(text, encoding="utf-8")
    else:
        write_text(Path(target), text)


def _is_stream(path: Path) -> bool:
    """A pipe or a device, such as /dev/stderr: written to, never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()
