"""A profile as sheets: one per variant, by part, block, kernel or operator, and one per difference of two variants.

`options["by"]` and `options["diff"]` of the profile say which; both are views of the same records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from repshift_cli.analysis.labelled import is_evaluation
from repshift_cli.profiling import break_even
from repshift_cli.profiling.annotations import SELECTION
from repshift_cli.records import WITHOUT_ATTENTION, Run
from repshift_cli.records.profile import Breakdown, ProfileRun
from repshift_cli.renderers.sheets import evaluation
from repshift_cli.renderers.sheets.answer import closing
from repshift_cli.renderers.sheets.break_even import maps
from repshift_cli.renderers.sheets.cells import ALWAYS, Cell, Column, Sheet
from repshift_cli.renderers.sheets.crossing import crossings
from repshift_cli.renderers.sheets.row_columns import short_kernel
from repshift_cli.renderers.sheets.run import header_of, sheets

MOST_ROWS = 20
MOST_CHANGES = 12
MOST_SAID = 3
LONGEST_NAME = 60
NOT_WORTH_A_ROW = 5e-4
"""Milliseconds that show as nothing."""


def sheets_of(run: Run | ProfileRun) -> list[Sheet]:
    """What the table and Markdown show of either file."""
    if isinstance(run, ProfileRun):
        return profile_sheets(run)
    if is_evaluation(run):
        return evaluation.sheets(run)
    ready = [*sheets(run), *maps(run), *crossings(run)]
    if ready:
        code, answer = closing(run)
        ready[-1] = replace(ready[-1], code=code, answer=answer)
    return ready


def profile_sheets(run: ProfileRun) -> list[Sheet]:
    """The sheets of every variant, then the differences where they were asked for."""
    by, shown = str(run.options.get("by", "part")), list(run.breakdowns)
    ready = [_sheet(run, b, by, _header(run, b, before)) for before, b in zip([None, *shown], shown, strict=False)]
    if run.options.get("diff"):
        ready += [_difference(a, b) for a, b in break_even.pairs(shown)]
    if ready and run.warnings:
        notes = (*ready[-1].notes, *(f"warning: {text}" for text in run.warnings))
        ready[-1] = replace(ready[-1], notes=notes)
    return ready


def sentence(run: ProfileRun) -> str:
    """Whether pruning pays, variant by variant, the first few."""
    pairs = [(b, break_even.reference_of(b, run.breakdowns)) for b in run.breakdowns if b.status == "ok" and b.parts]
    said = [f"{b.name}: {next(iter(_verdict(b, before)))}" for b, before in pairs if before and before.parts]
    more = f"; {len(said) - MOST_SAID} more below" if len(said) > MOST_SAID else ""
    return f"{'; '.join(said[:MOST_SAID])}{more}." if said else ""


def view_of(b: Breakdown, by: str) -> str:
    """The view that can be had: kernels where there are no parts, operators where there are no kernels.

    A file may ask for what nobody knows: it is shown by part.
    """
    by = by if by in ("layer", "kernel", "op") else "part"
    if by in ("part", "layer") and not b.parts:
        by = "kernel"
    return "op" if by == "kernel" and not b.kernels else by


def _header(run: ProfileRun, b: Breakdown, before: Breakdown | None) -> tuple[str, ...]:
    """The variant, and what all of its group share where the sheet before did not say it."""
    case = b.case
    if case is None:
        return (b.name,)
    rate = f"{'keep' if case.remove is None else 'remove'} {case.rate}"
    own = (rate, f"layers {','.join(map(str, case.layers))}") if case.layers else ()
    graph = ("CUDA graph",) if case.execution == "graph" else ()
    known = before is not None and before.case is not None and before.case.group == case.group
    return (case.variant, *own, *graph, *(() if known or run.machine is None else header_of(run.machine, [case])))


def _sheet(run: ProfileRun, b: Breakdown, by: str, header: tuple[str, ...]) -> Sheet:
    if b.status != "ok":
        return Sheet(header, (Column("variant", ALWAYS, ()),), "", (f"{b.status}: {b.reason}",))
    reference, view = break_even.reference_of(b, run.breakdowns), view_of(b, by)
    columns = {"part": _parts, "layer": _layers, "kernel": _kernels, "op": _ops}[view](b, reference)
    return Sheet(header, tuple(columns), "", tuple(_notes(b, reference, by, view)))


# --- by part ----------------------------------------------------------------------------------------------------------


def _parts(b: Breakdown, reference: Breakdown | None) -> Iterable[Column]:
    """Parts, the device's idle time and the step: what stands above the step adds up to it."""
    names = break_even.parts_of(b)
    if reference is not None:
        names = [p for p in break_even.PART_ORDER if p in {*names, *break_even.parts_of(reference)}]
    idle = ["idle"] if b.on_device else []
    yield Column("part", ALWAYS, tuple(Cell(n) for n in (*names, *idle, "step")))
    if b.on_device:
        device = [break_even.time(b, n) for n in names]
        yield from _figures("device", 10, [*device, max(0.0, b.step - sum(device)), b.step], b.step)
    host: list[float | None] = [break_even.time(b, n, on_device=False) for n in names]
    yield from _figures("host" if b.on_device else "", 11, [*host, *([None] if idle else []), b.step], b.step)
    if reference is not None:
        deltas = [break_even.time(b, n) - break_even.time(reference, n) for n in names]
        own_idle, its_idle = (max(0.0, x.step - (x.busy_ms or 0.0)) for x in (b, reference))
        changed = [*deltas, *([own_idle - its_idle] if idle else []), b.step - reference.step]
        yield Column(f"vs {reference.name} ms", 12, tuple(_signed(x, b.step) for x in changed), True, True)


