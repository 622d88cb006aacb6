"""Chrome traces of torch's profiler: read event by event, and written with several variants side by side.

A trace is one JSON object whose `traceEvents` may be hundreds of megabytes, so neither side ever holds it whole. Ours
carry a `repshift` object before the events: the profile's records without their tables. Variant i (from 1) has the
process ids from 1000 i on.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from repshift_cli.profiling.annotations import PREFIX
from repshift_cli.profiling.attribution import nanoseconds
from repshift_cli.records import UsageError
from repshift_cli.records.files import check_regular
from repshift_cli.records.store import replacing

Event = dict[str, Any]
Seen = Callable[[float], None]
"""Told the share of the file that is read, 0 to 1."""

OURS = "repshift"
PIDS = 1000
"""Each variant's process ids: 1000 to 1999 the first, 2000 to 2999 the second."""
_KEPT = (OURS, "deviceProperties", "distributedInfo")
_CHUNK = 1 << 20
_LONGEST = 1 << 26
"""No single value of a trace outside its events is longer than this many characters."""
_DECODER = json.JSONDecoder(strict=False, parse_constant=lambda name: None)
"""Kineto writes names and bare NaN that are no strict JSON."""
_RUNTIME = ("cuda_runtime", "cuda_driver")


# --- reading ----------------------------------------------------------------------------------------------------------


class Trace:
    """The events of the file, one by one, as often as it is iterated; `header` holds what stands around them so far.

    Plain or gzip, told by content. UsageError, one sentence, for what is no trace, cut short or damaged.
    """

    def __init__(self, path: Path, seen: Seen = lambda share: None) -> None:
        self.path, self.header, self._seen = path, dict[str, Any](), seen

    def __iter__(self) -> Iterator[Event]:
        check_regular(self.path, largest=None)  # read piece by piece, whatever its size
        with _readable(self.path), self.path.open("rb") as file:
            text = _Text(_stream(file), self._share(file))
            yield from self._objects(text)

    def _share(self, file: IO[bytes]) -> Callable[[], None]:
        size = max(1, self.path.stat().st_size)
        return lambda: self._seen(1.0 if file.closed else min(1.0, file.tell() / size))

    def _objects(self, text: _Text) -> Iterator[Event]:
        first = text.peek()
        if first == "[":
            yield from text.items()
            return
        if first != "{":
            raise UsageError(f"{self.path} is {'no trace: it is not JSON' if first else 'empty'}")
        found = False
        for name in text.members():
            if name == "traceEvents":
                found = True
                if text.peek() != "[":
                    raise UsageError(f"{self.path} is JSON but no Chrome trace: its traceEvents is no list")
                yield from text.items()
            else:
                value = text.value()
                if name in _KEPT:
                    self.header[name] = value
        if not found:
            raise UsageError(f"{self.path} is JSON but no Chrome trace (it has no traceEvents)")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns whatever reading can raise into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist; `repshift profile --trace FILE` writes traces") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path} is a damaged gzip file, or was cut short") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no trace: it is not text") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except _Damaged as error:
        raise UsageError(f"{path} is no whole trace: damaged or cut short {error}") from error
    except RecursionError as error:
        raise UsageError(f"{path} is no trace: its JSON is nested too deep") from error


def _stream(file: IO[bytes]) -> Iterator[str]:
    """The file's text in pieces, unpacked where it is gzip."""
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    with gzip.open(file, "rt", encoding="utf-8") if packed else io.TextIOWrapper(file, encoding="utf-8") as text:
        while piece := text.read(_CHUNK):
            yield piece


class _Damaged(ValueError):
    """The text ends or breaks where JSON must go on."""


class _Text:
    """A JSON text that comes in pieces, walked through from its start; what is behind is forgotten."""

    def __init__(self, pieces: Iterator[str], read: Callable[[], None]) -> None:
        self._pieces, self._read = pieces, read
        self._text, self._at, self._before, self._done = "", 0, 0, False

    def peek(self) -> str:
        """The next character that is no space; the empty text at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if self._done:
                return ""
            self._more()

    def value(self) -> Any:
        """The next whole JSON value."""
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._done or len(self._text) - self._at > _LONGEST:
                    raise self._damaged() from None
            except ValueError:  # a whole number of more digits than Python reads
                raise self._damaged() from None
            else:
                if end < len(self._text) or self._done:
                    self._at = end
                    return found
            self._more()

    def items(self) -> Iterator[Event]:
        """The objects of the list that begins here; anything else in it is damage."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            item = self.value()
            if not isinstance(item, dict):
                raise self._damaged()
            yield item
            if self._next("]"):
                return

    def members(self) -> Iterator[str]:
        """The names of the object that begins here; after each the caller takes its value."""
        self._expect("{")
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            name = self.value()
            self._expect(":")
            yield str(name)
            if self._next("}"):
                return

    def _next(self, closing: str) -> bool:
        """Step over a comma (False) or the closing sign (True)."""
        sign = self.peek()
        if sign not in (",", closing) or not sign:
            raise self._damaged()
        self._at += 1
        return sign == closing

    def _expect(self, sign: str) -> None:
        if self.peek() != sign:
            raise self._damaged()
        self._at += 1

    def _more(self) -> None:
        """Add as much text as is still unread, at least a piece: a value of any length is decoded a few times only."""
        rest = self._text[self._at :]
        self._before += self._at
        self._text, self._at = rest, 0
        parts, wanted = [rest], max(_CHUNK, len(rest))
        while wanted > 0:
            piece = next(self._pieces, "")
            if not piece:
                self._done = True
                break
            parts.append(piece)
            wanted -= len(piece)
        self._text = "".join(parts)
        self._read()

    def _damaged(self) -> _Damaged:
        return _Damaged(f"near character {self._before + self._at + 1}")


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """One variant's trace as torch exported it: its readable name, its file, and the time of its first event (ns)."""

    name: str
    path: Path
    origin: int


