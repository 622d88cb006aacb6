"""Workload profiles: TOML files whose keys are the names of a sweep's options, shipped ones and the user's own.

A profile that names operators (`operator = [...]`) is one of `repshift operators`, every other one of `repshift bench`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from repshift_cli.records import OPERATORS, UsageError, one_line
from repshift_cli.records.files import check_regular, exists
from repshift_cli.sweep import operators, parsing
from repshift_cli.sweep.axes import Axes, merge
from repshift_cli.sweep.operators import OperatorAxes
from repshift_cli.sweep.parsing import near, text_of


def shipped_profiles() -> dict[str, Path]:
    """The profiles that come with repshift, by name: beside this file in an install, one folder up in a checkout."""
    here = Path(__file__).parent.parent
    folder = here / "profiles" if (here / "profiles").is_dir() else here.parent / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def profile_path(name: str) -> Path:
    """The file of a shipped profile's name, or of a path; UsageError with the nearest names otherwise."""
    shipped = shipped_profiles()
    if name in shipped:
        return shipped[name]
    if name.endswith(".toml") or exists(Path(name)):
        return Path(name)
    raise UsageError(f"unknown profile {name!r}: {near(name, shipped)}`repshift profiles` lists all of them")


def sweep_of(profile: Mapping[str, Any], given: Mapping[str, Any]) -> Axes | OperatorAxes:
    """A loaded profile's sweep, with the options given explicitly in their place."""
    kind = OperatorAxes if command_of(profile) == OPERATORS else Axes
    return kind.from_options(merge(profile, given))


def command_of(profile: Mapping[str, Any]) -> str:
    """The command that a loaded profile is for: `operators` or `bench`."""
    return OPERATORS if "operator" in profile else "bench"


def load_profile(name: str, command: str | None = None) -> dict[str, Any]:
    """A profile's options as it writes them, with its `title` and, where it has any, its `thresholds`.

    Every value is checked; what cannot be used is a UsageError with the file, the line and the key, and so is a profile
    that is for another `command` than the one named.
    """
    path = profile_path(name)
    check_regular(path, 2**20)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UsageError(f"cannot read the profile {path}: {reason}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _malformed(path, text, str(error)) from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, nested too deep
        raise UsageError(f"{path}: malformed TOML: {one_line(error)}") from error
    if command not in (None, command_of(table)):
        raise UsageError(f"{path} is a profile of `repshift {command_of(table)}`, not of `repshift {command}`")
    return _checked(path, text, table)


def _checked(path: Path, text: str, table: dict[str, Any]) -> dict[str, Any]:
    profile: dict[str, Any] = {}
    per_layer = True in (table.get("per-layer"), table.get("per_layer"))
    own = partial(parsing.parser_of, per_layer=per_layer)
    parser_of = operators.parser_of if command_of(table) == OPERATORS else own
    for key, value in table.items():
        name = key.replace("-", "_")
        try:
            if name in profile:
                raise ValueError("is written twice, with - and with _; keep one of them")
            _check(name, value, parser_of)
        except ValueError as error:
            raise UsageError(f"{path}:{_line_of(text, key)}: {key}: {error}") from error
        profile[name] = value
    if "title" not in profile:
        raise UsageError(f'{path}:1: title: missing; add a line like title = "what this profile is for"')
    return profile


def _check(name: str, value: Any, parser_of: Callable[[str], Callable[[Any], Any]]) -> None:
    if name == "title":
        text_of(value)
    elif name == "thresholds":
        if not isinstance(value, dict):
            raise ValueError("is a table; write it as [thresholds]")
    else:
        parser_of(name)(value)


KEY = r"\s*(?:([\w\"'.-]+)\s*=|\[+([\w\"'.-]+)\]+\s*$)"
"""The start of a line that sets a key or opens a table."""


def _malformed(path: Path, text: str, message: str) -> UsageError:
    """tomllib's message with the file, the line, and the key that the line belongs to."""
    lines = text.splitlines() or [""]
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", message)
    number = int(place[1]) if place and place[1] else len(lines)
    what = message[: place.start()] if place else message
    keys = [m[1] or m[2] for line in lines[:number] if (m := re.match(KEY, line))]
    key = keys[-1] if keys and "Expected '='" not in what else lines[number - 1].strip()
    return UsageError(f"{path}:{number}: {key}: malformed TOML: {what}")


def _line_of(text: str, key: str) -> int:
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf"\s*\[*[\"']?{re.escape(key)}[\"']?\]*\s*(?:[=.]|$)", line):
            return number
    return 1
