"""A run as sheets: one per comparison group, with its header, its columns and its notes."""

from __future__ import annotations

from collections.abc import Sequence

from repshift_cli.records import OPERATORS, Case, Machine, Run
from repshift_cli.records.labels import labels
from repshift_cli.renderers.sheets import notes
from repshift_cli.renderers.sheets.cells import Sheet
from repshift_cli.renderers.sheets.metric_columns import metric_columns, ordered_records
from repshift_cli.renderers.sheets.row_columns import case_columns, closing_columns


def sheets(run: Run) -> list[Sheet]:
    """One sheet per comparison group and kind of device, in the order planned; the run's warnings under the last."""
    cases = list(dict.fromkeys([*run.planned, *(r.case for r in run.records)]))
    groups = list(dict.fromkeys(case.group for case in cases))
    result = []
    for group in groups:
        own = [case for case in cases if case.group == group]
        general = run.warnings if group == groups[-1] else ()
        by_device = _by_device(run, own)
        result += [_sheet(run, own, general if own is by_device[-1][1] else (), m) for m, own in by_device]
    return result


def _by_device(run: Run, cases: Sequence[Case]) -> list[tuple[Machine, list[Case]]]:
    """The cases of a group by the kind of device they were measured on, for different ones do not share a table."""
    on = {record.case: run.machine_of(record) for record in run.records} if run.machines else {}
    found: dict[tuple[str, ...], tuple[Machine, list[Case]]] = {}
    for case in cases:
        machine = on.get(case) or next(iter(on.values()), run.machine)
        found.setdefault(tuple(_computer(machine, case.device)), (machine, []))[1].append(case)
    return list(found.values())


def _sheet(run: Run, cases: Sequence[Case], warnings: Sequence[str], machine: Machine) -> Sheet:
    here = set(cases)
    records = [record for record in ordered_records(run) if record.case in here]
    columns = (*case_columns(records), *metric_columns(records), *closing_columns(records))
    label = labels(cases).__getitem__
    urgent = (*notes.outcome_notes(records, label), *notes.pending_note(cases, records, label))
    warned = [*notes.warning_notes(records, label), *(f"warning: {notes.line(t)}" for t in dict.fromkeys(warnings))]
    unmeasured, absent = notes.unmeasured_notes(records, label)
    said = (
        *urgent,
        *warned,
        *notes.interval_note(records, columns),
        *notes.fidelity_note(records),
        *notes.settings_note(cases),
        *notes.paths_note(records),
        *unmeasured,
        *absent,
    )
    header, kernels = header_of(machine, cases), notes.kernels_note(records)
    return Sheet(header, columns, kernels, said, urgent, (*warned[notes.MOST_WARNINGS :], *absent))


def header_of(machine: Machine, cases: Sequence[Case]) -> tuple[str, ...]:
    """What the cases of one group share: model, input, setting, computer."""
    case = cases[0]
    return (
        *(_operator_words(case) if case.model == OPERATORS else (case.model, f"weights {case.weights}", _input(case))),
        f"batch {case.batch}",
        case.dtype,
        *(["CUDA graph"] if {c.execution for c in cases} == {"graph"} else []),
        *([f"protect {case.protect}"] if case.protect else []),
        *([f"seed {case.seed}"] if case.seed else []),
        *_computer(machine, case.device),
        *[f"{name} {machine.packages[name]}" for name in ("torch",) if name in machine.packages],
    )


def _operator_words(case: Case) -> list[str]:
    """What the operators of one group share: the pass, the mask, the sizes, the input."""
    heads, kv_heads = case.option("heads"), case.option("kv_heads")
    passed = "backward pass" if case.option("backward") else "attention operators"
    masked = "one query" if case.option("decode") else "causal" if case.option("causal") else "no mask"
    grouped = [f"{kv_heads} KV heads"] if kv_heads else []
    taken = case.option("captured")
    source = f"input of {taken}" if taken else f"input {case.input}"
    sizes = [f"{case.length} tokens", f"{heads} heads of {case.option('head_dim')}", *grouped]
    cache = [f"{case.option('cache')} cache"] if case.option("cache") else []
    return [passed, masked, *sizes, f"window {case.option('window')}", source, *cache]


def _input(case: Case) -> str:
    size = [f"{case.image_size} px"] if case.image_size else []
    frames = [f"{case.frames} frames"] if case.frames else []
    length = [f"{case.length} tokens"] if case.length else []
    return ", ".join([f"input {case.input}", *size, *frames, *length])


def _computer(machine: Machine, device: str) -> list[str]:
    if device.startswith("cpu"):
        threads = f", {machine.threads} threads" if machine.threads else ""
        return [f"CPU ({machine.cpu or 'name not read'}{threads})"]
    peak = [f"peak bandwidth {machine.peak_bandwidth}"] if machine.peak_bandwidth else []
    return [machine.device_name, f"driver {machine.driver}" if machine.driver else "driver not read", *peak]
