"""Did the inspection say beforehand where the shift is good? What it found of each block against the stored runs.

`python tests/generated.py --write` puts the table into profiles/baselines/README.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

from repshift_cli.analysis import stats
from repshift_cli.records import Record, store
from repshift_cli.records.inspection import Inspection

FOLDER = Path(__file__).parent.parent / "profiles" / "baselines" / "cpu"
NOTHING = "–"
DRAWS, SEED = 2000, 0
FEWEST_BLOCKS = 5
"""Below so many blocks no interval is told: schedules after one block share what is said of it."""
METHODS = ("repshift", "random", "lowest")
PREDICTORS = ("shift ~ importance", "one by one", "at once")
AT_ONCE = PREDICTORS.index("at once")
"""What is said of a block: the rank correlation of shift and importance, and what the lower half costs over a random
one, token by token or at once; these two with their sign turned, so that more is better for the shift."""


@dataclass(frozen=True)
class Trial:
    """Stored runs (names apart by blanks) and the inspection of the same weights; `better` is -1 where less of the
    metric is better."""

    label: str
    run: str
    metric: str
    inspection: str
    better: int = 1
    accuracy: bool = False


TRIALS = (
    Trial("digits, points", "accuracy/digits", "top1", "digits", accuracy=True),
    Trial("digits, several cuts, points", "accuracy/digits-cuts", "top1", "digits"),
    Trial(
        "DINOv2-S, Fashion-MNIST, points", "accuracy/dinov2-s-fashion", "probe_top1", "dinov2-s-fashion", accuracy=True
    ),
    Trial("DINOv2-S, several cuts, points", "accuracy/dinov2-s-cuts", "probe_top1", "dinov2-s-fashion"),
    Trial("the same by photos", "accuracy/dinov2-s-fashion", "probe_top1", "dinov2-s"),
    Trial("MiniLM, spam, points", "accuracy/minilm-spam", "probe_top1", "minilm-mails", accuracy=True),
    Trial("the same by sentences", "accuracy/minilm-spam", "probe_top1", "minilm"),
    Trial(
        "SmolLM2, next-token loss, nats",
        "accuracy/smollm2-topics accuracy/smollm2-depths",
        "next_token_loss",
        "smollm2-topics",
        better=-1,
    ),
    Trial("SmolLM2, prompts, KL, nats", "smollm2-prompts", "fidelity_kl", "smollm2", better=-1),
    Trial("DINOv2-S, photos, cosine", "dinov2-s-photos", "fidelity_cosine", "dinov2-s"),
)


@dataclass(frozen=True)
class Schedule:
    """One schedule: what was said of its blocks (`said`, as `PREDICTORS`, and the `sign`), and what came of it."""

    place: tuple[str, tuple[int, ...]]
    said: tuple[float, ...]
    sign: int
    over_random: float
    over_lowest: float


def predictions() -> str:
    """By run: the rank correlation, over schedules, of what was said with what came."""
    heads = ("run", "schedules", "blocks", "the shift's gain over", *PREDICTORS, "told right")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    by_trial = {trial: schedules(trial) for trial in TRIALS}
    measured = [s for trial, found in by_trial.items() if trial.accuracy for s in found]
    for label, found in [*((t.label, s) for t, s in by_trial.items()), ("all accuracies of one cut, points", measured)]:
        lines += [f"| {' | '.join(cells)} |" for cells in _rows(label, found)]
    for cells in _rows("all but `the same by`", everything()):
        lines.append(f"| {' | '.join((*cells[:4], *[NOTHING] * len(PREDICTORS), cells[-1]))} |")
    return "\n".join(lines)


def everything() -> list[Schedule]:
    """The schedules of all runs, each told by what was inspected on the data of its evaluation; in their own units."""
    return [s for trial in TRIALS if not trial.label.startswith("the same") for s in schedules(trial)]


def _rows(label: str, found: Sequence[Schedule]) -> Iterator[tuple[str, ...]]:
    counts = str(len(found)), str(len({s.place for s in found}))
    for name, gain in (("random", _over_random), ("lowest", _over_lowest)):
        cells = (_cell(found, n, gain) for n in range(len(PREDICTORS)))
        yield (label, *counts, name, *cells, signs_right(found) if name == "lowest" else better_where_told(found))


def _over_random(schedule: Schedule) -> float:
    return schedule.over_random


def _over_lowest(schedule: Schedule) -> float:
    return schedule.over_lowest


def _cell(found: Sequence[Schedule], predictor: int, gain: Callable[[Schedule], float]) -> str:
    rho = spearman([s.said[predictor] for s in found], [gain(s) for s in found])
    if rho is None:
        return NOTHING
    ends = interval(found, lambda some: spearman([s.said[predictor] for s in some], [gain(s) for s in some]))
    return f"{rho:+.2f}" + (f" ({ends[0]:+.2f} to {ends[1]:+.2f})" if ends else "")


def signs_right(found: Sequence[Schedule]) -> str:
    """Of the schedules for whose block a sign was told and that came out unequal, how many have it."""
    told = [s for s in found if s.sign and s.over_lowest]
    return f"{sum(s.sign * s.over_lowest > 0 for s in told)} of {len(told)}"


def better_where_told(found: Sequence[Schedule]) -> str:
    """How many schedules beat random dropping, of those told to (at once the half with the lower shift costs less than
    a random half) and of the others; what came out equal did not."""
    told = [s.over_random > 0 for s in found if s.said[AT_ONCE] > -1]
    others = [s.over_random > 0 for s in found if s.said[AT_ONCE] <= -1]
    return f"{sum(told)} of {len(told)}, else {sum(others)} of {len(others)}"


# --- why the sign flips ---------------------------------------------------------------------------------------------

EVEN = ", even norms"
THROUGH = ("norm", "attention received", "reader's attention")
INSPECTED = ("dinov2-s", "digits", "dinov2-s-fashion", "minilm", "minilm-mails", "smollm2", "smollm2-topics")


def signs() -> str:
    """By inspection: in how many blocks the shift ranks importance as it would through a third thing alone.

    Through the norm it would where (shift ~ norm) x (importance ~ norm) has the sign of shift ~ importance; in brackets
    the rank correlation, over blocks, of the product with what it stands for. Last the same of every form of the shift.
    """
    heads = ("inspection", "blocks", *(f"through {name}" for name in THROUGH), "all forms, through norm")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    by_name = {name: _all_products(name) for name in INSPECTED}
    together = [[pair for found in by_name.values() for pair in found[n]] for n in range(len(THROUGH) + 1)]
    for name, found in [*by_name.items(), ("all", together)]:
        cells = (_agreement(pairs) for pairs in found)
        lines.append(f"| {name} | {len(found[0])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _all_products(name: str) -> list[list[tuple[float, float]]]:
    """Of the default shift through each third thing, then of all forms of the shift through the norm."""
    forms = dict.fromkeys(score for _, score, _ in _inspected(name)["score_correlations"] if not score.endswith(EVEN))
    whole = [pair for score in forms for pair in _products(name, "norm", score)]
    return [*(_products(name, third, next(iter(forms))) for third in THROUGH), whole]


def _products(name: str, third: str, score: str) -> list[tuple[float, float]]:
    """By block (shift ~ third) x (importance ~ third), and shift ~ importance."""
    tables = _inspected(name)
    values = [
        (rho, tables["score_correlations"][block, score, third], tables["importance_correlation"][block, third])
        for (block, of, beside), rho in tables["score_correlations"].items()
        if beside == "importance" and of == score
    ]
    return [(a * b, rho) for rho, a, b in values if rho is not None and a is not None and b is not None]


def even_norms() -> str:
    """Shift ~ importance by block, as it is and with all states scaled to one length: what the norm itself does."""
    heads = ("inspection", "after block", "shift ~ importance", "even norms", "shift's sign stays")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in INSPECTED:
        pairs = evened(name)
        cells = (
            ", ".join(pairs),
            *(", ".join(f"{pair[n]:+.2f}" for pair in pairs.values()) for n in (0, 1)),
            f"{sum(a * b > 0 for a, b in pairs.values())} of {len(pairs)}",
        )
        lines.append(f"| {' | '.join((name, *cells))} |")
    return "\n".join(lines)


def evened(name: str) -> dict[str, tuple[float, float]]:
    """By block the default shift's rank correlation with importance, and that of the shift with even norms."""
    table = _inspected(name)["score_importance"]
    score, even = list(dict.fromkeys(score for _, score in table))[:2]
    assert even == score + EVEN
    by_block = {block: (table[block, score], table[block, even]) for block, of in table if of == score}
    return {block: (a, b) for block, (a, b) in by_block.items() if a is not None and b is not None}


