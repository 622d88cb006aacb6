"""Whose time it is: the events of one trace become a `Breakdown` by part, block, kernel and operator.

Pure arithmetic on (start, end) in whole nanoseconds. On the host, a range's own time is its length without what lies
inside it, so that all of a step adds up to the step. On the device, a kernel belongs to the innermost range around its
launch, found by the correlation id; an instant in which several streams work is split between them, so that it counts
once.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.profiling.annotations import BLOCK, PREFIX
from repshift_cli.records import visible
from repshift_cli.records.profile import OTHER, WAIT, Breakdown, KernelTime, OpTime, PartTime

Span = tuple[int, int]
"""Start and end in nanoseconds."""
Place = tuple[str, int | None]
"""A part, and its block from 1 or None."""

MOST = 1e18
"""Microseconds beyond which a number is no time."""

SLACK = 10
"""Nanoseconds by which the clock readings of neighbours may overlap."""
STEP = "ProfilerStep#"
DEVICE_WORK = {"kernel": True, "gpu_memcpy": False, "gpu_memset": False, "memcpy": False, "memset": False}
"""Categories of work on the device, in lower case, and whether they are kernels."""
RUNTIME = ("cuda_runtime", "cuda_driver", "runtime")
OPERATORS = ("cpu_op", "operator")
HOST_STEPS = ("user_annotation", *OPERATORS)
"""Where steps and ranges of the host stand; on the device the same names come again as gpu_user_annotation."""
BLOCK_NUMBER = re.compile(rf"{BLOCK}\d{{1,6}}")
LAUNCHES = re.compile(r"LaunchKernel|LaunchCooperativeKernel|GraphLaunch")
SYNCHRONISES = re.compile(r"Synchronize|StreamWait|EventQuery")


def nested(spans: Sequence[Span]) -> tuple[list[int], list[int], int]:
    """For spans ordered by (start, -end): the index of the span around each (-1: none), each one's own time, and how
    many cross the end of the span that they begin in, which whole ranges never do.
    """
    parents, own, open_spans, crossing = list[int](), list[int](), list[int](), 0
    for i, (start, end) in enumerate(spans):
        while open_spans and spans[open_spans[-1]][1] <= start + SLACK:
            open_spans.pop()
        parent = open_spans[-1] if open_spans else -1
        parents.append(parent)
        own.append(end - start)
        if parent >= 0:
            own[parent] -= min(end, spans[parent][1]) - start
            crossing += end > spans[parent][1] + SLACK
        open_spans.append(i)
    return parents, own, crossing


def wall_shares(spans: Sequence[Span]) -> list[float]:
    """What each span adds to the union of all: an instant in n of them counts 1/n for each, so the sum is the union."""
    edges = sorted(
        [(start, 1, i) for i, (start, _) in enumerate(spans)] + [(e, -1, i) for i, (_, e) in enumerate(spans)]
    )
    shares, running, last, level = [0.0] * len(spans), 0, 0, 0.0
    for at, change, i in edges:
        if running:
            level += (at - last) / running
        last, running = at, running + change
        shares[i] += -level if change > 0 else level
    return shares


Row = tuple[int, int, str, int]
"""Start, end, name and, of a call into the CUDA runtime, its correlation id (0 where it has none); else NO_CALL."""
NO_CALL = -1


@dataclass
class _Host:
    """What happened on one host thread."""

    steps: list[Row] = field(default_factory=list)
    ranges: list[Row] = field(default_factory=list)
    ops: list[Row] = field(default_factory=list)
    calls: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class _Work:
    """One piece of work on the device, and the correlation id of the call that launched it."""

    start: int
    end: int
    name: str
    correlation: int
    is_kernel: bool


@dataclass
class _Launch:
    """A call that device work refers to: when it was, in which part, by which operator."""

    at: int
    place: Place = (OTHER, None)
    op: str | None = None


class _Sums:
    """Calls, host and device nanoseconds by key."""

    def __init__(self) -> None:
        self.rows: dict[Any, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])

    def add(self, key: Hashable, host: float = 0.0, device: float = 0.0, calls: int = 0) -> None:
        row = self.rows[key]
        row[0] += calls
        row[1] += host
        row[2] += device


class Tally:
    """Takes the events of one variant (or of a whole foreign trace) and gives its breakdown."""

    def __init__(self) -> None:
        self._threads: dict[Hashable, _Host] = defaultdict(_Host)
        self._work: list[_Work] = []
        self._names: dict[str, str] = {}
        self.origin: int | None = None
        self._end = 0

    @property
    def is_empty(self) -> bool:
        """Whether no operator and no work on a device was seen."""
        return not self._work and not any(host.ops for host in self._threads.values())

    def add(self, event: dict[str, Any]) -> None:
        """Take one event; what has no part in the tables is passed over."""
        start, length = nanoseconds(event.get("ts")), nanoseconds(event.get("dur", 0))
        if event.get("ph") != "X" or start is None or length is None:
            return
        end, category = start + max(0, length), str(event.get("cat", "")).lower()
        name = self._name(event.get("name", ""))
        if category in DEVICE_WORK:
            self._work.append(_Work(start, end, name, _correlation(event), DEVICE_WORK[category]))
        elif name.startswith(STEP) and category in HOST_STEPS:
            self._host(event).steps.append((start, end, STEP, NO_CALL))
        elif name.startswith(PREFIX) and category in HOST_STEPS:
            self._host(event).ranges.append((start, end, name, NO_CALL))
        elif category in OPERATORS:
            self._host(event).ops.append((start, end, name, NO_CALL))
        elif category in RUNTIME:
            self._host(event).calls.append((start, end, name, _correlation(event)))
        else:
            return
        self.origin = start if self.origin is None else min(self.origin, start)
        self._end = max(self._end, end)

    def _name(self, given: Any) -> str:
        """The event's name, each held once: a trace repeats few names many times."""
        text = visible(given) if isinstance(given, str) else f"a name of type {type(given).__name__}"
        return self._names.setdefault(text, text)

    def _host(self, event: dict[str, Any]) -> _Host:
        return self._threads[str((event.get("pid"), event.get("tid")))]

    def breakdown(self, name: str) -> Breakdown:
        """The tables: means over the steps where the trace marks them, else of the whole trace as one."""
        windows = sorted((s, e) for host in self._threads.values() for s, e, *_ in host.steps)
        windows = windows or [(self.origin or 0, self._end)]
        launches = {c: _Launch(s) for host in self._threads.values() for s, _, _, c in host.calls if c > 0}
        parts, kernels, ops = _Sums(), _Sums(), _Sums()
        crossing = sum(_add_parts(host, parts, launches) for host in self._threads.values())
        for host in self._threads.values():
            _add_ops(host, windows, ops, launches)
        work = [w for w in self._work if _within(_begun(w, launches), windows)]
        busy = _add_work(work, launches, parts, kernels, ops)
        calls = [c for host in self._threads.values() for c in host.calls if _within(c[0], windows)]
        has_ranges, steps = any(host.ranges for host in self._threads.values()), len(windows)
        return Breakdown(
            name=name,
            step_ms=tuple(_ms(end - start) for start, end in windows),
            busy_ms=_ms(busy, steps) if work else None,
            overlapped_ms=_ms(sum(w.end - w.start for w in work) - busy, steps) if work else None,
            kernel_count=sum(w.is_kernel for w in work) / steps if work else None,
            launches=sum(bool(LAUNCHES.search(c[2])) for c in calls) / steps if work else None,
            parts=_parts(parts, steps, bool(work)) if has_ranges else (),
            kernels=tuple(
                KernelTime(key, calls / steps, _ms(device, steps)) for key, calls, _, device in _ranked(kernels)
            ),
            ops=tuple(
                OpTime(key, calls / steps, _ms(host, steps), _ms(device, steps) if work else None)
                for key, calls, host, device in _ranked(ops)
            ),
            missing={} if has_ranges else {"parts": "the trace has no ranges of repshift"},
            warnings=(f"{crossing} ranges cross the end of the one around them: parts may be wrong",)
            if crossing
            else (),
        )


