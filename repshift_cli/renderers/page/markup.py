"""HTML and SVG by construction: whatever is not markup already is escaped, so that no text can become a tag."""

from __future__ import annotations

import html
from collections.abc import Iterable

from repshift_cli.records import printable

Attribute = str | int | float | bool | None
Child = str | int | Iterable["Child"] | None


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


VOID = {"meta", "input", "br", "img", "link"}


def escaped(text: str) -> Markup:
    """Any text as it is read, inside an element or an attribute; control characters are made visible."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(text), quote=True))


def join(*children: Child) -> Markup:
    """The children one after the other, None being nothing."""
    return Markup("".join(_flat(children)))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """One element; `class_` and `data_case` are its attributes class and data-case, None leaves one out."""
    told = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{''.join(_flat(children))}</{name}>")


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            yield escaped(child)
        elif isinstance(child, int):
            yield str(child)
        else:
            yield from _flat(child)


def _attribute(key: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{escaped(_text(value))}"'


def _text(value: str | int | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
