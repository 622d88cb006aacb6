"""The files behind a page, embedded in it: as JSON that no parser of HTML can mistake, packed where it is long."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

from repshift_cli.records.json_codec import escaped, to_plain
from repshift_cli.renderers.page.markup import Markup, tag

LONGEST_PLAIN = 400_000
LARGEST_PACKED = 4_000_000
"""Characters of packed JSON that one page holds: with its drawings it stays under 6 MB."""


def embedded(content: Any, source: str, name: str, room: int = LARGEST_PACKED) -> Markup | None:
    """The content as a script that is data, which the page's download button reads; None where there is no room."""
    text = json.dumps(to_plain(content), ensure_ascii=True, separators=(",", ":"), allow_nan=False, default=str)
    given = {"id": f"data-{source}", "data_name": name}
    if len(text) <= min(LONGEST_PLAIN, room):
        return tag("script", safe(text), type="application/json", **given)
    packed = base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
    return tag("script", Markup(packed), type="application/gzip", **given) if len(packed) <= room else None


def safe(text: str) -> Markup:
    """JSON in which no character begins or ends a tag; it reads as the same JSON."""
    return Markup(escaped(text).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