def _add_parts(host: _Host, sums: _Sums, launches: dict[int, _Launch]) -> int:
    """Every part's own time within the thread's steps, and each launch's place; gives how many ranges cross.

    Calls into the runtime belong to the part around them, except those that wait for the device.
    """
    rows = sorted([*host.steps, *host.ranges, *host.calls], key=_outer_first)
    around, own, crossing = nested([row[:2] for row in rows])
    places: list[Place | None] = []
    for i, (_, _, name, call) in enumerate(rows):
        outside = places[around[i]] if around[i] >= 0 else None
        place = _place(name, call, outside)
        places.append(place)
        if call in launches:
            launches[call].place = outside or (OTHER, None)
        if place is not None:
            sums.add(place, host=own[i])
    return crossing


def _place(name: str, call: int, outside: Place | None) -> Place | None:
    """The part and block of a row inside `outside`; None where it lies in no step."""
    if name == STEP:
        return (OTHER, None)
    if outside is None:
        return None
    if call != NO_CALL:
        return (WAIT, outside[1]) if SYNCHRONISES.search(name) else outside
    word = name.removeprefix(PREFIX)
    if BLOCK_NUMBER.fullmatch(word):
        return (OTHER, int(word.removeprefix(BLOCK)))
    return (word, outside[1])


