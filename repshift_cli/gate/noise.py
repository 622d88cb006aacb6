"""The noise of runners: how far a gate of a revision against itself wanders, learnt per runner, with a date."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from repshift_cli.records import UsageError
from repshift_cli.records.json_codec import from_plain, to_plain
from repshift_cli.records.store import FOLDER, check_writable, write_text

FILE = FOLDER / "noise.json"


@dataclass(frozen=True)
class Noise:
    """One runner's: by case and metric, the 99th percentile of the change that an A/A gate reports (0.004 is 0.4%)."""

    runner: dict[str, str]
    learnt: str
    rounds: int
    cases: dict[str, dict[str, float]] = field(default_factory=dict)


def load(path: Path) -> list[Noise]:
    """What is stored, nothing where there is no file; UsageError where it cannot be read."""
    if not path.exists():
        return []
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return list(from_plain(tuple[Noise, ...], plain["runners"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no noise file ({error}); remove it and run repshift gate --learn") from error


def save(path: Path, learnt: Noise) -> None:
    """Put this runner's noise in the place of what it had; cases that were not measured now stay."""
    check_writable(path)
    known = load(path)
    old = of(known, learnt.runner)
    cases = {**(old.cases if old else {}), **learnt.cases}
    others = [n for n in known if n.runner != learnt.runner]
    merged = Noise(learnt.runner, learnt.learnt, learnt.rounds, cases)
    write_text(path, json.dumps({"runners": to_plain([*others, merged])}, indent=1) + "\n")


def of(known: Sequence[Noise], runner: Mapping[str, str]) -> Noise | None:
    """The noise of the runner with this fingerprint, or None."""
    return next((n for n in known if n.runner == dict(runner)), None)
