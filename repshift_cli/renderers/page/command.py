"""The command that measures a stored run or profile again, from the options that its file holds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from repshift_cli.records import Run, written
from repshift_cli.records.profile import ProfileRun

DENIED = ("causal",)
"""What means something else where it is not said than where it is denied."""
OF_OPERATORS = "operator"
"""The option that only `repshift operators` has."""


def command_of(content: Run | ProfileRun) -> str | None:
    """`repshift bench --model vit_b --keep 0.5,0.6`; None where the file holds no options."""
    if not content.options:
        return None
    name = "profile" if isinstance(content, ProfileRun) else "operators" if OF_OPERATORS in content.options else "bench"
    words = [word for key, value in content.options.items() for word in _words(str(key), value)]
    return shlex.join(["repshift", name, *words])


def _words(key: str, value: Any) -> Iterator[str]:
    option = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        yield from [option] if value else [f"--no-{key}"] * (key in DENIED)
    elif isinstance(value, list) and any(isinstance(v, list) or (isinstance(v, str) and "," in v) for v in value):
        for one in value:
            yield from (option, _text(one))
    elif value not in (None, []):
        yield from (option, _text(value))


def _text(value: Any) -> str:
    return ",".join(written(v) for v in value) if isinstance(value, list) else written(value)
