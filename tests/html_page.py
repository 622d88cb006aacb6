"""Pages of HTML as tests read them, and run files whose every text would be code, were it not escaped."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from repshift_cli.cli import run as repshift
from repshift_cli.records.json_codec import to_json

SCRIPT = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 1'>\"'&javascript:\u202e"
MEANT = ("status", "statistic", "source", "better", "kind", "created", "device", "view", "verdict", "metric", "metrics")
"""Fields whose words mean something: another word there is refused, or hides what is to be drawn."""
WORDS = ("none", "x", "ms", "B", "MAC", "1/s", "%")
"""Values that mean something wherever they stand."""
NAMED = ("packages", "missing", "words")
"""Mappings whose names are texts as free as their values."""


class Page(HTMLParser):
    """Every element's name and attributes, the text of scripts by their id, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.words: list[str] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        self._inside = name
        if name == "script":
            self.scripts.append((dict(attributes).get("id"), ""))

    def handle_endtag(self, name: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.words.append(data)

    def titles(self) -> list[str]:
        return [a["aria-label"] or "" for name, a in self.tags if name == "svg"]


def page_of(tmp_path: Path, *contents: Any) -> tuple[str, Page]:
    """The page that `repshift report` makes of records, or of the texts of files."""
    files = []
    for i, content in enumerate(contents):
        files.append(tmp_path / f"run{i}.json")
        files[-1].write_text(content if isinstance(content, str) else to_json(content), encoding="utf-8")
    out = tmp_path / "report.html"
    assert repshift(["report", *map(str, files), "--out", str(out)], debug=True) == 0
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


def poisoned(record: Any) -> str:
    """The record's JSON with code behind every text that is free."""
    return json.dumps(_poisoned(json.loads(to_json(record)), ""))


def _poisoned(plain: Any, place: str) -> Any:
    if isinstance(plain, str):
        return plain if place in MEANT or plain in WORDS else plain + SCRIPT
    if isinstance(plain, list):
        return [_poisoned(value, place) for value in plain]
    if isinstance(plain, dict):
        return {name + SCRIPT * (place in NAMED): _poisoned(value, name) for name, value in plain.items()}
    return plain
