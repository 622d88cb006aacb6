"""airspeed velocity's results: the file of one commit, its benchmarks.json and its machine.json.

Format: asv's developer documentation, "Benchmark suite layout and file formats", version 2 of the results file. Times
are in seconds there.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, TextIO

from repshift_cli.analysis.stats import Estimate
from repshift_cli.records import Case, Measurement, Run, UsageError
from repshift_cli.records.json_codec import escaped
from repshift_cli.renderers import Document
from repshift_cli.renderers.sheets.metric_columns import exported

TAKES = ("run",)
SUFFIX = ""
OPTION = False
EXPORT = True

UNITS = {"ms": ("seconds", 1e-3), "B": ("bytes", 1.0), "x": ("ratio", 1.0)}
COLUMNS = ("result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b")
"""The leading columns of asv's result_columns; what follows may be left out. The two of the 99% interval are null: ours
is of 95%."""


def render(document: Document, out: TextIO) -> None:
    """Write the results file of the run's commit."""
    out.write(_text(_results(document.content)))


def files(document: Document) -> dict[str, str]:
    """The results folder that `asv publish` reads, by path."""
    run = document.content
    machine = _machine(run)
    results = _results(run)
    place = f"{machine['machine']}/{results['commit_hash'][:8]}-{results['env_name']}.json"
    benchmarks: dict[str, Any] = {_name(case, m): _benchmark(case, m) for case, m, _ in exported(run)}
    texts = {place: results, f"{machine['machine']}/machine.json": machine | {"version": 1}}
    texts["benchmarks.json"] = benchmarks | {"version": 2}
    return {path: _text(value) for path, value in texts.items()}


def _text(value: Any) -> str:
    return escaped(json.dumps(value, indent=1, allow_nan=False)) + "\n"


def _file_name(text: str) -> str:
    """Text as a part of a path that stays where it is put."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unknown"


def _results(run: Run) -> dict[str, Any]:
    commit = (run.machine.commit or "").partition("+")[0]
    if not commit:
        raise UsageError(
            "asv files results by commit, and this run was taken outside a git checkout: name it with --commit"
        )
    stamp = int(datetime.fromisoformat(run.created).timestamp() * 1000)
    results = {_name(case, m): [[_value(m, figure)], [], _version(m), stamp] for case, m, figure in exported(run)}
    python = ".".join((run.machine.python or "").split(".")[:2])
    return {
        "version": 2,
        "commit_hash": _file_name(commit),
        "env_name": f"repshift-py{_file_name(python)}",
        "date": stamp,
        "params": {**_machine(run), "python": python},
        "python": python,
        "requirements": dict(run.machine.packages),
        "env_vars": {},
        "durations": {},
        "result_columns": list(COLUMNS),
        "results": results,
    }


def _machine(run: Run) -> dict[str, str]:
    machine = run.machine
    return {
        "machine": _file_name(machine.device_name),
        "os": machine.system or "",
        "arch": "",
        "cpu": machine.cpu or "",
        "gpu": machine.device_name if machine.device.startswith("cuda") else "",
        "num_cpu": str(machine.cores or ""),
        "ram": str(machine.memory or ""),
    }


def _name(case: Case, m: Measurement) -> str:
    """A dotted path, as asv's names are: `repshift.latency.model_vit_b_...`; a case has the same in every run."""
    return f"repshift.{m.metric}.{re.sub(r'[^A-Za-z0-9]+', '_', case.key).strip('_')}"


def _version(m: Measurement) -> str:
    return f"{m.metric}-{m.source}-{m.statistic}"


def _value(m: Measurement, figure: Estimate) -> float:
    return figure.value * UNITS.get(m.unit, (m.unit, 1.0))[1]


def _benchmark(case: Case, m: Measurement) -> dict[str, Any]:
    unit = UNITS.get(m.unit, (m.unit, 1.0))[0]
    kind = "time" if m.unit == "ms" else "peakmemory" if m.unit == "B" else "track"
    return {
        "name": _name(case, m),
        "pretty_name": f"{m.label or m.metric}: {case.key}",
        "code": "",
        "type": kind,
        "unit": unit,
        "params": [],
        "param_names": [],
        "version": _version(m),
        "timeout": 60.0,
    }