def _figures(label: str, rank: int, values: Sequence[float | None], step: float) -> Iterable[Column]:
    times = tuple(Cell() if v is None else Cell(_ms(v, step)) for v in values)
    shares = tuple(Cell() if v is None else Cell(f"{v / step:.1%}" if step else "") for v in values)
    yield Column(f"{label} ms".strip(), rank, times, True, True)
    yield Column(f"{label} share".strip(), rank + 3, shares, True, True)


# --- by layer ---------------------------------------------------------------------------------------------------------


def _layers(b: Breakdown, reference: Breakdown | None) -> Iterable[Column]:
    """Blocks from 1, what lies outside them, and the sum; behind them what pruning saved and has won so far."""
    layers, on = break_even.layers_of(b), b.on_device
    yield Column("block", ALWAYS, tuple(Cell(n) for n in (*map(str, layers), "outside", "all")))
    if b.tokens and not break_even.in_stages(b):
        yield Column("tokens", 13, (*(Cell(str(break_even.tokens_in(b, n))) for n in layers), Cell(), Cell()), True)
    times = [*(break_even.time(b, layer=n) for n in layers), break_even.outside(b), break_even.time(b)]
    yield Column("device ms" if on else "ms", 10, tuple(Cell(_ms(t, b.step)) for t in times), True, True)
    if break_even.selection(b):
        yield _by_layer("selection", 11, [break_even.selection(b, n) for n in layers], break_even.selection(b), b)
    if reference is not None:
        rows = break_even.balance(b, reference)
        saved = [*(r.saved for r in rows), break_even.outside(reference) - break_even.outside(b)]
        yield Column("saved ms", 12, tuple(_signed(x, b.step) for x in [*saved, sum(saved)]), True, True)
        won = [*(r.won for r in rows)]
        won += [won[-1] + saved[-1]] * 2
        yield Column("won so far ms", 12, tuple(_signed(x, b.step) for x in won), True, True)
    shown = [p for p in break_even.parts_of(b) if p not in SELECTION and break_even.time(b, p)]
    for rank, part in enumerate(shown, start=20):
        yield _by_layer(part, rank, [break_even.time(b, part, n) for n in layers], break_even.time(b, part), b)


def _by_layer(name: str, rank: int, values: Sequence[float], everywhere: float, b: Breakdown) -> Column:
    cells = [Cell(_ms(v, b.step)) if v else Cell() for v in values]
    rest = everywhere - sum(values)
    cells.append(Cell(_ms(rest, b.step)) if rest > NOT_WORTH_A_ROW else Cell())
    return Column(f"{name} ms", rank, (*cells, Cell(_ms(everywhere, b.step))), True, True)


