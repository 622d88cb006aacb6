"""What `repshift explain` prints: what was found of a model, or what was looked at and why it will not do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from repshift_cli.records import keep_text, printable_line
from repshift_cli.renderers.table import console_for

NO_BACK_END = "none,none+METHOD: it does not call torch's attention, so there is none to choose"
PARTS = {"attention": "attention", "middle": "x' read by", "mlp": "MLP"}


def render(found: Mapping[str, Any], out: TextIO) -> None:
    """Print a model that was understood, one line for each thing."""
    console = console_for(out)
    console.print(Text(printable_line(f"{found['model']} ({found['class']})"), "bold"))
    console.print(_grid(_lines(found)))
    for warning in found["warnings"]:
        console.print(Text(printable_line(f"· {warning}"), "yellow"))


def render_refused(name: str, looked: Sequence[tuple[str, str]], out: TextIO) -> None:
    """Print what was looked at in a model that is refused."""
    console = console_for(out)
    console.print(Text(printable_line(f"{name}: no blocks"), "bold"))
    console.print(_grid((what, why) for what, why in looked) if looked else "no modules of one class repeat in it")


def _grid(rows: Iterator[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", max_width=36, overflow="fold")
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(Text(printable_line(name)), Text(printable_line(text)))
    return grid


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "blocks", f"{found['depth']}: {found['blocks']}"
    for part, path in found["branches"].items():
        yield PARTS[part], path or "none"
    yield "operations", ", ".join(f"{o} (default)" if o == found["default"] else o for o in found["operations"])
    yield "back ends", "any" if found["attention"] else NO_BACK_END
    yield "tokens", f"{found['entering']} enter, {found['free']} of them can go"
    yield "protected", "; ".join(f"{count} {where}" for where, count in _swapped(found["protected"])) or "none"
    yield "cut along", ", ".join(found["companions"]) or "nothing: the blocks are given no mask and no positions"
    if found["readers"]:
        yield "and for", ", ".join(found["readers"])
    for schedule in found["schedules"]:
        yield f"keep {keep_text(schedule['keep'])}", _along(schedule)


def _swapped(protected: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """`leading: 1 (cls_token)` is read as `1 leading (cls_token)`."""
    for where, count in protected.items():
        number, _, how = count.partition(" ")
        yield f"{where} {how}".strip(), number


def _along(schedule: Mapping[str, Any]) -> str:
    """`197 → 158 after block 1 → 127 after block 4`."""
    first, *later = schedule["tokens"]
    return str(first) + "".join(f" → {n} after block {b}" for n, b in zip(later, schedule["layers"], strict=True))
