"""What a run answers: what pruning gained against the better unpruned variant, at what loss, and what to do next.

Pure: fields and codes, no sentence; `renderers.sheets.answer` has the words.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from repshift_cli.analysis.stats import (
    CONFIDENCE,
    Estimate,
    benjamini_hochberg,
    estimate,
    hodges_lehmann,
    rounds_of,
    signed_rank_p,
)
from repshift_cli.records import METHODS_WITHOUT_PRUNING, OPERATORS, Case, Measurement, Record, Run

CONTROLS = ("random", "stride")
"""Methods that choose without looking: where one does as well, the score is not what helps."""
LIMITS = ("oracle",)
"""Methods that say how fast others could be, and are none to use."""
LOSSES = ("fidelity_kl", "fidelity_cosine", "fidelity_top1")
"""Metrics of what was lost; rows are compared by the first of them that both have."""
AS_WELL = 1.05
"""A control does as well where it loses at most this many times as much."""
HOST_BOUND = 0.7
"""Where the kernels take less than this share of a forward, the device waits for the host."""
WIDE = 0.1
"""An interval wider than this, from end to end, leaves open what more rounds could tell."""
SPEEDUP = "speedup_vs_"

PAYS, SLOWER, OPEN, UNJUDGED, UNPRUNED = "pays", "slower", "open", "unjudged", "unpruned"
QUIET, ROUNDS, BASELINE, METHOD, WEIGHTS, CONTROL = "quiet", "rounds", "baseline", "method", "weights", "control"
LAYERS, HOST, GROW, BUDGET, APPLY = "layers", "host", "grow", "budget", "apply"
"""What to do next: measure on a quiet machine, in more rounds, beside an unpruned variant, with a method, with trained
weights, beside a control, at other layers; as a graph or with a larger batch, with a larger batch or more tokens, for
longer; or use it."""


@dataclass(frozen=True)
class Gain:
    """A pruned row's speed-up `over` the fastest unpruned variant that it was paired with (`flash`), and its `loss`.

    `p` is the one-sided p-value of "it is no faster". `loss` holds what was measured of `LOSSES`, on so many `inputs`;
    nothing where the weights are random.
    """

    case: Case
    over: str
    among: int
    speedup: Estimate
    p: float
    loss: tuple[Measurement, ...] = ()
    inputs: int | None = None

    @property
    def lost(self) -> float | None:
        """How much was lost, by the first of `LOSSES`; None where nothing says it."""
        return _lost(self.loss[0]) if self.loss else None


@dataclass(frozen=True)
class Control:
    """What a method that chooses without looking loses at the same places, and whether it does as well."""

    method: str
    loss: Measurement
    as_well: bool


@dataclass(frozen=True)
class Answer:
    """`best` is the fastest of so many `rows`, `mildest` of those that pay the one that loses least, if another.

    `verdict` is a word of this module: PAYS, SLOWER, OPEN, UNJUDGED (with the step that would allow one in `next`) or
    UNPRUNED. It paid in `paying` of the `settings`: models, sizes, batches, executions. Rows pay by Benjamini and
    Hochberg's procedure over all of them: the luckiest of many that gain nothing has an interval above 1 soon.
    """

    verdict: str
    best: Gain | None = None
    mildest: Gain | None = None
    controls: tuple[Control, ...] = ()
    rows: int = 0
    settings: int = 0
    paying: int = 0
    next: tuple[str, ...] = ()


def answer(run: Run) -> Answer | None:
    """The answer of a run of models; None where no case of one was measured."""
    ran = [r for r in run.records if r.status == "ok" and r.case.model != OPERATORS]
    if not ran:
        return None
    candidates = _candidates(ran)
    if not candidates:
        return Answer(UNPRUNED, next=(METHOD,))
    gains = [gain for record in _chosen(candidates) if (gain := gain_of(record)) is not None]
    if not gains:
        return Answer(UNJUDGED, next=(_why_unjudged(candidates),))
    shown = benjamini_hochberg([gain.p for gain in gains], (1 - CONFIDENCE) / 2)
    paying = [gain for gain, pays in zip(gains, shown, strict=True) if pays]
    best = max(paying or gains, key=lambda gain: gain.speedup.value)
    slower = all(gain.speedup.high is not None and gain.speedup.high < 1 for gain in gains)
    found = Answer(
        PAYS if paying else SLOWER if slower else OPEN,
        best,
        _mildest(best, paying),
        _controls(best, ran),
        len(gains),
        len({_setting(gain.case) for gain in gains}),
        len({_setting(gain.case) for gain in paying}),
    )
    return replace(found, next=_next(found, next(r for r in ran if r.case == best.case)))


def gain_of(record: Record) -> Gain | None:
    """The record's speed-up over the unpruned variant that it gains least on; None where no ratio may be shown."""
    figures = [
        (m, figure)
        for m in record.measurements
        if m.metric.startswith(SPEEDUP) and not record.unfit and (figure := estimate(m)) is not None
    ]
    if not figures:
        return None
    ratio, speedup = min(figures, key=lambda pair: pair[1].value)
    over, p = ratio.metric.removeprefix(SPEEDUP), signed_rank_p(rounds_of(ratio), 1.0)
    counted = record.measurement("fidelity_inputs")
    inputs = int(counted.samples[0]) if counted and counted.samples else None
    return Gain(record.case, over, len(figures), speedup, p, losses(record), inputs)