def write(target: Path, recorded: Sequence[Recorded], about: Mapping[str, Any]) -> None:
    """All variants in one trace, each with its own processes and beginning at 0; `about` is our metadata.

    Written whole and then renamed: whoever is interrupted leaves no half file. gzip where the name ends in .gz.
    """
    with replacing(target) as temporary, _writable(temporary, target.suffix == ".gz") as out:
        devices = _header(recorded[0].path).get("deviceProperties", []) if recorded else []
        head = {"schemaVersion": 1, "displayTimeUnit": "ms", "deviceProperties": devices, OURS: about}
        out.write(json.dumps(head, allow_nan=False)[:-1] + ', "traceEvents": [')
        separator = "\n"
        for number, one in enumerate(recorded, start=1):
            for event in _beside_others(one, number):
                out.write(separator + json.dumps(event))
                separator = ",\n"
        out.write("\n]}\n")


def write_for_tensorboard(target: Path, recorded: Recorded) -> None:
    """One variant's trace in the words of torch-tb-profiler 0.4.3.

    It knows the category Runtime, not today's cuda_runtime, without which every operator's device time reads 0.
    """
    with replacing(target) as temporary, _writable(temporary, target.suffix == ".gz") as out:
        head: dict[str, Any] = {"schemaVersion": 1, **_header(recorded.path)}
        out.write(json.dumps(head)[:-1] + ', "traceEvents": [')
        separator = "\n"
        for event in Trace(recorded.path):
            if event.get("cat") in _RUNTIME:
                event["cat"] = "Runtime"
            out.write(separator + json.dumps(_annotated(event)))
            separator = ",\n"
        out.write("\n]}\n")


def _header(path: Path) -> dict[str, Any]:
    """What stands before the events."""
    trace = Trace(path)
    next(iter(trace), None)
    return trace.header


@contextmanager
def _writable(path: Path, packed: bool) -> Iterator[TextIO]:
    with gzip.open(path, "wt", encoding="utf-8") if packed else path.open("w", encoding="utf-8") as out:
        yield out


def _beside_others(one: Recorded, number: int) -> Iterator[Event]:
    """The variant's events with process ids, correlations and times of its own, its processes named after it."""
    pids: dict[int, int] = {}
    about: list[Event] = []
    for event in Trace(one.path):
        pid = event.get("pid")
        if not isinstance(pid, int):
            continue  # the profiler's own marks
        if event.get("ph") == "M":
            about.append(event)
            continue
        event["pid"] = pids.setdefault(pid, PIDS * number + len(pids))
        if (at := nanoseconds(event.get("ts"))) is not None:
            event["ts"] = (at - one.origin) / 1000
        yield _annotated(_numbered(event, number))
    for event in about:
        if event["pid"] in pids:
            yield _renamed(event, one.name, number, pids)


def _numbered(event: Event, number: int) -> Event:
    """Correlations and flows with numbers of the variant's own, for every profiler session may begin at 1."""
    first = 10**9 * (number - 1)
    arguments = event.get("args")
    for holder, name in ((arguments, "correlation"), (arguments, "External id"), (event, "id")):
        if isinstance(holder, dict) and isinstance(holder.get(name), int) and holder[name] > 0:
            holder[name] += first
    return event


def _annotated(event: Event) -> Event:
    """Our ranges as annotations: the cheap call that opens them is recorded among the operators."""
    if str(event.get("name", "")).startswith(PREFIX) and event.get("cat") == "cpu_op":
        event["cat"] = "user_annotation"
    return event


def _renamed(event: Event, name: str, number: int, pids: Mapping[int, int]) -> Event:
    pid, kind = event["pid"], event.get("name")
    event = {**event, "pid": pids[pid]}
    event.pop("ts", None)
    arguments = event.get("args")
    arguments = arguments if isinstance(arguments, dict) else {}
    if kind == "process_name":
        event["args"] = {"name": f"{number} {name}"}
    elif kind == "process_labels":
        event["args"] = {"labels": "host" if arguments.get("labels") == "CPU" else str(arguments.get("labels"))}
    elif kind == "process_sort_index":
        event["args"] = {"sort_index": pids[pid]}
    return event
