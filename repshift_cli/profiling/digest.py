"""From traces to profiles: a variant's recorded trace is read once and becomes its breakdown; stored ones likewise."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from repshift_cli.profiling.attribution import NO_CALL, Row, Tally, nanoseconds, nested
from repshift_cli.profiling.chrome_trace import OURS, PIDS, Recorded, Seen, Trace
from repshift_cli.records import UsageError
from repshift_cli.records.json_codec import from_plain, to_plain
from repshift_cli.records.profile import PROFILE_SCHEMA_VERSION, Breakdown, ProfileRun

FRAMES = ("python_function", "cpu_op", "user_annotation", "cuda_runtime", "cuda_driver")
FORWARD = re.compile(r"profiling/recorder\.py\(\d+\): forward$")
"""The call that a flame graph begins with; what stands above it is this tool."""
IN_A_GRAPH = "a CUDA graph replays kernels without the calls that ranges stand around; the eager variant has its parts"


def digest(about: Breakdown, path: Path) -> tuple[Breakdown, Recorded]:
    """The tables of one variant's trace beside what is known of it, and the trace ready to be written with others."""
    tally = Tally()
    for event in Trace(path):
        tally.add(event)
    return _filled(about, tally), Recorded(about.name, path, tally.origin or 0)


def metadata(run: ProfileRun) -> dict[str, Any]:
    """What our traces carry: the profile without its tables, which the events themselves give again."""
    bare = tuple(dataclasses.replace(b, step_ms=(), parts=(), kernels=(), ops=()) for b in run.breakdowns)
    plain: dict[str, Any] = to_plain(dataclasses.replace(run, breakdowns=bare))
    return plain


def read(path: Path, seen: Seen = lambda share: None) -> ProfileRun:
    """The profile in a stored trace: of ours with all its tables, of anyone's with operators and kernels.

    UsageError for a file that is no trace, or that holds nothing of torch's profiler.
    """
    trace = Trace(path, seen)
    events = iter(trace)
    first = next(events, None)
    ours = _described(path, trace.header.get(OURS))
    recorded = [b for b in ours.breakdowns if b.status == "ok"] if ours else [Breakdown(path.name)]
    tallies = [Tally() for _ in recorded]
    for event in _all(first, events):
        if (number := _number(event) if ours else 0) in range(len(tallies)):
            tallies[number].add(event)
    if not tallies or all(t.is_empty for t in tallies):
        raise UsageError(f"{path} is a Chrome trace without any operator or kernel of torch's profiler")
    found = iter([_filled(b, t) for b, t in zip(recorded, tallies, strict=True)])
    if ours is None:
        return ProfileRun(None, {}, tuple(found))
    return dataclasses.replace(ours, breakdowns=tuple(next(found) if b.status == "ok" else b for b in ours.breakdowns))


def _all(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    if first is not None:
        yield first
        yield from rest


def _number(event: dict[str, Any]) -> int:
    """Which of our variants an event belongs to, from 0."""
    pid = event.get("pid")
    return pid // PIDS - 1 if isinstance(pid, int) else -1


def _described(path: Path, plain: Any) -> ProfileRun | None:
    """Our metadata, or None in a trace of anyone else's."""
    if not isinstance(plain, dict) or plain.get("kind") != "profile":
        return None
    if isinstance(plain.get("schema"), int) and plain["schema"] > PROFILE_SCHEMA_VERSION:
        raise UsageError(f"{path} was written by a newer repshift (schema {plain['schema']}); upgrade repshift")
    try:
        run: ProfileRun = from_plain(ProfileRun, plain, OURS)
    except ValueError as error:
        raise UsageError(f"{path} is a damaged trace of repshift: {error}") from error
    return run


def _filled(about: Breakdown, tally: Tally) -> Breakdown:
    """What is known of the variant, with the tables from its events."""
    if tally.is_empty:
        return dataclasses.replace(about, status="failed", reason="its trace holds no operator and no kernel")
    tables = tally.breakdown(about.name)
    kept = {name: getattr(about, name) for name in ("case", "tokens", "kernel")}
    missing = dict(tables.missing)
    if about.case is not None and about.case.execution == "graph" and "parts" in missing:
        missing["parts"] = IN_A_GRAPH
    return dataclasses.replace(tables, **kept, missing=missing, warnings=(*about.warnings, *tables.warnings))


# --- flame graphs -----------------------------------------------------------------------------------------------------


def folded(path: Path, name: str) -> Iterator[str]:
    """Lines `frame;frame;frame microseconds` of a trace with Python calls, the variant as the first frame.

    The host's own time of every stack; where a device worked, the time of each kernel under the stack that launched it.
    """
    rows: dict[tuple[Any, Any], list[Row]] = {}
    work: dict[int, list[tuple[str, int]]] = {}
    for event in Trace(path):
        category, correlation = event.get("cat"), event.get("args", {}).get("correlation", NO_CALL)
        if event.get("ph") == "X" and category in FRAMES:
            thread = rows.setdefault((event["pid"], event["tid"]), [])
            start, length = nanoseconds(event["ts"]) or 0, nanoseconds(event["dur"]) or 0
            thread.append((start, start + length, event["name"], correlation))
        elif category == "kernel":
            work.setdefault(correlation, []).append((event["name"], nanoseconds(event["dur"]) or 0))
    sums: dict[str, int] = {}
    for stack, own, correlation in _stacks(rows.values(), name):
        kernels = work.get(correlation, [])
        for frame, length in [(f"{stack};{_frame(k)}", ns) for k, ns in kernels] if work else [(stack, own)]:
            sums[frame] = sums.get(frame, 0) + length
    yield from (f"{stack} {round(ns / 1000)}" for stack, ns in sorted(sums.items()) if ns >= 500)


def _stacks(threads: Iterable[list[Row]], name: str) -> Iterator[tuple[str, int, int]]:
    """Every span within the forward with its stack, its own time and the correlation id that it has."""
    for thread in threads:
        ordered = sorted(thread, key=lambda row: (row[0], -row[1]))
        around, own, _ = nested([row[:2] for row in ordered])
        stacks: list[str | None] = []
        for i, (_, _, frame, correlation) in enumerate(ordered):
            outside = stacks[around[i]] if around[i] >= 0 else None
            stack = _frame(name) if FORWARD.search(frame) else outside and f"{outside};{_frame(frame)}"
            stacks.append(stack)
            if stack is not None:
                yield stack, own[i], correlation


def _frame(name: str) -> str:
    """A name as a frame: the signs that part frames and counts are taken out of it."""
    return name.replace(";", ",").replace("\n", " ")
