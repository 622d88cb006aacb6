"""Differences on the same samples: Tango's interval, McNemar's test, Holm, the bootstrap, Spearman."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from repshift_cli.analysis import paired, stats
from repshift_cli.records import Measurement


def differences(gained: int, lost: int, n: int) -> list[float]:
    return [100.0] * gained + [-100.0] * lost + [0.0] * (n - gained - lost)


def test_tangos_interval_is_where_his_statistic_is_the_quantile() -> None:
    """The equations of the paper solved by another way: the constrained estimate by maximising the likelihood."""
    gained, lost, n = 12, 3, 80
    value, low, high = (v / 100 for v in paired.tango(differences(gained, lost, n)))
    assert value == pytest.approx(9 / 80)
    for delta, sign in ((low, 1), (high, -1)):
        grid = np.linspace(max(0.0, -delta) + 1e-9, (1 - delta) / 2 - 1e-9, 400_001)
        likelihood = gained * np.log(grid + delta) + lost * np.log(grid) + (n - 15) * np.log(1 - 2 * grid - delta)
        only_reference = grid[likelihood.argmax()]
        z = (gained - lost - n * delta) / math.sqrt(n * (2 * only_reference + delta * (1 - delta)))
        assert z == pytest.approx(sign * 1.959964, abs=1e-3)


def test_tangos_interval_turns_with_the_sides_and_holds_at_the_ends() -> None:
    value, low, high = paired.tango(differences(12, 3, 80))
    assert paired.tango(differences(3, 12, 80)) == pytest.approx((-value, -high, -low))
    none = paired.tango(differences(0, 0, 50))
    assert none[0] == 0 and none[1] == pytest.approx(-none[2]) and 5 < none[2] < 8
    assert paired.tango(differences(0, 50, 50))[:2] == pytest.approx((-100, -100))


def test_mcnemar_is_the_binomial_test() -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy says it too")
    for gained, lost in ((0, 0), (0, 1), (1, 12), (40, 60), (5000, 5200)):
        expected = scipy.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert paired.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_holm_adjusts_step_by_step() -> None:
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired.holm([]) == [] and paired.holm([0.9, 0.8]) == [1.0, 1.0]


def test_spearman_is_scipys_with_ties() -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy says it too")
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 6, 40), generator.normal(size=40)
    assert paired.spearman(one, other) == pytest.approx(scipy.spearmanr(one, other).statistic)
    assert math.isnan(paired.spearman(np.ones(5), np.arange(5)))


def test_the_mean_has_students_interval_and_test() -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy says it too")
    values = np.random.default_rng(1).normal(0.3, 1, 30).tolist()
    told, found = scipy.ttest_1samp(values, 0), stats.mean_interval(values)
    interval = told.confidence_interval()
    assert (found.value, found.low, found.high) == pytest.approx((statistics.fmean(values), *interval))
    assert stats.mean_p(values) == pytest.approx(told.pvalue)
    assert stats.mean_p([0.0, 0.0]) == stats.mean_p([3.0]) == 1.0


def test_the_bootstrap_draws_the_same_rows_for_every_variant() -> None:
    values = np.random.default_rng(2).normal(size=60)
    one, other = (paired.bootstrap(lambda rows, v=v: float(v[rows].mean()), 60) for v in (values, values + 1))
    assert one[0] == pytest.approx(values.mean())
    assert np.subtract(other, one) == pytest.approx(np.ones(len(one)))
    middle, low, high = paired.percentiles(one)
    assert low is not None and high is not None and low < middle < high
    assert paired.resampled_p([1.0, *[0.5] * 999]) == pytest.approx(0.002)


@pytest.mark.parametrize(("right", "gain", "loss"), [(0.8, 0.04, 0.08), (0.5, 0.15, 0.15)])
def test_intervals_hold_the_truth_95_times_in_100(right: float, gain: float, loss: float) -> None:
    """Both kinds on the same draws: the share of right answers, and the difference of two paired shares."""
    generator, n, repeats = np.random.default_rng(3), 400, 4000
    drawn = generator.multinomial(n, (gain, loss, 1 - gain - loss), repeats)
    held = 0
    for gained, lost, _ in drawn.tolist():
        _, low, high = paired.tango(differences(gained, lost, n))
        held += low <= 100 * (gain - loss) <= high
    assert 0.94 <= held / repeats <= 0.96
    shares = generator.binomial(n, right, repeats).tolist()
    intervals = {k: stats.wilson(differences(k, 0, n)) for k in set(shares)}
    assert 0.94 <= statistics.fmean(intervals[k].spans(100 * right) for k in shares) <= 0.96


def test_resampled_intervals_hold_the_truth_95_times_in_100() -> None:
    """Of a share, whose resampled values are binomial: what the bootstrap draws, without drawing every row."""
    generator, n, truth = np.random.default_rng(3), 400, 0.6
    held = 0
    for right in generator.binomial(n, truth, 3000).tolist():
        resampled = generator.binomial(n, right / n, paired.RESAMPLES) / n
        _, low, high = paired.percentiles([right / n, *resampled.tolist()])
        held += low is not None and high is not None and low <= truth <= high
    assert 0.94 <= held / 3000 <= 0.96


@pytest.mark.parametrize(
    ("statistic", "samples", "expected"),
    [
        ("tango", (100.0, 0.0, -100.0, -100.0), -25.0),
        ("mean", (1.0, 2.0, 6.0), 3.0),
        ("bootstrap", (0.7, *([0.5, 0.9] * 50)), 0.7),
    ],
)
def test_a_measurement_names_its_statistic(statistic: str, samples: tuple[float, ...], expected: float) -> None:
    found = stats.estimate(Measurement("x", "x", "points", "higher", statistic, "labelled", samples))
    assert found is not None and found.value == pytest.approx(expected)
    assert found.low is not None and found.high is not None and found.low < expected < found.high
