"""What tasks need of the command's folder on another machine: the code of your own models, and small files, travel."""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from repshift_cli.machine.packages import find_spec
from repshift_cli.records import UsageError
from repshift_cli.registry import resolve_model

MOST_BYTES = 256 * 2**20
"""What may travel; larger files must be there already, on a file system that the machines share."""


@dataclass(frozen=True)
class Parcel:
    """`modules` by the place that each has below the folder it is imported from; `files` by the path they are named by,
    with size and time of change; `contents` of those that may travel."""

    folder: str
    modules: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    def open(self) -> None:
        """Make this process one that finds all of it: the modules first, the files by the names that they have there.

        UsageError where a file neither travelled nor is here.
        """
        place = Path(tempfile.mkdtemp(prefix="repshift-"))
        _write(place / "modules", self.modules)
        sys.path.insert(0, str(place / "modules"))
        if all(_mark(Path(self.folder, name)) == mark for name, mark in self.files.items()) and self.files:
            os.chdir(self.folder)
            return
        for name in self.files.keys() - self.contents.keys():
            if _mark(Path(name)) != self.files[name]:
                raise UsageError(f"{name} is not on every machine, and {_why_not(name)}")
        _write(place / "files", self.contents)
        (place / "files").mkdir(exist_ok=True)
        os.chdir(place / "files")


def packed(models: Iterable[str], named: Iterable[str | None]) -> Parcel:
    """The parcel for these models and whatever else of the options names a file or a folder here."""
    modules: dict[str, bytes] = {}
    paths = [
        name.removeprefix("hf:").removeprefix("timm:").removesuffix(":tower") for name in (*models, *named) if name
    ]
    for model in models:
        if resolve_model(model).name == "own":
            modules |= dict(_code_of(_function_of(model).partition(":")[0]))
    found = {str(f): f for path in paths for f in _files_below(Path(path))}
    files = {name: mark for name, path in found.items() if (mark := _mark(path))}
    small = sum(size for size, _ in files.values()) <= MOST_BYTES
    contents = {name: found[name].read_bytes() for name in files if small and _may_travel(name)}
    return Parcel(os.getcwd(), modules, files, contents)


def _write(folder: Path, texts: dict[str, bytes]) -> None:
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _mark(path: Path) -> tuple[int, int] | None:
    """Size and time of change, by which a file is known again; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _files_below(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (f for f in sorted(path.rglob("*")) if f.is_file())


def _may_travel(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _why_not(name: str) -> str:
    if not _may_travel(name):
        return "its path leads out of this folder; name it by a path below it and it travels, or put it there"
    return f"more than {MOST_BYTES // 2**20} MiB do not travel; put it there, under the same path"


# --- the code of your own models --------------------------------------------------------------------------------------


def _function_of(model: str) -> str:
    """`package.module:function`, read from the TOML file where the model is one."""
    if not model.endswith(".toml"):
        return model
    try:
        return str(tomllib.loads(Path(model).read_text(encoding="utf-8")).get("model", ""))
    except (OSError, ValueError):
        return ""  # planning says what is wrong with it


def _code_of(module: str, seen: set[Path] | None = None) -> Iterator[tuple[str, bytes]]:
    """A module's file, or its whole package, and what these import from beside them; what is installed stays away."""
    seen = set() if seen is None else seen
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    spec = find_spec(module.split(".")[0])
    if spec is None or not spec.origin or spec.origin in ("built-in", "frozen") or _is_installed(Path(spec.origin)):
        return
    origin = Path(spec.origin)
    root = origin.parent.parent if spec.submodule_search_locations else origin.parent
    for file in sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]:
        if file in seen:
            continue
        seen.add(file)
        content = file.read_bytes()
        yield str(file.relative_to(root)), content
        for name in _imported(content):
            yield from _code_of(name, seen)


def _is_installed(file: Path) -> bool:
    """Whether it belongs to Python or to an installed package, or to this one."""
    homes = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    homes.append(str(Path(__file__).parent.parent))
    return any(file.resolve().is_relative_to(Path(home).resolve()) for home in homes)


def _imported(content: bytes) -> set[str]:
    """The top names that a file imports by their full names."""
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):
        return set()
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    return {name.split(".")[0] for name in names}
