"""Two variants on the same samples: the difference, its interval, and how sure it is. Pure arithmetic.

Of right and wrong answers only the samples count on which the two differ: `gained` that the variant alone has right,
`lost` that the reference alone has right. Tango's score interval (Statistics in Medicine 17, 1998) holds near 0 and for
few samples; McNemar's test is exact. What is no mean over samples (a rank correlation, recall in a shared gallery) is
resampled: `bootstrap`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

CONFIDENCE = 0.95
RESAMPLES = 1000


def discordant(differences: Sequence[float]) -> tuple[int, int]:
    """How many of the differences (variant - reference, of right or wrong) are gains, and how many losses."""
    return sum(d > 0 for d in differences), sum(d < 0 for d in differences)


def tango(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of differences of 100, 0 or -100 per sample, in points, with Tango's 95% score interval."""
    gained, lost = discordant(differences)
    value, low, high = _tango(gained, lost, len(differences))
    return 100 * value, 100 * low, 100 * high


@lru_cache(maxsize=4096)
def _tango(gained: int, lost: int, n: int) -> tuple[float, float, float]:
    """The difference of two paired shares and the ends at which the score statistic is the normal quantile."""
    value = (gained - lost) / n
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    low = _crossing(lambda delta: _score(gained, lost, n, delta) - z, -1.0, value)
    high = _crossing(lambda delta: _score(gained, lost, n, delta) + z, value, 1.0)
    return value, low, high


def _score(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's statistic of "the difference is delta": falls as delta grows; his equations 7 and 10."""
    distance = gained - lost - n * delta
    a, c = 2 * n, -lost * delta * (1 - delta)
    b = -gained - lost + (2 * n - gained + lost) * delta
    only_reference = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * only_reference + delta * (1 - delta))
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero between the two."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p-value of "gains and losses are equally likely": a binomial of one half."""
    n, least = gained + lost, min(gained, lost)
    tail = sum(math.exp(_log_choose(n, k) - n * math.log(2)) for k in range(least + 1))
    return min(1.0, 2 * tail)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): below a level they are rejected, any false one with at most that chance."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for step, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[i]))
        adjusted[i] = highest
    return adjusted


# --- what is no share of right answers --------------------------------------------------------------------------------


def percentiles(samples: Sequence[float]) -> tuple[float, float | None, float | None]:
    """A figure, the first of the samples, with the 95% percentile interval of its resampled values, the others."""
    value, *resampled = samples
    if len(resampled) < 2:
        return value, None, None
    ordered = sorted(resampled)
    cut = round((1 - CONFIDENCE) / 2 * len(ordered))
    return value, ordered[cut], ordered[-1 - cut]


def resampled_p(samples: Sequence[float]) -> float:
    """Twice the share of the resampled differences on the other side of 0 than most of them, and never 0."""
    resampled = samples[1:]
    side = min(sum(v <= 0 for v in resampled), sum(v >= 0 for v in resampled))
    return min(1.0, 2 * (side + 1) / (len(resampled) + 1))


def bootstrap(figure: Callable[[Any], float], n: int, seed: int = 0, count: int = RESAMPLES) -> list[float]:
    """`figure(rows)` of all n samples, then of as many drawn with replacement, `count` times.

    `rows` are places (n,) of an array. The same seed draws the same rows, so that two variants' values are paired.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    return [figure(np.arange(n)), *(figure(generator.integers(0, n, n)) for _ in range(count))]


def spearman(one: Any, other: Any) -> float:
    """Spearman's rank correlation of two arrays (n,), ties at their mean rank; NaN where one of them is constant."""
    import numpy as np

    a, b = (_ranks(np.asarray(values)) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    length = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / length if length else math.nan


def _ranks(values: Any) -> Any:
    """Ranks from 1, ties at their mean."""
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
