"""Text from models, files and drivers on its way to a person: what could steer a terminal becomes visible instead."""

from __future__ import annotations

import re

UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Control characters (a tab and a line break apart), what turns the direction of writing, lone surrogates, and what
XML forbids."""

COMMAND = re.compile(r"(?<!\S)::(?=[A-Za-z-]+[\s:])|(?<=#)#(?=\[)")
"""What makes GitHub's runner take a line of a log for a command: `::error::` at its beginning, `##[error]` anywhere."""


def visible(text: str) -> str:
    r"""The text with every character of UNPRINTABLE as its escape: ESC as `\x1b`, a lone surrogate as `\ud800`."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def printable(text: str) -> str:
    r"""Text for a terminal or a log: visible, and no command to whoever reads the log (`\::error::`, `#\#[error]`)."""
    return COMMAND.sub(r"\\\g<0>", visible(text))


def printable_line(text: str) -> str:
    """The same on one line."""
    return printable(" ".join(text.split()))


def one_line(error: BaseException) -> str:
    """An error's message on one line, visible, or its type where it has none or cannot say it."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return visible(" ".join(text.split())) or type(error).__name__
