"""The parts that are here, by file name and by entry point, found without importing any of them.

A room is a folder of this package; each of its files is a part, named like the file and described by the first line of
its docstring. Other packages add parts through the entry point groups `repshift.attention`, `repshift.models` and
`repshift.reduction` (or `repshift.pruning`, its older name). What planning needs of a part stands as literals at its
top level and is read from the source. What a part must have is the Protocol in its room's `__init__`, against which it
is checked when it is loaded.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import difflib
import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin, get_type_hints

from repshift_cli.machine.packages import find_spec
from repshift_cli.records import Option, RepshiftError, UsageError, one_line, option_order

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Room(NamedTuple):
    """What a room's parts are called, the command that says more, and the Protocol in its `__init__` that they fulfil.

    Of the members `one_of`, which have the default None there, a part has one.
    """

    what: str
    command: str
    contract: str | None
    one_of: tuple[str, ...] = ()


ROOMS = {
    "attention": Room("attention back end", "repshift backends", "Backend"),
    "reduction": Room("pruning method", "repshift methods", "Method", one_of=("score", "choose", "reduce")),
    "models": Room("model family", "repshift models", "Family"),
    "operators": Room("attention operator", "repshift operators --list", "Operator"),
    "counters": Room("counter", "repshift doctor --counters", "Instrument"),
    "probes": Room("probe", "repshift metrics", "Probe"),
    "inspection": Room("question", "repshift analyze --help", "Question"),
    "benchmark.launchers": Room("launcher", "repshift bench --help", "Launcher"),
    "renderers": Room("renderer", "repshift show --help", "Renderer"),
    "evaluation.tasks": Room("task", "repshift eval --list", "Task"),
    "evaluation.datasets": Room("data format", "repshift eval --list", "Dataset"),
}

OPEN_ROOMS = tuple(name for name in ROOMS if name not in ("counters", "benchmark.launchers"))
"""The rooms that other packages can add parts to."""

OLDER_GROUPS = {"pruning": "reduction"}
"""Entry point groups under the name that a room had before, with its name today."""


@dataclass(frozen=True)
class Part:
    """One part: where it is imported from (`module` or `module:attribute`) and the literals at its top level."""

    name: str
    room: str
    help: str
    target: str
    constants: dict[str, Any] = field(default_factory=dict, hash=False)


@cache
def parts(room: str) -> dict[str, Part]:
    """The parts of a room by name; a file of this package goes before another package's part of the same name."""
    if room not in ROOMS:
        raise ValueError(f"no such room: {room}")
    found = {p.name: p for p in map(_from_entry_point, _entry_points(room))}
    folder = Path(__file__).parent / room.replace(".", "/")
    files = [f for f in folder.glob("*.py") if not f.name.startswith("_")]
    found |= {f.stem: _from_file(f.stem, room, f"repshift_cli.{room}.{f.stem}", f) for f in files}
    return dict(sorted(found.items()))


def load(part: Part) -> Any:
    """Import a part: its module, or the attribute that its entry point names.

    What it leaves out and its room's contract has a default for is set to that. RepshiftError for a part that cannot be
    imported, or that lacks something.
    """
    module, _, attribute = part.target.partition(":")
    what = f"the {ROOMS[part.room].what} {part.name!r}"
    try:
        value = importlib.import_module(module)
        for name in filter(None, attribute.split(".")):
            value = getattr(value, name)
    except Exception as error:
        raise RepshiftError(f"{what} cannot be imported from {part.target}: {one_line(error)}") from error
    if faults := list(_faults(part, value)):
        raise RepshiftError(f"{what} from {part.target} cannot be used: {'; '.join(faults)}")
    return value


def find(room: str, name: str) -> Part:
    """The part of that name, `-` and `_` being alike; UsageError with the nearest names otherwise."""
    known = parts(room)
    plain = name.replace("-", "_")
    for part in known.values():
        if part.name.replace("-", "_") == plain:
            return part
    raise UsageError(
        f"unknown {ROOMS[room].what} {name!r}: {nearest(name, known)}`{ROOMS[room].command}` lists all of them"
    )


