"""A search's outcome as tables: where one cut costs what, and what was found beside what it is held against."""

from __future__ import annotations

from repshift_cli.analysis.stats import estimate
from repshift_cli.records import Measurement
from repshift_cli.records.tuning import CHOSEN, Confirmed, Single, Tuning
from repshift_cli.renderers.sheets.cells import ALWAYS, MISSING, Cell, Column, Sheet


def sheets(tuning: Tuning) -> list[Sheet]:
    """The sensitivity, and the confirmed schedules where there are any."""
    made = [_sensitivity(tuning)] if tuning.singles else []
    if tuning.confirmed:
        made.append(_confirmed(tuning))
    return made or [Sheet(_header(tuning), (), "", _notes(tuning), answer=f"{tuning.sentence}.")]


def _header(tuning: Tuning) -> tuple[str, ...]:
    return (tuning.model, tuning.attention, tuning.machine.device_name, f"data {tuning.data}")


# --- one cut at a time ------------------------------------------------------------------------------------------------


def _sensitivity(tuning: Tuning) -> Sheet:
    """A row for each score, sign and keep, a column for each block; the least loss of a column at a keep stands out."""
    rows: dict[tuple[str, float], dict[int, float]] = {}
    for one in sorted(tuning.singles, key=lambda s: (s.keep, s.method)):
        rows.setdefault((score(one), one.keep), {})[one.layer] = one.loss
    blocks = sorted({one.layer for one in tuning.singles})
    columns = [
        Column("score", ALWAYS, tuple(Cell(score) for score, _ in rows)),
        Column("keep", ALWAYS, tuple(Cell(f"{keep:g}") for _, keep in rows), numeric=True),
        *(Column(f"block {block}", ALWAYS, _of_block(rows, block), numeric=True) for block in blocks),
    ]
    what = f"{tuning.loss} of one cut at one block at a time, on samples of the search; * marks a block's least"
    alone = not tuning.confirmed
    answer = f"{tuning.sentence}." if alone else ""
    return Sheet(_header(tuning), tuple(columns), "", (what, *(_notes(tuning) if alone else ())), answer=answer)


def _of_block(rows: dict[tuple[str, float], dict[int, float]], block: int) -> tuple[Cell, ...]:
    least = {
        keep: min(own[block] for (_, k), own in rows.items() if k == keep and block in own)
        for keep in {keep for (_, keep), own in rows.items() if block in own}
    }
    cells = []
    for (_, keep), own in rows.items():
        value = own.get(block)
        best = value is not None and value == least[keep]
        cells.append(Cell() if value is None else Cell(f"{value:.3g}{'*' * best}", "good" if best else ""))
    return tuple(cells)


def score(one: Single) -> str:
    """The method with its options: `repshift mlp l2 update`."""
    return " ".join([one.method, *(str(value) for _, value in one.options)])


# --- what was found ---------------------------------------------------------------------------------------------------


def _confirmed(tuning: Tuning) -> Sheet:
    told = tuning.confirmed
    several = len({one.number for one in told}) > 1
    columns = [
        *([Column("no.", ALWAYS, tuple(Cell(str(one.number)) for one in told), numeric=True)] * several),
        Column("what", ALWAYS, tuple(Cell(one.role) for one in told)),
        Column("schedule", ALWAYS, tuple(Cell(schedule(one)) for one in told)),
        Column(_of(tuning), ALWAYS, tuple(_figure(one.loss, one.failure) for one in told), numeric=True),
        Column("found less it", ALWAYS, tuple(_difference(one) for one in told), numeric=True),
        Column("speed-up", ALWAYS, tuple(_figure(one.speedup) for one in told), numeric=True),
        Column("ms", 3, tuple(_figure(one.latency) for one in told), numeric=True),
        Column("predicted ms", 4, tuple(_number(one.predicted) for one in told), numeric=True),
        Column("searched", 5, tuple(_number(one.calibration) for one in told), numeric=True),
    ]
    return Sheet(_header(tuning), tuple(columns), "", _notes(tuning), answer=f"{tuning.sentence}.")


def _of(tuning: Tuning) -> str:
    return f"{tuning.loss} ({tuning.unit})" if tuning.unit else tuning.loss


def schedule(one: Confirmed) -> str:
    """`repshift 0.5 at 3,6 mlp l2`."""
    options = [str(value) for _, value in one.case.options]
    options += [f"protect {one.case.protect}"] * (one.case.protect is not None)
    return " ".join([one.case.pruning, one.case.rate, "at", ",".join(map(str, one.case.layers)), *options])


def _figure(measurement: Measurement | None, failure: str | None = None) -> Cell:
    found = estimate(measurement) if measurement is not None else None
    if found is None:
        return Cell("failed", "failed", failure) if failure else Cell()
    detail = f"[{found.low:.3g}, {found.high:.3g}]" if found.low is not None and found.high is not None else ""
    return Cell(f"{found.value:.3g}", "", detail)


def _difference(one: Confirmed) -> Cell:
    """The found one's loss less this one's; good where the interval lies below 0."""
    cell = _figure(one.versus)
    found = estimate(one.versus) if one.versus is not None else None
    if one.role == CHOSEN or found is None or found.high is None or found.low is None:
        return cell
    return Cell(cell.text, "good" if found.high < 0 else "bad" if found.low > 0 else "quiet", cell.detail)


def _number(value: float | None) -> Cell:
    return Cell(MISSING if value is None else f"{value:.3g}")


def _notes(tuning: Tuning) -> tuple[str, ...]:
    notes: list[str] = []
    if tuning.confirmed:
        notes.append(
            f"{_of(tuning)} on {tuning.samples[1]} held-out samples, in brackets 95% intervals; differences are "
            f"paired; sought: {tuning.goal}, {tuning.trials} trials on {tuning.samples[0]} other samples"
        )
    if (several := len({one.number for one in tuning.confirmed})) > 1:
        notes.append(f"which of the {several} schedules counts as found is judged by Holm's procedure")
    if tuning.costs is not None and tuning.costs.typical is not None and tuning.costs.worst is not None:
        notes.append(
            f"times were predicted within {tuning.costs.typical:.1%} (at worst {tuning.costs.worst:.1%}) of "
            f"{tuning.costs.cases} timed cases, each left out in turn; speed-ups in the table are measured"
        )
    return (*notes, *tuning.notes)
