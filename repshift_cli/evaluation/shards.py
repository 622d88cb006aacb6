"""What has been evaluated so far, on the disk beside the run file: a small file for each variant and each shard.

Each is written whole and under its name in one step, so that whoever is interrupted or killed goes on behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from repshift_cli.records import Case, store
from repshift_cli.records.journal import StoreError

EVALUATING, TIMING = "evaluated", "timed"
"""What a variant may be on its way for."""
ON_ITS_WAY, DEATHS = "on-its-way", "deaths.json"


class Shards:
    """The folder of one evaluation: `identity` is all that its numbers depend on beside the variant."""

    def __init__(self, run_file: Path, identity: Any) -> None:
        self._run_file = run_file
        self._whole = _parts(run_file)
        self._folder = self._whole / _digest(identity)

    def load(self, case: Case, role: str, number: int) -> np.ndarray | None:
        """What was kept of a shard under a variant, or None; a damaged file is as good as none."""
        try:
            return np.load(self._place(case, role, number), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def save(self, case: Case, role: str, number: int, outputs: np.ndarray) -> None:
        """Keep it; StoreError where the disk does not take it."""
        data = io.BytesIO()
        np.save(data, outputs, allow_pickle=False)
        self._write(self._place(case, role, number), data.getvalue())

    def damage(self, role: str, number: int) -> dict[str, str] | None:
        """The samples of a shard that could not be read, by name with the reason; None where nobody knows yet."""
        try:
            found = json.loads((self._folder / f"damaged-{role}-{number:05}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def save_damage(self, role: str, number: int, damaged: dict[str, str]) -> None:
        """Keep which samples of a shard could not be read."""
        text = json.dumps(damaged, ensure_ascii=False)
        self._write(self._folder / f"damaged-{role}-{number:05}.json", text.encode("utf-8", "replace"))

    def deaths(self, case: Case, doing: str = EVALUATING) -> list[str]:
        """Why the process has ended, each time that it did so while the variant was on its way."""
        return self._deaths().get(f"{doing} {_digest(case.key)}", [])

    def begin(self, case: Case, doing: str = EVALUATING) -> None:
        """Say that the variant is on its way: should the process end now, this counts as a death."""
        self._write(self._folder / ON_ITS_WAY, f"{doing} {_digest(case.key)}".encode(), atomic=False)

    def end(self) -> None:
        """Say that nothing is on its way any more."""
        forgive(self._run_file)

    def account(self, why: str) -> None:
        """Count what was on its way when an earlier process ended as a death, of this reason."""
        with contextlib.suppress(OSError):
            if died := (self._folder / ON_ITS_WAY).read_text():
                deaths = self._deaths()
                counted = {**deaths, died: [*deaths.get(died, ()), why]}
                self._write(self._folder / DEATHS, json.dumps(counted, ensure_ascii=False).encode("utf-8", "replace"))
                self.end()

    def _deaths(self) -> dict[str, list[str]]:
        try:
            return dict(json.loads((self._folder / DEATHS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def remove(self) -> None:
        """Take the folder away: all that it held stands in the run file."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self._whole)

    def _place(self, case: Case, role: str, number: int) -> Path:
        return self._folder / f"{_digest(case.key)}-{role}-{number:05}.npy"

    def _write(self, path: Path, data: bytes, atomic: bool = True) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not atomic:
                path.write_bytes(data)
                return
            with store.replacing(path) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}; what was evaluated is kept") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _parts(run_file: Path) -> Path:
    return run_file.with_name(f"{run_file.name}.parts")


def on_its_way(run_file: Path) -> bool:
    """Whether the process that worked at the run file was at a variant when it ended."""
    return any(file.stat().st_size for file in _parts(run_file).glob(f"*/{ON_ITS_WAY}"))


def forgive(run_file: Path) -> None:
    """Nothing is on its way, or what was has been ended by the user: no variant's fault."""
    for file in _parts(run_file).glob(f"*/{ON_ITS_WAY}"):
        with contextlib.suppress(OSError):
            file.unlink()
