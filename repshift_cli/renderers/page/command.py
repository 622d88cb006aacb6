"""The command that measures a stored run or profile again, from the options that its file holds."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from repshift_cli.analysis.labelled import is_evaluation
from repshift_cli.records import OPERATORS, Run, written
from repshift_cli.records.inspection import Inspection
from repshift_cli.records.profile import ProfileRun

DENIED = ("causal",)
"""What means something else where it is not said than where it is denied."""
UNASKED = {"eval": ("evaluation", "hbm"), "analyze": ("batch", "hbm", "keep", "layers"), "profile": ("hbm",)}
"""What a file holds beside the options of its command."""
SPELT = {"columns": "column"}


def command_of(content: Run | ProfileRun | Inspection) -> str | None:
    """`repshift bench --model vit_b --keep 0.5,0.6`; None where the file holds no options."""
    if not content.options:
        return None
    name = _name(content)
    asked = {str(key): value for key, value in content.options.items() if key not in UNASKED.get(name, ())}
    words = [word for key, value in asked.items() for word in _words(SPELT.get(key, key), value)]
    return shlex.join(["repshift", name, *words])


def _name(content: Run | ProfileRun | Inspection) -> str:
    if isinstance(content, ProfileRun):
        return "profile"
    if isinstance(content, Inspection):
        return "analyze"
    if is_evaluation(content):
        return "eval"
    return "operators" if any(r.case.model == OPERATORS for r in content.records) else "bench"


def _words(key: str, value: Any) -> Iterator[str]:
    option = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        yield from [option] if value else [f"--no-{key}"] * (key in DENIED)
    elif isinstance(value, list) and any(isinstance(v, list) or (isinstance(v, str) and "," in v) for v in value):
        for one in value:
            yield from (option, _text(one))
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from (option, f"{name}={written(one)}")
    elif value not in (None, []):
        yield from (option, _text(value))


def _text(value: Any) -> str:
    return ",".join(written(v) for v in value) if isinstance(value, list) else written(value)
