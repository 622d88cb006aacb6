"""From samples to figures, pure arithmetic: medians, spread, paired ratios and their intervals.

The unit of analysis is the round: within a round each variant gives one median, two variants give the logarithm of the
ratio of their medians (duet benchmarking, arXiv 2001.05811; Kalibera and Jones 2013, "Rigorous benchmarking in
reasonable time"). Over rounds, the figure is Hodges and Lehmann's estimator with Wilcoxon's signed-rank interval: as
narrow as Student's where noise is normal, several times narrower where a busy machine adds outliers, which need not
be dropped for it. Standard library only.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from repshift_cli.analysis import paired
from repshift_cli.records import Measurement

CONFIDENCE = 0.95
INVERSE = "inverse-median"
"""The statistic of rates: the inverse of the median time, so that it never contradicts the latency beside it."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; `low` and `high` are None where the samples allow none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half the interval as a share of the value, or None."""
        if self.low is None or self.high is None or not self.value:
            return None
        return (self.high - self.low) / 2 / abs(self.value)

    def spans(self, point: float) -> bool:
        """Whether the interval holds `point`: no difference from it was shown. Without an interval none is shown."""
        return self.low is None or self.high is None or self.low <= point <= self.high


def estimate(measurement: Measurement) -> Estimate | None:
    """The figure that a measurement's `statistic` names, or None: nothing was measured, or a ratio in too few rounds.

    A ratio without an interval is no figure: it may say the contrary of the latencies beside it.
    """
    if not measurement.samples:
        return None
    rounds = rounds_of(measurement)
    if measurement.statistic in ("median", INVERSE):
        figure = median_interval([1 / r for r in rounds] if measurement.statistic == INVERSE else rounds)
        return inverse(figure) if measurement.statistic == INVERSE else figure
    if measurement.statistic == "hodges-lehmann":
        ratio = hodges_lehmann(rounds)
        return None if ratio.low is None else ratio
    if measurement.statistic == "wilson":
        return wilson(rounds)
    if measurement.statistic == "tango":
        return Estimate(*paired.tango(measurement.samples))
    if measurement.statistic == "bootstrap":
        return Estimate(*paired.percentiles(measurement.samples))
    if measurement.statistic == "mean":
        return mean_interval(measurement.samples)
    return Estimate(statistics.fmean(rounds))


def point(measurement: Measurement) -> float | None:
    """The figure alone, from however few samples; None where nothing was measured."""
    if measurement.samples and measurement.statistic == "hodges-lehmann":
        return hodges_lehmann(rounds_of(measurement)).value
    figure = estimate(measurement)
    return None if figure is None else figure.value


def rounds_of(measurement: Measurement) -> list[float]:
    """One figure per round: the median of its samples; of rates, the inverse of the times'."""
    if measurement.statistic != INVERSE:
        return round_medians(measurement.samples, measurement.per_round)
    return [1 / t for t in round_medians([1 / s for s in measurement.samples], measurement.per_round)]


def inverse(figure: Estimate) -> Estimate:
    """1 / figure, its interval turned."""
    low, high = (None if end is None else 1 / end for end in (figure.high, figure.low))
    return Estimate(1 / figure.value, low, high)


def wilson(percents: Sequence[float]) -> Estimate:
    """The share of inputs that are 100 (not 0), in percent, with Wilson's 95% score interval (1927).

    It holds near 0 and 100%, also for few: one of one is 100%, and may be anything from 21% up.
    """
    n, z = len(percents), statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = statistics.fmean(percents) / 100
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(100 * share, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half))


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean with Student's 95% interval; none of a single value."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(middle)
    half = student_t(min(len(values) - 1, 1000)) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(middle, middle - half, middle + half)


