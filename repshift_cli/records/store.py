"""One run file on disk: written whole and atomically after every case, checked when it is read back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from repshift_cli.records import SCHEMA_VERSION, Record, Run, UsageError
from repshift_cli.records.files import check_regular
from repshift_cli.records.json_codec import from_plain, to_json
from repshift_cli.records.profile import PROFILE_SCHEMA_VERSION, ProfileRun

FOLDER = Path("repshift-runs")


def create(path: Path, run: Run) -> None:
    """Write `run` as a new file, or over an old one; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(run))


def append(path: Path, run: Run, record: Record) -> Run:
    """The run with `record` added, in the place of an older record of the same case; the file holds it on return."""
    records = list(run.records)
    places = [i for i, old in enumerate(records) if old.case.key == record.case.key]
    if places:
        records[places[0]] = record
    else:
        records.append(record)
    run = dataclasses.replace(run, records=tuple(records))
    write_text(path, to_json(run))
    return run


def load(path: Path) -> Run:
    """The run in the file, in this version's schema; or UsageError with the one sentence that says what is wrong."""
    plain = _parse(path)
    if _is_profile(plain):
        raise UsageError(f"{path} is a profile, no run file; `repshift show` renders it")
    return _run(path, plain)


def load_any(path: Path) -> Run | ProfileRun:
    """The run or the profile in the file, or UsageError."""
    plain = _parse(path)
    return _profile(path, plain) if _is_profile(plain) else _run(path, plain)


def _is_profile(plain: Any) -> bool:
    return isinstance(plain, dict) and plain.get("kind") == "profile"


def _profile(path: Path, plain: dict[str, Any]) -> ProfileRun:
    _check_version(path, plain.get("schema"), PROFILE_SCHEMA_VERSION)
    try:
        run: ProfileRun = from_plain(ProfileRun, plain, "profile")
    except ValueError as error:
        raise UsageError(f"{path} is a damaged profile: {error}") from error
    return dataclasses.replace(run, schema=PROFILE_SCHEMA_VERSION)


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


def _parse(path: Path) -> Any:
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist; `repshift bench` writes run files into {FOLDER}/") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON, or was cut short (line {error.lineno}: {error.msg})") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UsageError(f"{path} is not a run file: {error}") from error


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
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write; it takes the place of `path` at the end, and goes away after an error."""
    path = Path(os.path.realpath(path))
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")


def default_path(now: datetime, models: Sequence[str]) -> Path:
    """Where a run goes that names no place: `repshift-runs/20261122-051200-vit_b.json`, never a file that is there."""
    names = [re.sub(r"[^\w.-]+", "-", model).strip("-.")[:40] for model in dict.fromkeys(models)]
    stem = f"{now:%Y%m%d-%H%M%S}-" + "+".join(names[:3]) + (f"+{len(names) - 3}" if len(names) > 3 else "")
    path, number = FOLDER / f"{stem}.json", 2
    while path.exists():
        path, number = FOLDER / f"{stem}-{number}.json", number + 1
    return path
