"""The parts of the pages that are made by the program: `python tests/generated.py --write` writes all of them anew.

They stand between `<!-- generated: NAME -->` and `<!-- end -->`: the reference of the commands from the program's own
options, what a part supplies from the Protocol in its room's `__init__`, the tables of results from their run files.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import typer
from pages import PAGES, Page
from results import TABLES

from repshift_cli.cli import app
from repshift_cli.registry import ROOMS

WRITE = "python tests/generated.py --write"
PART = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(^<!-- end -->$)", re.DOTALL | re.MULTILINE)
PANEL = "Options"
CHECKS = {
    "models": "test_models.py tests/test_along.py",
    "attention": "test_attention.py",
    "reduction": "test_reduction.py",
    "probes": "test_probes.py",
    "renderers": "test_renderers.py",
}
"""The tests that try every part of a room, beside those of the registry."""


def reference() -> str:
    """Every command with its options, as GitHub shows them."""
    return "\n".join(_command(name, command) for name, command in commands().items())


def commands() -> dict[str, Any]:
    """The program's commands by name."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def options(command: Any) -> list[Any]:
    """The options that a command's help shows."""
    return [p for p in command.params if p.param_type_name == "option" and not p.hidden]


def _command(name: str, command: Any) -> str:
    arguments = [
        f" [{p.metavar or p.name.upper()}]" for p in command.params if p.param_type_name == "argument" and not p.hidden
    ]
    lines = [f"### `repshift {name}{''.join(arguments)}`", "", *_paragraphs(command.help), ""]
    panels = dict.fromkeys(p.rich_help_panel or PANEL for p in options(command))
    for panel in panels:
        rows = [_row(p) for p in options(command) if (p.rich_help_panel or PANEL) == panel]
        lines += [f"| {panel} | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) if part.strip() else "" for part in re.split(r"(\n\s*\n)", text.strip())]


def _row(option: Any) -> str:
    takes = "" if option.is_flag else f" {option.metavar or 'VALUE'}"
    names = ", ".join((*option.opts, *option.secondary_opts))
    default = "" if option.default in (None, False, ()) or option.is_flag else f" (default: {option.default})"
    text = " ".join(f"{option.help}{default}".split())
    return f"| `{names}{takes}` | {text} |".replace("NAME|FILE", "NAME\\|FILE").replace("FILE|-", "FILE\\|-")


def contracts() -> str:
    """What one file supplies, room by room; where a room states no Protocol yet, nothing is said of it."""
    lines = ["| a new | is a file of | that supplies | checked by |", "|---|---|---|---|"]
    for room, (what, *_) in ROOMS.items():
        if protocol := _protocol(room):
            tests = f"`pytest tests/{CHECKS.get(room, 'test_registry.py')}`"
            lines.append(f"| {what} | `{room.replace('.', '/')}/` | {', '.join(_members(protocol))} | {tests} |")
    return "\n".join(lines)


def _protocol(room: str) -> type | None:
    """The contract of a room's parts, the last Protocol in its `__init__`: those before it are what a part is given."""
    module = importlib.import_module(f"repshift_cli.{room}")
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    return next((c for c in reversed(own) if getattr(c, "_is_protocol", False)), None)


def _members(protocol: type) -> list[str]:
    """The names that a part has, functions with their arguments; what has a default in the contract may be left out."""
    named, members = inspect.get_annotations(protocol), vars(protocol)
    names = [f"`{name}`{' (or none)' if name in members else ''}" for name in named]
    functions = {n: f for n, f in members.items() if inspect.isfunction(f) and n not in named and n[0] != "_"}
    return names + [f"`{name}({', '.join([*inspect.signature(f).parameters][1:])})`" for name, f in functions.items()]


SECTIONS: dict[str, Callable[[], str]] = {"reference": reference, "contracts": contracts, **TABLES}


def parts(page: Page) -> dict[str, str]:
    """What stands between a page's marks, by name."""
    return {m["name"]: m["body"] for m in PART.finditer(page.text)}


def written_anew(page: Page) -> str:
    """The page with all its generated parts as the program gives them now."""
    return PART.sub(lambda m: f"{m[1]}{SECTIONS[m['name']]().strip()}\n{m[4]}", page.text)


def main() -> None:
    """Write every page that has generated parts, or say what it would do."""
    for page in PAGES.values():
        if parts(page) and (text := written_anew(page)) != page.text:
            print(page.name)
            if "--write" in sys.argv:
                page.path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
