"""A text file, or a folder of .txt files, each one text without a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repshift_cli.evaluation.samples import TEXT, Sample
from repshift_cli.records import UsageError

RANK = 80


def takes(place: str) -> bool:
    """By its ending, or by what lies in the folder."""
    path = Path(place)
    return path.suffix.lower() == ".txt" or (path.is_dir() and any(path.glob("*.txt")))


def read(place: str, split: str | None) -> Sequence[Sample]:
    """Each file whole, in the order of their names."""
    if split is not None:
        raise UsageError(f"--split {split}: texts have no splits; name another file")
    path = Path(place)
    try:
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        return [Sample(file.name, {TEXT: file.read_text(encoding="utf-8")}) for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {place} as text in UTF-8: {error}") from error