# --- by kernel and operator -------------------------------------------------------------------------------------------


def _kernels(b: Breakdown, reference: Breakdown | None) -> Iterable[Column]:
    rows, everywhere = b.kernels[:MOST_ROWS], sum(k.ms for k in b.kernels)
    yield Column("kernel", ALWAYS, tuple(Cell(readable(k.name)) for k in rows))
    yield Column("calls", 12, tuple(Cell(_count(k.calls)) for k in rows), True, True)
    yield Column("device ms", 10, tuple(Cell(_ms(k.ms, everywhere)) for k in rows), True, True)
    yield Column("share", 11, tuple(Cell(f"{k.ms / everywhere:.1%}") for k in rows), True, True)


def _ops(b: Breakdown, reference: Breakdown | None) -> Iterable[Column]:
    rows, everywhere = b.ops[:MOST_ROWS], sum(o.host_ms for o in b.ops) or 1.0
    yield Column("operator", ALWAYS, tuple(Cell(readable(o.name)) for o in rows))
    yield Column("calls", 12, tuple(Cell(_count(o.calls)) for o in rows), True, True)
    yield Column("own host ms", 10, tuple(Cell(_ms(o.host_ms, everywhere)) for o in rows), True, True)
    yield Column("share", 11, tuple(Cell(f"{o.host_ms / everywhere:.1%}") for o in rows), True, True)
    if b.on_device:
        yield Column("device ms", 10, tuple(Cell(_ms(o.device_ms or 0.0, everywhere)) for o in rows), True, True)


# --- differences ------------------------------------------------------------------------------------------------------


def _difference(before: Breakdown, after: Breakdown) -> Sheet:
    """Which kernels (operators on a CPU) appeared, vanished, grew or shrank, the largest change first."""
    what = "kernels" if after.kernels else "operators"
    changes = [c for c in break_even.changes(before, after) if c.what != "same"]
    rows = [c for c in changes if abs(c.difference) > NOT_WORTH_A_ROW or c.what in ("new", "gone")][:MOST_CHANGES]
    longest = max([before.step, after.step])
    columns = (
        Column(what.removesuffix("s"), ALWAYS, tuple(Cell(readable(c.name)) for c in rows)),
        Column("change", 11, tuple(Cell(c.what) for c in rows)),
        Column("difference ms", 10, tuple(_signed(c.difference, longest) for c in rows), True, True),
        Column("ms", 12, tuple(_from_to(c, [_ms(t, longest) for t in c.ms]) for c in rows), True, True),
        Column("calls", 13, tuple(_from_to(c, [_count(n) for n in c.calls]) for c in rows), True, True),
    )
    words = {"new": "new", "gone": "gone", "more": "with more time", "less": "with less"}
    counts = {said: sum(c.what == word for c in changes) for word, said in words.items()}
    said = f"{what}: " + ", ".join(f"{count} {words}" for words, count in counts.items())
    notes = [said, *([_rest(len(changes), len(rows), what)] if len(changes) > len(rows) else [])]
    notes += [f"step {_ms(before.step, longest)} → {_ms(after.step, longest)} ms", *_counts_of_both(before, after)]
    notes += [f"{b.name}: {break_even.bound(b)}" for b in (before, after) if break_even.bound(b)]
    return Sheet((f"{before.name} → {after.name}",), columns, "", tuple(notes))


def _from_to(change: break_even.Change, figures: list[str]) -> Cell:
    before, after = ("–" if change.what == missing else f for missing, f in zip(("new", "gone"), figures, strict=True))
    return Cell(f"{before} → {after}")


def _counts_of_both(before: Breakdown, after: Breakdown) -> list[str]:
    if before.kernel_count is None or after.kernel_count is None:
        calls = [sum(o.calls for o in b.ops) for b in (before, after)]
        return [f"operators called per step {_count(calls[0])} → {_count(calls[1])}"]
    pairs = ((before.kernel_count, after.kernel_count), (before.launches or 0, after.launches or 0))
    return [
        "per step: "
        + ", ".join(f"{n} {_count(a)} → {_count(b)}" for n, (a, b) in zip(("kernels", "launches"), pairs, strict=True))
    ]


