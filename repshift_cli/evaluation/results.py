"""From what was kept of every sample to records: metrics, differences to the unpruned model and to random dropping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from repshift_cli.analysis import paired, stats
from repshift_cli.evaluation.loop import Contender
from repshift_cli.evaluation.samples import Sample
from repshift_cli.evaluation.tasks import Judge, Rows
from repshift_cli.records import METHODS_WITHOUT_PRUNING, Case, Measurement, Metric, Record

RANDOM = "random"
SAMPLES = Metric(
    "samples", "samples", "", "higher", "value", "counted",
    "How many samples of the data the variant was evaluated on: the same ones for every variant.", gateable=False,
    detail=True,
)  # fmt: skip
METRICS = (SAMPLES,)


def against(metric: Metric, other: str) -> Metric:
    """The difference of a metric to the unpruned model, or to random dropping, on the same samples."""
    unit = "points" if metric.unit == "%" else metric.unit
    statistic = "tango" if metric.statistic == "wilson" else metric.statistic
    return Metric(
        f"{metric.name}_vs_{other}", f"{metric.label} vs {other}", unit, metric.better, statistic, "paired",
        f"{metric.label} less that of {'the unpruned model' if other == 'unpruned' else 'random dropping'} on the same "
        "samples, with a paired interval.", gateable=False,
    )  # fmt: skip


def p_value(metric: Metric, adjusted: bool) -> Metric:
    """How likely a difference as large is where there is none."""
    name = f"{metric.name}_p{'_holm' if adjusted else ''}"
    what = "adjusted by Holm for all variants of the run" if adjusted else "exact (McNemar) for right and wrong answers"
    return Metric(
        name, f"{metric.label} p{' (Holm)' if adjusted else ''}", "", "higher", "value", "computed",
        f"The p-value of the difference in {metric.label} to the unpruned model, {what}.", gateable=False, detail=True,
    )  # fmt: skip


def records(
    contenders: Sequence[Contender], samples: Sequence[Sample], judge: Judge, metrics: Sequence[Metric], seed: int,
    stopped_by: str | None = None,
) -> list[Record]:  # fmt: skip
    """A record for every contender, on the samples that all of them saw and that could be read.

    One that an interruption left without any sample has none: a run that goes on makes it.
    """
    good = seen_by_all(contenders)
    whole = {c.case: c.whole for c in _alive(contenders)}
    seen = [samples[i] for i in good]
    scores = {case: judge.scores(kept[good], seen) for case, kept in whole.items()} if len(seen) else {}
    measured = {case: _metrics(rows, judge, metrics, seed) for case, rows in scores.items()}
    compared = _differences(scores, measured, judge, metrics, seed)
    adjusted = _holm(compared, metrics)
    made = []
    for c in contenders:
        if stopped_by is not None and c.failure is None and not c.outputs:
            continue
        if c.case not in measured:
            made.append(Record(c.case, "failed", c.failure or "no sample could be read", c.tokens))
            continue
        found = (SAMPLES.of(len(seen)), *measured[c.case].values(), *compared.get(c.case, ()), *adjusted[c.case])
        made.append(Record(c.case, "ok", None, c.tokens, measurements=found, stopped_by=stopped_by))
    return made


def _alive(contenders: Sequence[Contender]) -> list[Contender]:
    return [c for c in contenders if c.failure is None and c.outputs]


def seen_by_all(contenders: Sequence[Contender]) -> list[int]:
    """The places of the samples that every variant which has not failed saw, and that could be read."""
    whole = [c.whole for c in _alive(contenders)]
    count = min(map(len, whole), default=0)
    damaged = [np.isnan(kept[:count]).all((1, 2)) for kept in whole]
    return np.flatnonzero(~np.any(damaged, axis=0)).tolist() if whole else []


def _metrics(rows: Rows, judge: Judge, metrics: Sequence[Metric], seed: int) -> dict[str, Measurement]:
    """Every metric that the rows give, by name."""
    found = {}
    for metric in metrics:
        if metric.name in judge.figures:
            values = paired.bootstrap(_figure(judge.figures[metric.name], rows), _length(rows), seed)
            found[metric.name] = metric.of(*values)
        elif metric.name in rows:
            found[metric.name] = metric.of(*rows[metric.name])
    return found


def _figure(figure: Callable[[Rows], float], rows: Rows) -> Callable[[np.ndarray], float]:
    return lambda places: figure({name: values[places] for name, values in rows.items()})


def _length(rows: Rows) -> int:
    return len(next(iter(rows.values())))


# --- differences ------------------------------------------------------------------------------------------------------


def reference_of(case: Case, cases: Sequence[Case]) -> Case | None:
    """The unpruned variant that a case is compared with: of its own back end, else the first; None for itself."""
    unpruned = [c for c in cases if c.pruning == METHODS_WITHOUT_PRUNING]
    own = [c for c in unpruned if c.attention == case.attention]
    found = next(iter([*own, *unpruned]), None)
    first = unpruned[0] if unpruned else None
    return first if found == case and first != case else None if found == case else found


def randoms_of(case: Case, cases: Sequence[Case]) -> list[Case]:
    """Random dropping at the same token counts, every seed of it; none for random itself and for unpruned ones."""
    if case.pruning in (METHODS_WITHOUT_PRUNING, RANDOM):
        return []
    alike = [c for c in cases if c.pruning == RANDOM and c.schedule == case.schedule]
    return [c for c in alike if c.attention == case.attention] or alike


def _differences(
    scores: Mapping[Case, Rows],
    measured: Mapping[Case, Mapping[str, Measurement]],
    judge: Judge,
    metrics: Sequence[Metric],
    seed: int,
) -> dict[Case, list[Measurement]]:
    cases, found = list(scores), {}
    for case in cases:
        reference, randoms = reference_of(case, cases), randoms_of(case, cases)
        told = []
        for metric in (m for m in metrics if m.name in measured[case]):
            difference = against(metric, "unpruned")
            if reference is None:
                told.append(difference.missing("it is what others are compared with", reference=True))
            else:
                told.append(_difference(difference, measured[case][metric.name], [measured[reference][metric.name]]))
            if randoms:
                others = [measured[c][metric.name] for c in randoms]
                told.append(_difference(against(metric, RANDOM), measured[case][metric.name], others))
        found[case] = told
    return found


def _difference(metric: Metric, own: Measurement, others: Sequence[Measurement]) -> Measurement:
    """Sample by sample, or resample by resample, less the mean of the others."""
    mean = np.mean([m.samples for m in others], axis=0)
    if metric.statistic == "tango" and len(others) > 1:
        metric = dataclasses.replace(metric, statistic="mean")
    return metric.of(*(np.asarray(own.samples) - mean))


def _p(difference: Measurement) -> float:
    if difference.statistic == "tango":
        return paired.mcnemar(*paired.discordant(difference.samples))
    if difference.statistic == "bootstrap":
        return paired.resampled_p(difference.samples)
    return stats.mean_p(difference.samples)


def _holm(compared: Mapping[Case, Sequence[Measurement]], metrics: Sequence[Metric]) -> dict[Case, list[Measurement]]:
    """The p-values of the differences to the unpruned model, metric by metric, alone and adjusted."""
    found: dict[Case, list[Measurement]] = {case: [] for case in compared}
    for metric in metrics:
        name = f"{metric.name}_vs_unpruned"
        own = {case: m for case, told in compared.items() for m in told if m.metric == name and m.samples}
        p_values = [_p(m) for m in own.values()]
        for case, p, adjusted in zip(own, p_values, paired.holm(p_values), strict=True):
            found[case] += [p_value(metric, False).of(p), p_value(metric, True).of(adjusted)]
    return found