def losses(record: Record) -> tuple[Measurement, ...]:
    """What says how much was lost; nothing where the weights are random, for then it says nothing of the model."""
    if record.case.weights == "random":
        return ()
    found = (record.measurement(name) for name in LOSSES)
    return tuple(m for m in found if m is not None and m.samples)


def waits_for_host(busy: float, milliseconds: float) -> bool:
    """Whether kernels that take `busy` ms leave the device waiting in a forward of so many."""
    return busy < HOST_BOUND * milliseconds


# --- which rows -------------------------------------------------------------------------------------------------------


def _candidates(ran: Sequence[Record]) -> list[Record]:
    """The pruned rows; a control only where nothing else prunes."""
    pruned = [r for r in ran if r.case.pruning not in (METHODS_WITHOUT_PRUNING, *LIMITS)]
    return [r for r in pruned if r.case.pruning not in CONTROLS] or pruned


def _chosen(candidates: Sequence[Record]) -> list[Record]:
    """Of the rows that drop as many tokens at the same places the one that loses least: their times are chance."""
    alike: dict[tuple[Any, ...], Record] = {}
    for record in candidates:
        key = (_setting(record.case), record.case.attention, record.case.schedule)
        other = alike.get(key)
        if other is None or _rank(record) < _rank(other):
            alike[key] = record
    return list(alike.values())


def _rank(record: Record) -> tuple[bool, float]:
    """What may be judged comes first, then what loses least."""
    gain = gain_of(record)
    return gain is None, gain.lost or 0.0 if gain else 0.0


def _setting(case: Case) -> tuple[Any, ...]:
    return (*case.group, case.execution)


def _mildest(best: Gain, paying: Sequence[Gain]) -> Gain | None:
    known = [gain for gain in paying if gain.lost is not None and _setting(gain.case) == _setting(best.case)]
    least = min(known, key=lambda gain: gain.lost or 0.0, default=None)
    return None if least is None or least.case == best.case else least


def _controls(best: Gain, ran: Sequence[Record]) -> tuple[Control, ...]:
    """The controls at the best row's places, where it and they have a loss."""
    found = []
    for record in ran:
        same = _setting(record.case) == _setting(best.case) and record.case.schedule == best.case.schedule
        if not same or record.case.pruning not in CONTROLS or record.case.attention != best.case.attention:
            continue
        loss = losses(record)
        if best.loss and loss and loss[0].metric == best.loss[0].metric and record.case != best.case:
            as_well = _lost(loss[0]) <= AS_WELL * _lost(best.loss[0])
            found.append(Control(record.case.pruning, loss[0], as_well))
    return tuple(found)


def _lost(m: Measurement) -> float:
    """The loss as a number that is 0 where nothing was lost: nats, 1 - cosine, percent of the inputs."""
    value = statistics.fmean(m.samples)
    return {"fidelity_cosine": 1 - value, "fidelity_top1": 100 - value}.get(m.metric, value)


# --- what to do next --------------------------------------------------------------------------------------------------


def _why_unjudged(candidates: Sequence[Record]) -> str:
    """What stands in the way of a ratio: a busy machine, too few rounds, or nothing to compare with."""
    ratios = [m for r in candidates for m in r.measurements if m.metric.startswith(SPEEDUP) and m.samples]
    if not ratios:
        return BASELINE
    return QUIET if any(hodges_lehmann(rounds_of(m)).low is not None for m in ratios) else ROUNDS


def _next(found: Answer, record: Record) -> tuple[str, ...]:
    if found.verdict != PAYS:
        return _of_no_gain(found, record)
    if record.case.weights == "random":
        return (WEIGHTS,)
    if found.best is None or not found.best.loss:
        return (APPLY,)
    if any(control.as_well for control in found.controls):
        return (LAYERS,)
    return (APPLY,) if found.controls else (CONTROL,)


def _of_no_gain(found: Answer, record: Record) -> tuple[str, ...]:
    assert found.best is not None
    busy, latency = record.measurement("device_busy"), record.measurement("latency")
    waits = busy and latency and busy.samples and waits_for_host(busy.samples[0], statistics.median(latency.samples))
    low, high = found.best.speedup.low, found.best.speedup.high
    wide = found.verdict == OPEN and low is not None and high is not None and (high - low > WIDE or low > 1)
    return (HOST if waits and record.case.execution == "eager" else GROW, *[BUDGET] * wide)