def _agreement(pairs: Sequence[tuple[float, float]]) -> str:
    rho = spearman([a for a, _ in pairs], [b for _, b in pairs]) if len(pairs) > 3 else None
    counted = f"{sum(a * b > 0 for a, b in pairs)} of {len(pairs)}"
    return counted if rho is None else f"{counted} ({rho:+.2f})"


# --- what was said, and what came -------------------------------------------------------------------------------------


def schedules(trial: Trial) -> list[Schedule]:
    """The schedules of the run on which the shift, its opposite and random dropping stand, where all was inspected."""
    found: dict[tuple[tuple[int, ...], float], dict[str, list[float]]] = {}
    for record in (r for name in trial.run.split() for r in store.load(FOLDER / f"{name}.json").records):
        if record.status == "ok" and record.case.pruning in METHODS and record.case.option("form") in (None, "paper"):
            values = found.setdefault((record.case.layers, record.case.keep), {})
            values.setdefault(record.case.pruning, []).append(trial.better * _value(record, trial.metric))
    made = []
    for (layers, _), values in sorted(found.items()):
        said = said_of(trial.inspection, layers)
        if said is not None and len(values) == len(METHODS):
            shift, chance, opposite = (fmean(values[name]) for name in METHODS)
            made.append(Schedule((trial.run, layers), *said, shift - chance, shift - opposite))
    return made


