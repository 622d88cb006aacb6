"""JSON: all that is known, raw samples included; of a run the very text of its file."""

from __future__ import annotations

from typing import TextIO

from repshift_cli.records.json_codec import to_json, to_plain
from repshift_cli.renderers import Document

TAKES = ("any",)
SUFFIX = ".json"


def render(document: Document, out: TextIO) -> None:
    """Write the content; runs and profiles in the format of their files."""
    content = {**document.summary, **to_plain(document.content)} if document.summary else document.content
    out.write(to_json(content))
