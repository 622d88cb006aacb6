"""Run files on disk: written whole and atomically, or growing (see `journal`); checked when they are read back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from repshift_cli.records import SCHEMA_VERSION, Run, UsageError
from repshift_cli.records.files import check_regular
from repshift_cli.records.inspection import INSPECTION_SCHEMA_VERSION, Inspection
from repshift_cli.records.json_codec import from_plain, to_json
from repshift_cli.records.profile import PROFILE_SCHEMA_VERSION, ProfileRun
from repshift_cli.records.tuning import TUNING_SCHEMA_VERSION, Tuning

FOLDER = Path("repshift-runs")

JOURNAL = '{"journal":'
"""How the text of a run file begins that is still being written, a line for each record."""

STALE_SECONDS = 3600
"""A temporary file of another machine older than this was left by a command that was killed."""


def create(path: Path, run: Run) -> None:
    """Write `run` as a new file, or over an old one; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(run))


def load(path: Path) -> Run:
    """The run in the file, in this version's schema; or UsageError with the one sentence that says what is wrong."""
    plain = parse(path)
    if found := _kind_of(plain):
        article = "an" if found.word[0] in "aeiou" else "a"
        raise UsageError(f"{path} is {article} {found.word}, no run file; `repshift show` renders it")
    return _run(path, plain)


def load_any(path: Path) -> Run | ProfileRun | Inspection | Tuning:
    """The run, the profile, the inspection or the search in the file, or UsageError."""
    plain = parse(path)
    found = _kind_of(plain)
    return _other(path, plain, found) if found else _run(path, plain)


class _Kind(NamedTuple):
    """A file that is no run: the word for it, its record and its schema."""

    word: str
    record: Any
    version: int


_KINDS = {
    "profile": _Kind("profile", ProfileRun, PROFILE_SCHEMA_VERSION),
    "inspection": _Kind("inspection", Inspection, INSPECTION_SCHEMA_VERSION),
    "tuning": _Kind("search", Tuning, TUNING_SCHEMA_VERSION),
}
_OLDER_SEARCH = {"singles", "confirmed", "goal"}
"""What the file of a search holds, of which older ones did not say the kind."""


def _kind_of(plain: Any) -> _Kind | None:
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if kind is None and isinstance(plain, dict) and plain.keys() >= _OLDER_SEARCH:
        kind = "tuning"
    return _KINDS.get(kind) if isinstance(kind, str) else None


def _other(path: Path, plain: dict[str, Any], kind: _Kind) -> Any:
    _check_version(path, plain.get("schema"), kind.version)
    try:
        run = from_plain(kind.record, plain, kind.word)
    except ValueError as error:
        raise UsageError(f"{path} is a damaged {kind.word}: {error}") from error
    return dataclasses.replace(run, schema=kind.version)


def _check_version(path: Path, schema: Any, known: int) -> None:
    if isinstance(schema, int) and schema > known:
        raise UsageError(f"{path} has schema version {schema} and this repshift reads up to {known}; upgrade repshift")


def _run(path: Path, plain: Any) -> Run:
    if not isinstance(plain, dict) or not {"schema", "machine", "records"} <= plain.keys():
        raise UsageError(f"{path} is JSON but no repshift run file (it lacks schema, machine or records)")
    _check_version(path, plain["schema"], SCHEMA_VERSION)
    try:
        run: Run = from_plain(Run, plain)
    except ValueError as error:
        raise UsageError(f"{path} is a damaged run file: {error}") from error
    return dataclasses.replace(run, schema=SCHEMA_VERSION)


def parse(path: Path) -> Any:
    """The file's plain values, of a journal those of the run that it amounts to; or UsageError."""
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8")
        return _merged(text) if text.startswith(JOURNAL) else json.loads(text, parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist; `repshift bench` writes run files into {FOLDER}/") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON, or was cut short (line {error.lineno}: {error.msg})") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UsageError(f"{path} is not a run file: {error}") from error


def _merged(journal: str) -> dict[str, Any]:
    """A journal's text as the plain run that it amounts to; a last line without an end was never written."""
    head, *lines = (json.loads(line, parse_constant=_refuse_constant) for line in journal.split("\n")[:-1])
    records: dict[str, Any] = {}
    run = head.get("run")
    if not isinstance(run, dict) or not all(isinstance(line, dict) for line in lines):
        raise ValueError("it was being written, and its lines are damaged")
    for line in lines:
        if isinstance(record := line.get("record"), dict):
            records[json.dumps(record.get("case"))] = record
        run |= line.get("changed", {})
        if isinstance(places := line.get("machines"), dict):
            run["machines"] = run.get("machines", {}) | places
    return run | {"records": list(records.values())}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON number")


def check_writable(path: Path) -> None:
    """UsageError where `path` cannot be written, found by trying; missing folders are made, `path` is left alone."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = _beside(path)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def write_text(path: Path, text: str) -> None:
    """Replace the file by `text` in one step: whoever is killed on the way leaves the old file as it was."""
    write_pieces(path, [text])


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """As `write_text`, of a text that is never whole in memory."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.writelines(pieces)


@contextlib.contextmanager
def replacing(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """A file beside `path` to write; it takes the place of `path` at the end, and goes away after an error.

    `exclusive` refuses to take the place of a file that is there: FileExistsError.
    """
    path = Path(os.path.realpath(path))
    temporary = _beside(path)
    temporary.unlink(missing_ok=True)  # one that could not be removed before may be the very file, by another name
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if exclusive:
            _place_new(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _place_new(temporary: Path, path: Path) -> None:
    """Give the file its name, or FileExistsError: of two commands that want it, one gets it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(temporary, path)
    else:
        with contextlib.suppress(OSError):  # it has its name; the other one goes with the next run
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Take away temporary files of commands that were killed, whose process is gone; another machine's when old."""
    for file in folder.glob(".*.tmp"):
        host, number = file.name.split(".")[-3:-1]
        with contextlib.suppress(OSError):
            old = time.time() - file.stat().st_mtime > STALE_SECONDS
            if number.isdecimal() and (host == _host() or old) and not _runs(int(number)):
                file.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{_host()}.{os.getpid()}.tmp")


def _host() -> str:
    """This machine's name without dots."""
    return re.sub(r"\W+", "-", platform.node())[:40] or "host"


def default_path(now: datetime, models: Sequence[str]) -> Path:
    """Where a run goes that names no place: `repshift-runs/20261122-051200-vit_b.json`, never a file that is there."""
    names = [re.sub(r"[^\w.-]+", "-", model).strip("-.")[:40] for model in dict.fromkeys(models)]
    stem = f"{now:%Y%m%d-%H%M%S}-" + "+".join(names[:3]) + (f"+{len(names) - 3}" if len(names) > 3 else "")
    path, number = FOLDER / f"{stem}.json", 2
    while path.exists():
        path, number = FOLDER / f"{stem}-{number}.json", number + 1
    return path
