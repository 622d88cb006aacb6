"""Files that the tool has written, of any kind, as documents to be rendered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from repshift_cli.analysis import history
from repshift_cli.gate.verdict import Outcome
from repshift_cli.records import Run, UsageError, store
from repshift_cli.records.json_codec import from_plain
from repshift_cli.renderers import Document, document_of
from repshift_cli.renderers.sheets import gate
from repshift_cli.renderers.sheets import history as over_time

OF_A_GATE = {"findings", "base", "head"}
OF_A_SERIES = {"case", "like", "points"}
SUMMARY = ("verdict", "exit_code", "sentence")
"""What a gate's JSON says ahead of its records, which follows from them."""
LEAST_RUNS = 2


def documents(places: Sequence[Path]) -> list[Document]:
    """Every file as a document named like it, and where several runs measured the same cases, these over time."""
    found = [document for place in places for document in _of_place(place)]
    runs = [d.content for d in found if isinstance(d.content, Run)]
    repeated = [s for s in history.series(runs, ("latency",)) if len(s.points) >= LEAST_RUNS]
    if repeated:
        found.append(_history(repeated, "over time"))
    return found


def _of_place(place: Path) -> Iterator[Document]:
    """The file's document; of a folder those of the files that it knows, at least one."""
    if not place.is_dir():
        yield load(place)
        return
    found = []
    for path in sorted(place.glob("*.json")):
        try:
            found.append(load(path))
        except UsageError:
            continue
    if not found:
        raise UsageError(f"{place} holds no file that repshift wrote; name a run file")
    yield from found


def load(path: Path) -> Document:
    """What the file holds, whatever command wrote it; or UsageError."""
    plain = store.parse(path)
    try:
        if isinstance(plain, dict) and plain.keys() >= OF_A_GATE:
            return _gate({name: value for name, value in plain.items() if name not in SUMMARY}, path.name)
        if isinstance(plain, list) and plain and all(isinstance(s, dict) and s.keys() >= OF_A_SERIES for s in plain):
            return _history([from_plain(history.Series, s, "history") for s in plain], path.name)
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from error
    return dataclasses.replace(document_of(store.load_any(path)), title=path.name)


def _gate(plain: dict[str, Any], name: str) -> Document:
    outcome: Outcome = from_plain(Outcome, plain, "gate")
    return dataclasses.replace(gate.document_of(outcome), title=name)


def _history(series: list[history.Series], name: str) -> Document:
    return Document("history", series, lambda: over_time.sheets(series, []), title=name, whole="--markdown")