def mean_p(values: Sequence[float]) -> float:
    """The two-sided p-value of "the mean is 0" by Student's t; 1 where the values allow none."""
    if len(values) < 2 or not any(values):
        return 1.0
    spread = statistics.stdev(values) / math.sqrt(len(values))
    if not spread:
        return 0.0
    return 1 - _two_sided(abs(statistics.fmean(values)) / spread, min(len(values) - 1, 1000))


def round_medians(samples: Sequence[float], per_round: int) -> list[float]:
    """One median per round from the flat list of samples, `per_round` of them in each."""
    return [statistics.median(samples[i : i + per_round]) for i in range(0, len(samples), per_round)]


def median_interval(values: Sequence[float]) -> Estimate:
    """The median with its distribution-free interval from order statistics (binomial, at least 95%).

    Fewer than 6 values cannot give 95%: then there is no interval.
    """
    ordered, n = sorted(values), len(values)
    rank = _order_rank(n)
    middle = statistics.median(ordered)
    return Estimate(middle) if rank is None else Estimate(middle, ordered[rank], ordered[n - 1 - rank])


@lru_cache(maxsize=1024)
def _order_rank(n: int) -> int | None:
    """The largest rank k with P(k <= Binomial(n, 1/2) - 1 <= n - 2 - k) >= 95%: the interval is [x_k, x_(n-1-k)]."""
    tail, best = 0.0, None
    for k in range(n // 2):
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if 1 - 2 * tail < CONFIDENCE:
            break
        best = k
    return best


def hodges_lehmann(ratios: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The typical ratio, on its logarithm: the median of all Walsh averages, with the signed-rank interval.

    Hodges and Lehmann 1963, "Estimates of location based on rank tests". Fewer than 6 ratios give no 95% interval.
    """
    return _typical(tuple(ratios), confidence)


@lru_cache(maxsize=16384)
def _typical(ratios: tuple[float, ...], confidence: float) -> Estimate:
    """Kept, for one figure stands in several tables and charts."""
    logs = sorted(math.log(r) for r in ratios)
    averages = len(logs) * (len(logs) + 1) // 2
    middle = (_walsh(logs, (averages + 1) // 2) + _walsh(logs, averages // 2 + 1)) / 2
    rank = _signed_rank(len(logs), confidence)
    if rank is None:
        return Estimate(math.exp(middle))
    return Estimate(math.exp(middle), math.exp(_walsh(logs, rank)), math.exp(_walsh(logs, averages + 1 - rank)))


def _walsh(ordered: Sequence[float], k: int) -> float:
    """The k-th smallest (from 1) of the averages (x_i + x_j) / 2, i <= j, by bisection on how many lie below."""
    low, high = ordered[0], ordered[-1]
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if _averages_up_to(ordered, middle) >= k else (middle, high)
    return low if _averages_up_to(ordered, low) >= k else high


def _averages_up_to(ordered: Sequence[float], limit: float) -> int:
    """How many averages (x_i + x_j) / 2, i <= j, are at most `limit`; one walk from both ends."""
    count, j = 0, len(ordered) - 1
    for i, value in enumerate(ordered):
        while j >= i and (value + ordered[j]) / 2 > limit:
            j -= 1
        if j < i:
            break
        count += j - i + 1
    return count


@lru_cache(maxsize=1024)
def _signed_rank(n: int, confidence: float = CONFIDENCE) -> int | None:
    """The rank k from either end of the ordered Walsh averages that bounds the interval: P(W < k) <= half the rest.

    Exact up to 60 values (W is the signed-rank statistic), beyond that by its normal approximation.
    """
    tail = (1 - confidence) / 2
    if n > 60:
        spread = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return math.floor(n * (n + 1) / 4 + statistics.NormalDist().inv_cdf(tail) * spread)
    return next((k for k, below in enumerate(_signed_rank_distribution(n)) if below > tail), None) or None


@lru_cache(maxsize=256)
def _signed_rank_distribution(n: int) -> tuple[float, ...]:
    """P(W <= k) for k = 0, 1, ... of the signed-rank statistic of n values, exactly: subsets of 1..n by their sum."""
    ways = [1]
    for i in range(1, n + 1):
        ways = [(ways[w] if w < len(ways) else 0) + (ways[w - i] if w >= i else 0) for w in range(len(ways) + i)]
    return tuple(count / 2**n for count in itertools.accumulate(ways))


def signed_rank_p(ratios: Sequence[float], bound: float) -> float:
    """One-sided p-value, exact, of "the typical ratio is at most `bound`": small where the ratios lie above it.

    It agrees with `hodges_lehmann`: at half the rest of a confidence, p is below where the interval is above the bound.
    """
    logs = [math.log(r / bound) for r in ratios]
    above = sum(a + b > 0 for i, a in enumerate(logs) for b in logs[i:])
    return _signed_rank_distribution(len(logs))[len(logs) * (len(logs) + 1) // 2 - above]


def paired_ratios(reference: Sequence[float], other: Sequence[float]) -> list[float]:
    """Round by round, reference time / other time: above 1 where the other is faster. Lengths must agree."""
    return [a / b for a, b in zip(reference, other, strict=True)]


@lru_cache(maxsize=4096)
def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t, by bisection on its distribution function."""
    low, high = 0.0, 2.0
    while _two_sided(high, freedom) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _two_sided(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def _two_sided(t: float, freedom: int) -> float:
    """P(|T| <= t) for an integer number of degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine2 = math.sin(theta), math.cos(theta) ** 2
    odd = freedom % 2
    term = total = math.cos(theta) if odd else 1.0
    if freedom == 1:
        return 2 * theta / math.pi
    for k in range(2 if odd else 1, freedom - 1, 2):
        term *= cosine2 * k / (k + 1)
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def steady(windows: Sequence[Sequence[float]], tolerance: float = 0.05) -> bool:
    """Whether warm-up is over: the last two windows agree in the median, and the fastest is no faster now."""
    if len(windows) < 2:
        return False
    (before, after) = (sorted(w) for w in windows[-2:])
    middle = statistics.median(before)
    return abs(statistics.median(after) - middle) <= tolerance * middle and after[0] >= (1 - 2 * tolerance) * before[0]


def outliers(values: Sequence[float]) -> int:
    """How many values lie beyond Tukey's outer fences (3 interquartile ranges); they are counted, never dropped."""
    if len(values) < 4:
        return 0
    q1, _, q3 = statistics.quantiles(values, n=4)
    return sum(not q1 - 3 * (q3 - q1) <= v <= q3 + 3 * (q3 - q1) for v in values)


# --- two sides, many hypotheses ---------------------------------------------------------------------------------------


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses Holm's step-down procedure (1979) rejects, the chance of any false one being at most `level`."""
    rejected = [False] * len(p_values)
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > level / (len(p_values) - step):
            break
        rejected[i] = True
    return rejected


def benjamini_hochberg(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses the step-up procedure (1995) rejects, the expected share of false ones being at most `level`."""
    ranks = sorted(p_values)
    limit = max((p for i, p in enumerate(ranks, 1) if p <= level * i / len(ranks)), default=-1.0)
    return [p <= limit for p in p_values]


def unpaired_ratio(reference: Sequence[float], other: Sequence[float]) -> Estimate:
    """other / reference by the geometric means of two runs' rounds, with Welch's interval on the logarithms."""
    a, b = ([math.log(v) for v in values] for values in (reference, other))
    shift = statistics.fmean(b) - statistics.fmean(a)
    if min(len(a), len(b)) < 2:
        return Estimate(math.exp(shift))
    u, v = (statistics.variance(x) / len(x) for x in (a, b))
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1)) if u + v else 1.0
    half = student_t(max(1, int(freedom))) * math.sqrt(u + v)
    return Estimate(math.exp(shift), math.exp(shift - half), math.exp(shift + half))
