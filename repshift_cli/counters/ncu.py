"""DRAM bytes by Nsight Compute (label `counter`): the program `ncu` runs the child and counts between its brackets.

Whole ranges are counted while the program runs (replay mode app-range); the caches are not flushed and the clocks not
locked, which ncu does by default. Written from its documentation and from published logs; it has not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from repshift_cli.counters.base.permission import REMEDY, why_not_allowed
from repshift_cli.counters.base.traffic import CounterError, Traffic
from repshift_cli.machine import device as devices

LABEL = "counter"
RANK = 2
METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
PROGRAMS = ("ncu", "/usr/local/cuda/bin/ncu")
LOG = "ncu.csv"
NUMBER = re.compile(r"\d+(\.\d+)?|\d{1,3}(,\d{3})+(\.\d+)?")
"""A number as ncu prints it: with commas between thousands, or without."""


def program() -> str | None:
    """Where `ncu` is."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def unavailable(device: str) -> str | None:
    """Why ncu cannot count here, as far as that can be told without trying, or None."""
    if program() is None:
        return "ncu is not found; install Nsight Compute, or add it to PATH"
    return why_not_allowed()


def identity() -> str:
    """Which ncu counts: its folder has its version."""
    return str(Path(program() or "").resolve())


def command(worker: Sequence[str], folder: Path) -> list[str]:
    """The child's command line under ncu, which logs to a file in `folder`."""
    options = ["--target-processes", "all", "--replay-mode", "app-range"]
    options += ["--cache-control", "none", "--clock-control", "none", "--metrics", ",".join(METRICS)]
    options += ["--csv", "--page", "raw", "--print-units", "base", "--log-file", str(folder / LOG)]
    return [program() or PROGRAMS[0], *options, *worker]


def collect(counted: Any, folder: Path, ranges: int) -> list[Traffic]:
    """The ranges from ncu's log; CounterError where they are not as many as the child bracketed."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CounterError("ncu wrote no log") from error
    found = parse(text)
    if len(found) != ranges:
        raise CounterError(f"ncu logged {len(found)} ranges instead of {ranges}")
    return found


@contextlib.contextmanager
def counting(device: str) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """In the child: a function that runs some work between brackets; the numbers are in ncu's log, not here."""
    torch = devices.import_torch()

    def count(work: Callable[[], Any]) -> None:
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        work()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()

    yield count


def parse(text: str) -> list[Traffic]:
    """The ranges of a log, in the order run: lines of ncu's own (==PROF== ...), names, units, then one line each.

    CounterError for a log without ranges, whatever exit code it came with: ncu exits with 0 where nothing was counted.
    """
    rows = list(csv.reader(line for line in text.splitlines() if line.strip() and not line.startswith("==")))
    start = next((i for i, row in enumerate(rows) if METRICS[0] in row), None)
    if start is None:
        raise CounterError(_why_nothing(text))
    names = rows[start]
    if METRICS[1] not in names:
        raise CounterError(f"ncu's log has no column {METRICS[1]}")
    columns = [names.index(name) for name in METRICS]
    body = rows[start + 1 :]
    units = [_at(body[0], column) for column in columns] if body else []
    if set(units) != {"byte"}:
        raise CounterError(f"ncu's log gives its figures in {' and '.join(map(repr, units)) or 'no unit'}, not in byte")
    if not body[1:]:
        raise CounterError(_why_nothing(text))
    return [Traffic.of(*(_number(_at(row, column)) for column in columns)) for row in body[1:]]


def _at(row: list[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


def _number(text: str) -> float:
    value = float(text.replace(",", "")) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise CounterError(f"ncu's log has {text!r} where a number of bytes should stand")
    return value


def _why_nothing(text: str) -> str:
    """ncu's own words for why nothing was counted."""
    if "ERR_NVGPUCTRPERM" in text:
        return f"no privilege to read the counters (ERR_NVGPUCTRPERM): {REMEDY}"
    told = [line for line in text.splitlines() if line.startswith(("==ERROR==", "==WARNING=="))]
    words = " ".join(told[0].partition(" ")[2].split()) if told else "its log has no range"
    return f"ncu counted nothing: {words}"