# --- notes ------------------------------------------------------------------------------------------------------------


def _notes(b: Breakdown, reference: Breakdown | None, by: str, view: str) -> Iterable[str]:
    steps = len(b.step_ms)
    spread = (
        f" ({_ms(min(b.step_ms), b.step)} to {_ms(max(b.step_ms), b.step)} over {steps} steps)" if steps > 1 else ""
    )
    whole = "step" if steps > 1 or b.case else "trace"
    slowed = ", slowed by the profiler: `repshift bench` times without it" if b.case else ""
    yield f"{whole} {_ms(b.step, b.step)} ms{spread}{slowed}"
    if words := break_even.bound(b):
        yield words
    if b.kernel_count is not None:
        yield f"{_count(b.kernel_count)} kernels and {_count(b.launches or 0)} launches per {whole}"
    if b.overlapped_ms and b.overlapped_ms > NOT_WORTH_A_ROW:
        yield f"{_ms(b.overlapped_ms, b.step)} ms overlap on several streams; parts count them once, kernels each"
    if view != by:
        yield f"shown by {view}, for {b.missing.get('parts') or 'a CPU has no kernels apart from its operators'}"
    shown = {"kernel": len(b.kernels), "op": len(b.ops)}.get(view, 0)
    if shown > MOST_ROWS:
        yield _rest(shown, MOST_ROWS, "kernels" if view == "kernel" else "operators")
    if reference is not None and b.parts and reference.parts:
        yield from _verdict(b, reference)
    if b.kernel and not (b.case and b.case.attention == WITHOUT_ATTENTION):
        yield f"attention ran on {short_kernel(b.kernel)}"
    yield from (f"warning: {text}" for text in b.warnings)


def _verdict(b: Breakdown, reference: Breakdown) -> Iterable[str]:
    """Whether and from where pruning pays, said on the times that count."""
    drift = break_even.drift(b, reference)
    if abs(drift) > break_even.MOST_DRIFT:
        yield (
            f"no verdict on pruning: the blocks up to the first cut, alike in both, took {drift:+.0%} time against "
            f"{reference.name}; something else runs here, or --steps is too low"
        )
        return
    cost, won = _ms(break_even.selection(b), b.step), break_even.time(reference) - break_even.time(b)
    where = "device time" if b.on_device else "time"
    layer, keep = break_even.pays_from(b, reference), break_even.break_even_keep(b, reference)
    if won <= 0 or layer is None:
        yield f"pruning does not pay here: the selection costs {cost} ms and the later blocks save less"
    else:
        yield f"the selection costs {cost} ms, paid for from block {layer} on; {_ms(won, b.step)} ms of {where} are won"
    if keep is not None:
        yield f"break-even: at these layers pruning pays up to keep {keep:.2f} (estimate: block time linear in tokens)"
    elif break_even.in_stages(b):
        yield "break-even by keep is not estimated: the stages of a CNN change the grid too, each in its own way"
    if b.on_device and (b.idle_share or 0) > break_even.HOST_BOUND:
        change = b.step - reference.step
        yield f"but the host sets the pace: the step itself changed by {change:+.3f} ms"


def _rest(everything: int, shown: int, what: str) -> str:
    return f"{everything - shown} more {what} are in --summary"


# --- words ------------------------------------------------------------------------------------------------------------


def readable(name: str) -> str:
    """A kernel's or operator's name without what many share, cut in its middle where it is long."""
    short = (
        name.removeprefix("void ")
        .removeprefix("aten::")
        .replace("(anonymous namespace)::", "")
        .replace("at::native::", "")
    )
    return short if len(short) <= LONGEST_NAME else f"{short[: LONGEST_NAME - 18]}…{short[-17:]}"


def _ms(value: float, largest: float) -> str:
    """Milliseconds with the decimals that the table's largest value lets one read."""
    return f"{value:.{_decimals(largest)}f}"


def _decimals(largest: float) -> int:
    return 2 if largest >= 10 else 3


def _signed(value: float, largest: float) -> Cell:
    text = f"{value:+.{_decimals(largest)}f}".replace("-", "−")
    return Cell(text if any(c in text for c in "123456789") else "0")


def _count(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
