"""The whole page: one file that needs nothing from outside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from repshift_cli.renderers import Document
from repshift_cli.renderers.page.embedded import LARGEST_PACKED, embedded
from repshift_cli.renderers.page.markup import Child, Markup, join, tag
from repshift_cli.renderers.page.sections import section

HERE = Path(__file__).parent
LARGEST = 5_500_000
"""Characters of a page beside its style and its script; few of them are more than a byte."""


def page(documents: Sequence[Document], title: str) -> Markup:
    """The documents one below the other, with what links to them above where there are several."""
    return whole(title, [_main(documents)], _contents(documents))


def whole(title: str, body: Sequence[Child], contents: Markup | None = None) -> Markup:
    """A page of its own with this in it."""
    style, script = (HERE.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(style)),
        tag("noscript", tag("style", Markup("tr[hidden] { display: table-row }"))),
    )
    top = tag("header", tag("h1", title), contents)
    held = tag("body", top, *body, tag("script", Markup(script)))
    return join(Markup("<!doctype html>\n"), tag("html", head, held, lang="en"), Markup("\n"))


def _policy(script: str) -> str:
    """Nothing is fetched from anywhere, and no script but the page's own runs, whatever a file holds."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src 'sha256-{digest}'"


def _contents(documents: Sequence[Document]) -> Markup | None:
    if len(documents) < 2:
        return None
    links = (tag("li", tag("a", d.title or d.kind, href=f"#source-{i}")) for i, d in enumerate(documents))
    return tag("nav", tag("ul", *links), aria_label="contents")


def _main(documents: Sequence[Document]) -> Markup:
    parts: list[Markup] = []
    sections = list(_sections(documents))
    room = min(LARGEST_PACKED, LARGEST - sum(map(len, sections)))
    for i, (document, drawn) in enumerate(zip(documents, sections, strict=True)):
        name = f"{document.title or document.kind}.json"
        data = embedded(document.content, str(i), name, room)
        room -= len(data or "")
        save = tag("button", "download the data (JSON)", type="button", data_save=f"data-{i}", class_="save")
        parts += [drawn, tag("p", save if data else f"{name} is too large to be in this page."), data or Markup()]
    return tag("main", *parts)


def _sections(documents: Sequence[Document]) -> Iterator[Markup]:
    """The documents; from where the page would get too large on they are without charts."""
    room = LARGEST
    for i, document in enumerate(documents):
        drawn = section(document, str(i))
        if len(drawn) > room:
            drawn = section(document, str(i), charted=False)
        room -= len(drawn)
        yield drawn
