"""Naming a module is running it: what a file, and not the command line, would have imported is asked about first."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from repshift_cli.records import UsageError, visible
from repshift_cli.registry import resolve_model


def own_models(models: Iterable[str]) -> tuple[str, ...]:
    """Those of the models that are a user's own function, or a file that names one: building them runs their code."""
    return tuple(model for model in models if resolve_model(model).name == "own")


def check_consent(file: Path, models: Sequence[str], named: Sequence[str]) -> None:
    """UsageError where `file` names models whose code would run and neither the command line nor a yes allows it.

    Somebody else's run file could name `os:abort`. On a terminal the question is asked there.
    """
    unnamed = [model for model in own_models(models) if model not in named]
    if not unnamed:
        return
    said = ", ".join(visible(model) for model in unnamed)
    if sys.stdin is not None and sys.stdin.isatty():
        print(f"{file} names {said}: going on imports that module and runs it. Go on? [y/N] ", end="", file=sys.stderr)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
        raise UsageError("nothing was run")
    option = shlex.quote(",".join(unnamed))
    raise UsageError(
        f"{file} names {said}, and going on imports that module and runs it; if you want that: --model {option}"
    )


def say_imports(profile: str | None, models: Sequence[str], named: Sequence[str]) -> None:
    """A line on stderr for every model of one's own that a workload profile, not the command line, names."""
    unnamed = [model for model in own_models(models) if model not in named] if profile else []
    if unnamed:
        print(f"profile {profile} imports and runs {', '.join(map(visible, unnamed))}", file=sys.stderr)
