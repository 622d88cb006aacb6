"""The README's table of real weights, from the committed run: `python tests/real/table.py RUN.json`.

One row per schedule, one column per method; each cell is the fidelity (mean cosine with the untouched model) and the
paired speed-up over flash, a dash where none was shown.
"""

from __future__ import annotations

import sys
from pathlib import Path

from repshift_cli.analysis import stats
from repshift_cli.records import Case, Record, store


def main() -> None:
    """Print the table as Markdown."""
    print(table([r for r in store.load(Path(sys.argv[1])).records if r.case.layers]))


def table(records: list[Record]) -> str:
    """Markdown, schedules down, methods across."""
    methods = list(dict.fromkeys(_method(r.case) for r in records))
    schedules = list(dict.fromkeys((r.case.layers, r.case.keep) for r in records))
    cells = {(r.case.layers, r.case.keep, _method(r.case)): _cell(r) for r in records}
    lines = ["| after block | keep | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    for layers, keep in sorted(schedules):
        row = [cells[layers, keep, method] for method in methods]
        lines.append(f"| {', '.join(map(str, layers))} | {keep:g} | {' | '.join(row)} |")
    return "\n".join(lines)


def _method(case: Case) -> str:
    form = case.option("form")
    return case.pruning + (f", {form}" if form else "")


def _cell(record: Record) -> str:
    cosine, speedup = record.measurement("fidelity_cosine"), record.measurement("speedup_vs_flash")
    if record.status != "ok" or cosine is None or speedup is None:
        return record.status
    fidelity, ratio = stats.estimate(cosine), stats.estimate(speedup)
    assert fidelity is not None and ratio is not None
    faster = "–" if ratio.spans(1) else f"{ratio.value:.2f}x"
    return f"{fidelity.value:.3f} / {faster}"


if __name__ == "__main__":
    main()
