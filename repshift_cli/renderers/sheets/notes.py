"""What stands below a table of a run: settings, how to read it, what was not measured, warnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from repshift_cli.records import WITHOUT_ATTENTION, Case, Record
from repshift_cli.renderers.sheets.cells import ALWAYS, BUSY, NONE_SHOWN, REFERENCE, Column
from repshift_cli.renderers.sheets.row_columns import fields_of, is_pruned, short_kernel, varies

NAMES_IN_A_NOTE = 4
MOST_WARNINGS = 4
"""What follows them matters least, and is shown where all is asked for."""


def settings_note(cases: Sequence[Case]) -> list[str]:
    """What the methods' options are where they do not vary, once for all methods that take the same ones."""
    alike: dict[tuple[str, ...], list[Case]] = {}
    for method in dict.fromkeys(case.pruning for case in cases if case.options):
        own = [case for case in cases if case.pruning == method]
        alike.setdefault(tuple(f.name for f in fields_of(own)), []).extend(own)
    notes = []
    for own in alike.values():
        fields = [f for f in fields_of(own) if f.rank == ALWAYS and not varies(f, cases)]
        values = [(f.name, next((f.told(c) for c in own if f.value(c) is not None), None)) for f in fields]
        words = [f"{name} {value}" for name, value in values if value is not None]
        methods = ", ".join(dict.fromkeys(case.pruning for case in own))
        notes += [f"{methods}: {', '.join(words)}"] * bool(words)
    return notes


def paths_note(records: Sequence[Record]) -> list[str]:
    """How pruning's kernels ran, where there is a choice: on CUDA."""
    ran = sorted({path for r in records for path in r.paths if r.case.device.startswith("cuda")})
    return ["pruning's kernels: " + ", ".join(path.replace(":", " by ") for path in ran)] if ran else []


def interval_note(records: Sequence[Record], columns: Sequence[Column]) -> list[str]:
    done = [record for record in records if record.rounds]
    if not done:
        return []
    low, high = min(r.rounds for r in done), max(r.rounds for r in done)
    rounds = f"{low} rounds" if low == high else f"{low} to {high} rounds"
    stops = " or ".join(sorted({r.stopped_by for r in done if r.stopped_by}))
    said = f"in brackets: the 95% interval over {rounds}" + (f" (stopped by {stops})" if stops else "")
    words = {
        NONE_SHOWN: "the interval holds 1, so no speed-up was shown",
        BUSY: "no ratio is judged, see the warning",
        REFERENCE: "what others are compared with",
    }
    texts = {cell.text for column in columns for cell in column.cells}
    notes = ["; ".join([said, *(f"{word}: {meaning}" for word, meaning in words.items() if word in texts)])]
    if len({(r.case.keep, r.case.layers) for r in done if is_pruned(r.case)}) > 1:
        notes.append("schedules were timed one after another, each with its references: compare rows by their ratios")
    return notes


def fidelity_note(records: Sequence[Record]) -> list[str]:
    """On how many inputs the outputs were compared."""
    found = [m for r in records if (m := r.measurement("fidelity_inputs")) and m.samples]
    counts = sorted({int(m.samples[0]) for m in found})
    if not counts:
        return []
    said = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    top1 = any((m := r.measurement("fidelity_top1")) and m.samples for r in records)
    interval = "; same top-1 with Wilson's 95% interval" if top1 else ""
    return [f"outputs compared with the untouched model's on {said} input{'s' * (counts[-1] > 1)}{interval}"]


def outcome_notes(records: Sequence[Record], label: Callable[[Case], str]) -> list[str]:
    bad = [record for record in records if record.status != "ok"]
    reasons = dict.fromkeys((record.status, line(record.reason or "no reason recorded")) for record in bad)
    notes = []
    for status, reason in reasons:
        own = [r.case for r in bad if (r.status, line(r.reason or "no reason recorded")) == (status, reason)]
        notes.append(f"{status}: {_names(own, label)}: {reason}")
    return notes


def pending_note(cases: Sequence[Case], records: Sequence[Record], label: Callable[[Case], str]) -> list[str]:
    done = {record.case for record in records}
    pending = [case for case in cases if case not in done]
    return [f"not run yet: {_names(pending, label)}"] if pending else []


def unmeasured_notes(records: Sequence[Record], label: Callable[[Case], str]) -> tuple[list[str], list[str]]:
    """What rows that ran lack, and why: once per metric and reason, the rows named only where it is not all of them.

    What no row has comes apart: it has no column.
    """
    ran = [record for record in records if record.status == "ok"]
    lacking: dict[tuple[str, str], list[Case]] = {}
    for record in ran:
        for m in record.measurements:
            if not m.samples and not m.detail and not m.reference:
                lacking.setdefault((m.label, line(m.reason or "")), []).append(record.case)
    notes: dict[tuple[str, str], list[str]] = {}
    for (name, reason), cases in lacking.items():
        who = "" if len(cases) == len(ran) else f" ({_names(cases, label)})"
        notes.setdefault((who, reason), []).append(name)
    told = [(bool(who), f"not measured: {', '.join(names)}{who}: {why}") for (who, why), names in notes.items()]
    return [text for some, text in told if some], [text for some, text in told if not some]


def warning_notes(records: Sequence[Record], label: Callable[[Case], str]) -> list[str]:
    """Each warning once, with its rows where it is not all: a record's own come in the order of what matters."""
    concerned: dict[str, list[Case]] = {}
    for record in sorted(records, key=lambda r: -len(r.warnings)):
        for text in dict.fromkeys(record.warnings):
            concerned.setdefault(line(text), []).append(record.case)
    places = {record.case: i for i, record in enumerate(records)}
    for cases in concerned.values():
        cases.sort(key=lambda case: places[case])
    ran = sum(record.status != "skipped" for record in records)
    return [
        f"warning: {text}" if len(cases) >= ran else f"warning ({_names(cases, label)}): {text}"
        for text, cases in concerned.items()
    ]


def kernels_note(records: Sequence[Record]) -> str:
    attending = [r for r in records if r.case.attention != WITHOUT_ATTENTION]
    pairs = [(short_kernel(r.kernel), r.case.variant) for r in attending if r.kernel]
    kernels = dict.fromkeys(kernel for kernel, _ in pairs)
    said = [f"{k} ({', '.join(dict.fromkeys(v for own, v in pairs if own == k))})" for k in kernels]
    return "attention ran on " + ", ".join(said) if said else ""


def _names(cases: Sequence[Case], label: Callable[[Case], str]) -> str:
    """The rows by name, or the variants with their number of rows where that would be long."""
    if len(cases) <= NAMES_IN_A_NOTE:
        return ", ".join(map(label, cases))
    variants = groupby(sorted(case.variant for case in cases))
    counts = [(variant, len(list(rows))) for variant, rows in variants]
    return ", ".join(f"{variant} ({n} rows)" if n > 1 else variant for variant, n in counts)


def line(text: str) -> str:
    return " ".join(text.split())
