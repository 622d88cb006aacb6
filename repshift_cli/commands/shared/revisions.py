"""The two sides of a gate made ready: revisions checked out, trees built, each proven to run its own code."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repshift_cli.gate import revisions
from repshift_cli.gate.process import Side
from repshift_cli.gate.verdict import NoBase
from repshift_cli.records import UsageError

SECONDS_BETWEEN = 60.0
"""Between two words on rounds where there is no terminal."""


@contextlib.contextmanager
def both_sides(
    base: str | None,
    head: str | None,
    base_python: str | None,
    head_python: str | None,
    setup: str | None,
    folder: Path,
    options: dict[str, Any],
) -> Iterator[tuple[Side, Side]]:
    """Both sides ready to run; without a base both are this folder as it is. Worktrees are gone afterwards."""
    here = Path.cwd().resolve()
    pythons = (base_python or sys.executable, head_python or sys.executable)
    with contextlib.ExitStack() as stack:
        if base is None:
            made = [
                revisions.make(n, "this folder", here, Path(), p, here)
                for n, p in zip(("base", "head"), pythons, strict=True)
            ]
        else:
            top = revisions.repository(here)
            for place in revisions.tidy(top):
                say(f"removed what a gate that was killed left behind: {place}")
            inside = here.relative_to(top.resolve())
            made = [
                _side(stack, name, ref, top, inside, python)
                for name, ref, python in (("base", base, pythons[0]), ("head", head, pythons[1]))
            ]
        if setup is not None:
            for side in made if base is not None else made[:1]:
                say(f"{side.name}: {setup}")
                revisions.set_up(side, setup, folder / f"{side.name}-setup.log")
        old, new = (revisions.with_python(side) for side in made)
        _check_origins(old, new, options, base is not None)
        yield old, new


def _side(stack: contextlib.ExitStack, name: str, ref: str | None, top: Path, inside: Path, python: str) -> Side:
    if ref is None:
        return revisions.make(name, revisions.state_of(top), top, inside, python, top)
    commit = revisions.commit_of(ref, top)
    words = f"{ref} ({commit[:10]})" if not commit.startswith(ref) else commit[:10]
    say(f"{name}: checking out {words}")
    tree = stack.enter_context(revisions.worktree(top, commit))
    return revisions.make(name, words, tree, inside, python, top)


def _check_origins(old: Side, new: Side, options: dict[str, Any], from_git: bool) -> None:
    """Each side must import its own tree's packages: else both would run the same code and every gate would pass."""
    models = options.get("model", [])
    own = {m.partition(":")[0].partition(".")[0] for m in ([models] if isinstance(models, str) else models) if ":" in m}
    names = ["repshift_cli", *sorted(own - {"hf"})]
    found = {side.name: revisions.origins(side, names) for side in (old, new)}
    from_trees = False
    for side in (old, new):
        for package, origin in found[side.name].items():
            within = origin is not None and Path(origin).resolve().is_relative_to(side.tree.resolve())
            mine = within or any((root / package).exists() for root in (side.tree, side.tree / "src"))
            from_trees |= within
            if origin is None:
                raise NoBase(f"no base: {package} cannot be imported on {side.name} ({side.words})")
            if from_git and mine and not within:
                raise NoBase(
                    f"environment mismatch: {side.name} would import {package} from {origin}, not from its own tree; "
                    "an editable install leads there; give each tree an environment of its own (--setup, --base-python)"
                )
    if from_git and not from_trees and old.python == new.python:
        raise UsageError(
            "both sides would run the same code: the models come from the installed repshift, not from here; "
            "gate a model of your own (package.module:function) or two environments (--base-python, --head-python)"
        )


_said: list[float] = []
"""When a word was last printed where there is no terminal."""


def _is_due() -> bool:
    return not _said or time.monotonic() - _said[-1] >= SECONDS_BETWEEN


def say(text: str, routine: bool = False) -> None:
    """A word on stderr while it works: on a terminal in one line, elsewhere of what is `routine` one a minute."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text and (not routine or _is_due()):
        print(text, file=sys.stderr, flush=True)
        _said[:] = [time.monotonic()]
