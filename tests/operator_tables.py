"""The table of attention operators in profiles/baselines/README.md, from its run file: by what they do, by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from repshift_cli import registry
from repshift_cli.analysis import stats
from repshift_cli.analysis.crossing import crossing
from repshift_cli.records import Case, Record, Run, store

FOLDER = Path(__file__).parent.parent / "profiles" / "baselines" / "cpu"
FILES = ("operators.json", "operators-8k.json")
"""All operators up to 4096 tokens, and those measured at 8192."""
NOTHING = "–"
BUSY = "busy"
AT = 1024
"""The length whose error is shown."""
HALF = "`flash`, half of the tokens"
PHASES: dict[str, Callable[[Case], bool]] = {
    "Causal prefill": lambda case: bool(case.option("causal")),
    "Prefill without a mask": lambda case: case.option("causal") is False,
    "Decoding": lambda case: bool(case.option("decode")),
}
Key = tuple[str, int]


@cache
def run_of_operators() -> Run:
    """The stored runs as one."""
    run, *others = (store.load(FOLDER / name) for name in FILES)
    return replace(run, records=(*run.records, *(r for other in others for r in other.records)))


def records_of(phase: str) -> dict[Key, Record]:
    """By operator (as the table names it) and length."""
    found = [r for r in run_of_operators().records if PHASES[phase](r.case)]
    return {(HALF if r.case.keep < 1 else f"`{r.case.attention}`", r.case.length or 0): r for r in found}


def operator_lengths() -> str:
    """Speed-up over the reference of prefill or decoding: operators down, lengths across, the error at 1024, and what
    follows of them."""
    tables = [f"**{phase}**\n\n{_table(records_of(phase))}" for phase in PHASES]
    return "\n\n".join([*tables, "\n".join(f"- {line}" for line in (*_shown(), *_lacking()))])


def _shown() -> Iterator[str]:
    """By phase who is faster than the reference, and in prefill who is faster than flash on half of the tokens."""
    for phase in PHASES:
        records = records_of(phase)
        names = list(dict.fromkeys(name for name, _ in records))
        begins = {name: _faster_from(_fit(records, name)) for name in names if name != HALF}
        ahead = [f"{name} ({from_})" for name, from_ in begins.items() if from_ != NOTHING]
        yield f"{phase}: faster than the reference from so many tokens on: {', '.join(ahead) or 'none'}."
        halves = {r.case.length: _figure(r) for r in _fit(records, HALF)}
        if halves:
            beaten = [name for name in begins if any(_figure(r) > halves[r.case.length] for r in _fit(records, name))]
            yield (
                f"{phase}: flash on half of the tokens, which is what pruning makes of the same layer, is at least "
                f"{min(halves.values()):.1f} times as fast at every length; faster than that at some length: "
                f"{', '.join(beaten) or 'none'}."
            )


def _lacking() -> Iterator[str]:
    """Which operators are not here, and which lengths."""
    run = run_of_operators()
    here = {r.case.attention.partition(":")[0] for r in run.records}
    reasons: dict[str, list[str]] = {}
    for name, part in registry.parts("operators").items():
        if name not in here:
            reason = registry.load(part).ENGINES["plain"].unavailable("cpu") or "not asked for"
            reasons.setdefault(reason.partition(" (")[0], []).append(f"`{name}`")
    yield "Not here: " + "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items()) + "."
    for phase in PHASES:
        records = records_of(phase)
        lengths = {n for _, n in records}
        busy = sorted({n for (_, n), r in records.items() if r.unfit})
        if busy:
            yield f"{phase}: the machine was busy at {', '.join(map(str, busy))} tokens, so no speed-up is told there."
        if missing := [n for n in run.options["tokens"] if n not in lengths]:
            yield f"{phase}: {', '.join(map(str, missing))} tokens are not measured yet."


def _fit(records: dict[Key, Record], name: str) -> list[Record]:
    """The records of an operator whose times may be judged, by length; none of a reference."""
    own = [r for (n, _), r in sorted(records.items(), key=lambda item: item[0][1]) if n == name]
    return [r for r in own if not r.unfit and speedup(r) is not None]


def _figure(record: Record) -> float:
    figure = speedup(record)
    assert figure is not None
    return figure.value


def _table(records: dict[Key, Record]) -> str:
    lengths = sorted({n for _, n in records})
    heads = [*map(str, lengths), "faster from", f"err full at {AT}"]
    lines = [f"| operator | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(name for name, _ in records):
        cells = [_ratio(records.get((name, n))) for n in lengths]
        begins = _faster_from(_fit(records, name))
        lines.append(f"| {' | '.join([name, *cells, begins, _error(records.get((name, AT)))])} |")
    return "\n".join(lines)


def speedup(record: Record) -> stats.Estimate | None:
    """The paired speed-up over flash, or in decoding over flash of one query."""
    reference = "speedup_vs_decode" if record.case.option("decode") else "speedup_vs_flash"
    measurement = record.measurement(reference)
    return stats.estimate(measurement) if measurement else None


def _ratio(record: Record | None) -> str:
    if record is None:
        return NOTHING
    figure = speedup(record)
    return "ref" if figure is None else BUSY if record.unfit else f"{figure.value:.2f}x"


def _faster_from(own: Sequence[Record]) -> str:
    """From which length on, interpolated; what is not shown to differ from 1 counts as 1."""
    points = []
    for record in own:
        figure = speedup(record)
        assert figure is not None
        points.append((record.case.length or 0, min(figure.value, 1.0) if figure.spans(1) else figure.value))
    if not points:
        return NOTHING
    found = crossing(points)
    begins = {"always": f"{points[0][0]} or fewer", "never": NOTHING}.get(found.word, "")
    return begins or (f"~{found.at:.0f}" if found.at else NOTHING)


def _error(record: Record | None) -> str:
    error = record.measurement("err_full") if record else None
    return f"{error.samples[0]:.2g}" if error and error.samples else NOTHING