def _value(record: Record, metric: str) -> float:
    measurement = record.measurement(metric)
    figure = stats.estimate(measurement) if measurement else None
    assert figure is not None, f"{record.case} has no {metric}"
    return figure.value


def said_of(name: str, layers: Iterable[int]) -> tuple[tuple[float, ...], int] | None:
    """The predictors' means over the blocks of a schedule, and the sign where all of them have the same."""
    tables, said, signs = _inspected(name), [], set()
    for block in map(str, layers):
        values = (
            tables["correlation"].get((block, "importance")),
            tables["dropped_importance"].get((block,)),
            tables["halves"].get((block, "lower half")),
        )
        if None in values:
            return None
        rho, one_by_one, at_once = (float(v) for v in values if v is not None)
        said.append((rho, -one_by_one, -at_once))
        signs.add(int(tables["sign"][block,] or 0))
    return tuple(map(fmean, zip(*said, strict=True))), signs.pop() if len(signs) == 1 else 0


@cache
def _inspected(name: str) -> dict[str, dict[tuple[str, ...], float | None]]:
    stored = store.load_any(FOLDER / "inspection" / f"{name}.json")
    assert isinstance(stored, Inspection)
    return {q.name: dict(q.items()) for q in stored.answer("score").quantities}


# --- statistics -------------------------------------------------------------------------------------------------------


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """The rank correlation, equal values sharing their mean rank; None where one of the two is the same for all."""
    a, b = _ranks(one), _ranks(other)
    top = sum(x * y for x, y in zip(a, b, strict=True))
    below = (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    return top / below if below else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks less their mean."""
    ranks = [sum(v < x for v in values) + sum(v == x for v in values) / 2 for x in values]
    middle = fmean(ranks)
    return [rank - middle for rank in ranks]


def interval(
    found: Sequence[Schedule], figure: Callable[[Sequence[Schedule]], float | None]
) -> tuple[float, float] | None:
    """95% of the figures of blocks drawn with replacement, each with all of its schedules; None for few blocks."""
    groups: dict[tuple[str, tuple[int, ...]], list[Schedule]] = {}
    for schedule in found:
        groups.setdefault(schedule.place, []).append(schedule)
    if len(groups) < FEWEST_BLOCKS:
        return None
    draw, places = random.Random(SEED), list(groups)
    drawn = ([s for place in draw.choices(places, k=len(places)) for s in groups[place]] for _ in range(DRAWS))
    values = sorted(v for some in drawn if (v := figure(some)) is not None)
    return values[int(0.025 * len(values))], values[int(0.975 * len(values))]


if __name__ == "__main__":
    print(predictions())