def _add_ops(host: _Host, windows: Sequence[Span], sums: _Sums, launches: dict[int, _Launch]) -> None:
    """Every operator's own time within the steps, its runtime calls included, and the operator of each launch."""
    if not host.ops:
        return
    rows = sorted([*host.ops, *host.calls], key=_outer_first)
    around, own, _ = nested([row[:2] for row in rows])
    for i, (start, _, name, call) in enumerate(rows):
        if call == NO_CALL:
            if _within(start, windows):
                sums.add(name, host=own[i], calls=1)
        elif around[i] >= 0:
            operator = rows[around[i]]
            if call in launches:
                launches[call].op = operator[2]
            if _within(operator[0], windows):
                sums.add(operator[2], host=own[i])


def _add_work(work: Sequence[_Work], launches: dict[int, _Launch], parts: _Sums, kernels: _Sums, ops: _Sums) -> float:
    """The device's time by part (of the wall clock), by kernel and by operator (durations); gives the busy time."""
    shares = wall_shares([(w.start, w.end) for w in work])
    for w, share in zip(work, shares, strict=True):
        launch = launches.get(w.correlation, _Launch(w.start))
        parts.add(launch.place, device=share)
        kernels.add(w.name, device=w.end - w.start, calls=1)
        if launch.op is not None:
            ops.add(launch.op, device=w.end - w.start)
    return sum(shares)


def _parts(sums: _Sums, steps: int, on_device: bool) -> tuple[PartTime, ...]:
    rows = sums.rows.items()
    return tuple(
        PartTime(part, layer, _ms(host, steps), _ms(device, steps) if on_device else None)
        for (part, layer), (_, host, device) in sorted(rows, key=lambda row: (row[0][1] or math.inf, row[0][0]))
    )


def _ranked(sums: _Sums) -> list[tuple[str, float, float, float]]:
    """Key, calls, host and device time, the longest first."""
    rows = [(str(key), calls, host, device) for key, (calls, host, device) in sums.rows.items()]
    return sorted(rows, key=lambda row: (-row[3], -row[2], row[0]))


def _begun(work: _Work, launches: dict[int, _Launch]) -> int:
    """When the work was launched, or began where no launch is known."""
    launch = launches.get(work.correlation)
    return work.start if launch is None else launch.at


def _within(at: int, windows: Sequence[Span]) -> bool:
    """Whether a moment lies in one of the windows, which are in order."""
    i = bisect_right(windows, (at, math.inf)) - 1
    return i >= 0 and at <= windows[i][1]


def _outer_first(row: Row) -> tuple[int, int]:
    return (row[0], -row[1])


def _correlation(event: dict[str, Any]) -> int:
    arguments = event.get("args")
    value = arguments.get("correlation") if isinstance(arguments, dict) else None
    return value if isinstance(value, int) and 0 < value < 2**63 else 0


def nanoseconds(value: Any) -> int | None:
    """A trace's microseconds as whole nanoseconds, None for no number or one that is no time (over 30,000 years).

    Exact: at torch's 4e12 us a float keeps the third decimal only just, and only if it is taken by itself.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MOST <= value <= MOST:
        return None
    whole = int(value)
    return whole * 1000 + round((value - whole) * 1000)


def _ms(time: float, steps: int = 1) -> float:
    return round(time / steps / 1e6, 6)