def find_variant(text: str) -> tuple[Part, Part | None]:
    """The back end and the method of `BACKEND` or `BACKEND+METHOD`; no method means no pruning."""
    backend, plus, method = text.partition("+")
    return find("attention", backend), find("reduction", method) if plus else None


def ranked(room: str) -> tuple[str, ...]:
    """The names of a room's parts in the order of the RANK that each states, the lowest first."""
    return tuple(sorted(parts(room), key=lambda name: parts(room)[name].constants.get("RANK", math.inf)))


def aliases() -> dict[str, Part]:
    """Every name that `--model` takes as it stands, with the family that builds it."""
    return {alias: part for part in parts("models").values() for alias in family_aliases(part)}


def family_aliases(part: Part) -> tuple[str, ...]:
    """The names of one family: the keys of its ALIASES; a family of another package without any has its own name."""
    named = part.constants.get("ALIASES")
    if named:
        return tuple(named)
    return () if part.target.startswith("repshift_cli.") else (part.name,)


def resolve_model(name: str) -> Part:
    """The family that builds `name`: an alias, `hf:NAME`, `timm:NAME`, or a user's own function or TOML file."""
    known = aliases()
    if name in known:
        return known[name]
    front, colon, rest = name.partition(":")
    if front in ("hf", "timm") and rest:
        return find("models", front)
    own = colon and front not in ("hf", "timm") and all(word.isidentifier() for word in f"{front}.{rest}".split("."))
    if own or name.endswith(".toml"):
        return find("models", "own")
    raise UsageError(
        f"unknown model {name!r}: {nearest(name, known)}`repshift models` lists all of them; "
        "hf:NAME takes a checkpoint, timm:NAME a model of timm, and package.module:function, or a TOML file, your own"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean a, b? `, or nothing where no name is near."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}? " if near else ""


# --- the options of reduction methods ---------------------------------------------------------------------------------


def method_options() -> dict[str, Option]:
    """The options that belong to reduction methods, by name, as the methods' files declare them.

    They come in the order that they have everywhere; what is declared wrongly is left out, and its method is refused
    when it is loaded.
    """
    found: dict[str, Option] = {}
    for part in sorted(parts("reduction").values(), key=lambda part: not part.target.startswith("repshift_cli.")):
        for name, told in _declared(part):
            if isinstance(told, Option) and found.setdefault(name, told) == told:
                found[name] = replace(found[name], methods=(*found[name].methods, part.name))
    return {name: found[name] for name in option_order(found)}


def options_of(method: Part) -> dict[str, Option]:
    """The options that one method takes; RepshiftError says what is wrong with its declarations."""
    if faults := list(_option_faults(method)):
        raise RepshiftError(f"the pruning method {method.name!r} cannot be used: {'; '.join(faults)}")
    known, own = method_options(), method.constants.get("DEFAULTS", {})
    return {name: replace(known[name], default=own.get(name, known[name].default)) for name, _ in _declared(method)}


def _declared(method: Part) -> Iterator[tuple[str, Option | str]]:
    """Each name in a method's OPTIONS with the option, or with what is wrong with its declaration.

    A method's name in the place of a declaration is the one that stands there; a tuple of names, as OPTIONS was before
    there were declarations, means those of `repshift`.
    """
    for name, literal in _stated(method).items():
        if isinstance(literal, str):
            literal = _stated(parts("reduction").get(literal)).get(name)
        try:
            yield name, Option.declared(name, literal)
        except (TypeError, ValueError) as error:
            yield name, one_line(error)


def _stated(method: Part | None) -> dict[str, Any]:
    told = method.constants.get("OPTIONS") if method else None
    told = dict.fromkeys(told, "repshift") if isinstance(told, tuple) else told
    return told if isinstance(told, dict) else {}


def _option_faults(method: Part) -> Iterator[str]:
    known = method_options()
    for name, told in _declared(method):
        if isinstance(told, str):
            yield told
        elif known[name] != told:
            yield f"--{name} is declared otherwise by {', '.join(known[name].methods)}"


# --- contracts --------------------------------------------------------------------------------------------------------


def _faults(part: Part, value: Any) -> Iterator[str]:
    """Sets an imported part's defaults, and tells what it lacks of its room's contract or has of the wrong kind."""
    room = ROOMS[part.room]
    if room.contract is None:
        return
    contract = vars(importlib.import_module(f"repshift_cli.{part.room}"))[room.contract]
    kinds, defaults = _members(contract)
    for name in defaults.keys() - set(dir(value)):
        setattr(value, name, defaults[name])
    lacking = [name for name in kinds if name not in dir(value)]
    if room.one_of and all(getattr(value, name) is None for name in room.one_of):
        lacking.append(" or ".join(room.one_of))
    if lacking:
        yield f"it lacks {', '.join(lacking)} (see {room.contract} in repshift_cli.{part.room})"
    for name in [name for name in kinds if name in dir(value)]:
        if not _fits(getattr(value, name), kinds[name]):
            yield f"its {name} is {type(getattr(value, name)).__name__}, not {_in_words(kinds[name])}"
    if part.room == "reduction" and part.constants.get("OPTIONS", {}) != value.OPTIONS:
        yield "its OPTIONS cannot be read from the source: write them out as a literal"
    yield from _option_faults(part) if part.room == "reduction" else ()


def _members(contract: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The kind of each member of a Protocol, and the defaults of those that are annotated with a value."""
    stated = {name: member for name, member in vars(contract).items() if not name.startswith("_")}
    names = _Names(vars(builtins) | vars(importlib.import_module(contract.__module__)))
    annotated = get_type_hints(contract, localns=names)
    kinds = annotated | {name: Callable for name in stated if name not in annotated}
    return kinds, {name: stated[name] for name in annotated if name in stated}


class _Names(dict[str, Any]):
    """What a contract's annotations are read by: a name that is imported for type checkers only is anything."""

    def __missing__(self, name: str) -> Any:
        return Any


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    return kind is Any or isinstance(value, get_origin(kind) or kind)


def _in_words(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(map(_in_words, get_args(kind)))
    return "None" if kind is NoneType else (get_origin(kind) or kind).__name__


# --- finding ----------------------------------------------------------------------------------------------------------


def _entry_points(room: str) -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points

    if room not in OPEN_ROOMS:
        return ()
    names = (room, *(old for old, new in OLDER_GROUPS.items() if new == room))
    found: Any = entry_points()  # of all groups at once: looking for them takes longer than all the rest here
    return [entry for name in reversed(names) for entry in found.select(group=f"repshift.{name}")]


def _from_entry_point(entry: EntryPoint) -> Part:
    module, _, attribute = entry.value.replace(" ", "").partition(":")
    group = entry.group.removeprefix("repshift.")
    room = OLDER_GROUPS.get(group, group)
    target = f"{module}:{attribute}" if attribute else module
    return _from_file(entry.name, room, target, _source(module), default=f"from {target}")


def _from_file(name: str, room: str, target: str, path: Path | None, default: str = "") -> Part:
    try:
        tree = ast.parse(path.read_bytes()) if path else ast.Module([], [])
    except (SyntaxError, ValueError) as error:
        return Part(name, room, f"cannot be read: {one_line(error)}", target)
    first = (ast.get_docstring(tree) or default).partition("\n")[0].strip()
    return Part(name, room, first, target, _literals(tree))


def _literals(tree: ast.Module) -> dict[str, Any]:
    """The top-level assignments whose values are literals."""
    values: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name):
                with contextlib.suppress(ValueError, TypeError):
                    values[target.id] = ast.literal_eval(node.value)
    return values


def _source(module: str) -> Path | None:
    """The file of a module; None where only an import could tell."""
    spec = find_spec(module)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
