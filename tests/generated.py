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

from repshift_cli import registry
from repshift_cli.cli import app
from repshift_cli.operators import CLASSES
from repshift_cli.registry import ROOMS, Room

WRITE = "python tests/generated.py --write"
PART = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(^<!-- end -->$)", re.DOTALL | re.MULTILINE)
PANEL = "Options"
CHECKS = {
    "models": "test_models.py tests/test_along.py",
    "attention": "test_attention.py",
    "reduction": "test_reduction.py",
    "counters": "test_counters.py",
    "operators": "test_operators.py tests/test_operator_identities.py",
    "probes": "test_probes.py",
    "renderers": "test_renderers.py",
    "inspection": "test_inspection.py",
    "evaluation.tasks": "test_evaluation.py",
    "evaluation.datasets": "test_evaluation.py",
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
    for name, room in ROOMS.items():
        if room.contract:
            tests = f"`pytest tests/{CHECKS.get(name, 'test_registry.py')}`"
            lines.append(f"| {room.what} | `{name.replace('.', '/')}/` | {', '.join(_members(name, room))} | {tests} |")
    return "\n".join(lines)


def _members(name: str, room: Room) -> list[str]:
    """The names that a part has, functions with their arguments; in brackets what it may leave out."""
    protocol = vars(importlib.import_module(f"repshift_cli.{name}"))[room.contract]
    annotated = [n for n in inspect.get_annotations(protocol) if n not in room.one_of]
    names = [f"[`{n}`]" if n in vars(protocol) else f"`{n}`" for n in annotated]
    either = [" or ".join(f"`{n}`" for n in room.one_of)] if room.one_of else []
    functions = {n: f for n, f in vars(protocol).items() if inspect.isfunction(f) and n not in annotated}
    shown = {n: [*inspect.signature(f).parameters][1:] for n, f in functions.items() if not n.startswith("_")}
    return [*names, *either, *(f"`{n}({', '.join(arguments)})`" for n, arguments in shown.items())]


def operators() -> str:
    """Every attention operator by class, with its engines and its paper."""
    lines = ["| operator | class | what it is | engines beside the plain one | paper |", "|---|---|---|---|---|"]
    known = registry.parts("operators").values()
    for part in sorted(known, key=lambda part: CLASSES.index(part.constants["CLASS"])):
        engines = ", ".join(f"`{name}`" for name in registry.load(part).ENGINES if name != "plain")
        cells = (f"`{part.name}`", part.constants["CLASS"], part.help, engines, part.constants["PAPER"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[], str]] = {
    "reference": reference,
    "contracts": contracts,
    "operators": operators,
    **TABLES,
}


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
