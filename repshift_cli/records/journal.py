"""A run file while it grows: a header, then a line for every record, each on the disk before the next is measured.

Only at the end does the file become the JSON of one `Run`; until then `store.load` reads it line by line, and a last
line that was cut short counts as not written. Every line costs the same however long the file is. What is in the file
is not kept in memory. The file is locked, so that no two commands write to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None  # type: ignore[assignment]

from repshift_cli.records import Case, Machine, Record, RepshiftError, Run, UsageError, store
from repshift_cli.records.json_codec import from_plain, in_pieces, to_plain

FORMAT = 1


Span = tuple[int, int]
"""Where in the file a record's line begins, and its length in bytes."""


class StoreError(RepshiftError):
    """What was measured could not be written; it is still in memory."""


@dataclass
class Journal:
    """A run file open for writing. `unfinished` are cases begun and never recorded, with how often that happened."""

    path: Path
    """As it was given; what is written goes to where it led at the start, wherever the process goes later."""
    run: Run
    """Without its records."""
    unfinished: dict[str, int] = field(default_factory=dict)
    _real: Path = Path()
    _file: int | None = None
    _end: int = 0
    _is_journal: bool = False
    _records: dict[str, Record | Span] = field(default_factory=dict)
    """By key: where it stands in the file, or the record itself where it is in no journal yet."""

    @classmethod
    def create(cls, path: Path, run: Run, instead: Callable[[], Path] | None = None) -> Journal:
        """A new file, never in the place of another: where there is one, `instead` names the next place to try."""
        while True:
            journal = cls._of(path, run)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                store.remove_leftovers(path.parent)
                journal._write_anew(exclusive=True)
            except FileExistsError as error:
                if instead is None:
                    raise exists_already(path) from error
                path = instead()
            except (OSError, MemoryError) as error:
                raise StoreError(f"cannot write {path}: {_why(error)}") from error
            else:
                return journal

    @classmethod
    def open(cls, path: Path) -> Journal:
        """An earlier file to go on with; UsageError where it cannot be read, or where another command writes to it."""
        run = store.load(path)
        try:
            file = os.open(path, os.O_RDWR)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            _lock(file, path)
            store.remove_leftovers(path.parent)
            run = store.load(path)  # once more, for its last writer may have been at its end
        except UsageError:
            os.close(file)
            raise
        journal = cls._of(path, run, file)
        journal._resume()
        return journal

    @classmethod
    def _of(cls, path: Path, run: Run, file: int | None = None) -> Journal:
        records: dict[str, Record | Span] = {r.case.key: r for r in run.records}
        return cls(path, dataclasses.replace(run, records=()), _real=real(path), _file=file, _records=records)

    def begin(self, cases: Iterable[Case]) -> None:
        """Note which cases are being measured; whoever finds the note without their records knows that they crashed."""
        self._append({"began": [case.key for case in cases]}, durable=False)

    def add(self, record: Record) -> None:
        """The record, in the place of an older one of the same case; StoreError where the disk does not take it."""
        key = record.case.key
        self._records[key] = record  # until it is in the file
        self._append({"record": record}, durable=True, key=key)

    def change(self, **fields: Any) -> None:
        """Other values for fields of the run that are not its records: machines, warnings."""
        self.run = dataclasses.replace(self.run, **fields)
        self._append({"changed": fields})

    def add_machine(self, place: str, machine: Machine) -> None:
        """The machine that a place is on; a line of its own, however many there are."""
        self.run = dataclasses.replace(self.run, machines={**self.run.machines, place: machine})
        self._append({"machines": {place: machine}}, durable=False)

    def record_of(self, case: Case) -> Record | None:
        """The newest record of the case."""
        held = self._records.get(case.key)
        return None if held is None else self._record(held)

    def records(self) -> Iterator[Record]:
        """All that has been added, one after another."""
        return map(self._record, self._records.values())

    def snapshot(self) -> Run:
        """The run with all that has been added."""
        return dataclasses.replace(self.run, records=tuple(self.records()))

    def close(self) -> bool:
        """Make the file one JSON document and let go of it; False where that fails and it stays as it is, readable.

        What was in the file is read by `store.load` from then on.
        """
        if self._file is None:  # closed before
            return not self._is_journal
        if self._is_journal:
            with contextlib.suppress(OSError, MemoryError):
                store.write_pieces(self._real, in_pieces(self.run, map(self._plain, self._records.values())))
                self._is_journal = False
        os.close(self._file)
        self._file = None
        return not self._is_journal

    # --- on the disk --------------------------------------------------------------------------------------------------

    def _record(self, held: Record | Span) -> Record:
        if isinstance(held, Record):
            return held
        record: Record = from_plain(Record, self._plain(held), "record")
        return record

    def _plain(self, held: Record | Span) -> Any:
        """A record as JSON values, from the file where it is there."""
        if isinstance(held, Record):
            return to_plain(held)
        assert self._file is not None
        return json.loads(os.pread(self._file, held[1], held[0]))["record"]

    def _append(self, line: dict[str, Any], durable: bool = True, key: str | None = None) -> None:
        """A line more; `key` is that of the record in it, which is in the file from then on."""
        try:
            if not self._is_journal or self._is_gone():
                self._write_anew()
                if key is not None:
                    return
            begin = self._end
            self._extend(_line(to_plain(line)), durable)
            if key is not None:
                self._records[key] = (begin, self._end - begin)
        except (OSError, MemoryError) as error:
            raise StoreError(f"cannot write {self.path}: {_why(error)}") from error

    def _extend(self, data: bytes, durable: bool) -> None:
        """Add to the file, all or nothing: a full disk leaves no half line behind."""
        assert self._file is not None
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self._end + done)
            if durable:
                os.fsync(self._file)
        except (OSError, MemoryError):
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)

    def _write_anew(self, exclusive: bool = False) -> None:
        """The journal of all there is, under its name in one step, and locked; a deleted folder is made again."""
        self._real.parent.mkdir(parents=True, exist_ok=True)
        header = {"journal": FORMAT, "run": to_plain(dataclasses.replace(self.run, records=()))}
        marks = [{"began": [key]} for key, times in self.unfinished.items() for _ in range(times)]
        spans: dict[str, Record | Span] = {}
        with store.replacing(self._real, exclusive) as temporary:
            file = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(file, self.path)
                with os.fdopen(os.dup(file), "wb") as out:
                    end = out.write(_line(header))
                    for key, held in self._records.items():
                        size = out.write(_line({"record": self._plain(held)}))
                        spans[key], end = (end, size), end + size
                    out.writelines(map(_line, marks))
            except BaseException:
                os.close(file)
                raise
        if self._file is not None:
            os.close(self._file)
        self._file, self._end, self._is_journal = file, os.fstat(file).st_size, True
        self._records = spans

    def _is_gone(self) -> bool:
        """Whether the name leads elsewhere now: the file was deleted or replaced under us."""
        assert self._file is not None
        try:
            return not os.path.samestat(os.stat(self._real), os.fstat(self._file))
        except FileNotFoundError:
            return True

    def _resume(self) -> None:
        """Where the file is a journal still, go on behind its last whole line."""
        assert self._file is not None
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            header = file.readline()
            if not header.startswith(store.JOURNAL.encode()):
                return
            self._is_journal, self._end = True, len(header)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._take_up(json.loads(line), (self._end, len(line)))
                self._end += len(line)
        os.ftruncate(self._file, self._end)

    def _take_up(self, line: dict[str, Any], span: Span) -> None:
        """A line of an earlier command: where a record stands; how often each case was begun since it was recorded."""
        for key in line.get("began", ()):
            self.unfinished[key] = self.unfinished.get(key, 0) + 1
        if "record" in line:
            key = from_plain(Case, line["record"]["case"]).key
            self.unfinished.pop(key, None)
            self._records[key] = span


def real(path: Path) -> Path:
    """Where a path leads, links followed."""
    return Path(os.path.realpath(path))


def exists_already(path: Path) -> UsageError:
    """The refusal of a new run file where there is a file."""
    return UsageError(f"{path} exists already; go on with it by --resume {path}, or choose another --out")


def _why(error: OSError | MemoryError) -> str:
    return "out of memory" if isinstance(error, MemoryError) else error.strerror or str(error)


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def _lock(file: int, path: Path) -> None:
    """UsageError where another process holds the file; a file system without locks goes without."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another repshift is writing to {path}; wait for its end, or choose another --out") from error
    except OSError:
        return
