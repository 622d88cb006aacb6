"""Statistics against tables that anyone can look up, and laws that hold for all samples."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repshift_cli.analysis.stats import (
    Estimate,
    benjamini_hochberg,
    estimate,
    hodges_lehmann,
    median_interval,
    outliers,
    paired_ratios,
    point,
    round_medians,
    steady,
    student_t,
)
from repshift_cli.records import Measurement

TIMES = st.lists(st.floats(0.01, 1000), min_size=2, max_size=40)
PAIRS = st.lists(st.tuples(st.floats(0.01, 1000), st.floats(0.01, 1000)), min_size=2, max_size=40)


def measurement(statistic: str, samples: tuple[float, ...], per_round: int = 1) -> Measurement:
    return Measurement("m", "m", "ms", "lower", statistic, "timed", samples, per_round, "none")


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (9, 2.262),
        (10, 2.228),
        (29, 2.045),
        (120, 1.980),
        (1000, 1.962),
    ],
)
def test_student_t_as_in_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=6e-4)


def test_student_t_at_99_percent() -> None:
    assert student_t(5, 0.99) == pytest.approx(4.032, abs=6e-4)


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8), (50, 18)])
def test_median_interval_takes_the_sign_tests_ranks(n: int, rank: int) -> None:
    """The r-th smallest and r-th largest value, r from the published tables of the sign test at 95%."""
    values = [float(i) for i in range(1, n + 1)]
    random.Random(1).shuffle(values)
    assert median_interval(values) == Estimate((n + 1) / 2, rank, n + 1 - rank)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_too_few_rounds_give_no_interval(n: int) -> None:
    figure = median_interval([1.0] * n)
    assert (figure.value, figure.low, figure.high, figure.half_width) == (1.0, None, None, None)
    assert figure.spans(1.5)


@given(TIMES, st.floats(0.1, 10))
def test_scaling_the_samples_scales_the_figure(times: list[float], factor: float) -> None:
    scaled = [t * factor for t in times]
    for figure, larger in (
        (median_interval(times), median_interval(scaled)),
        (hodges_lehmann(times), hodges_lehmann(scaled)),
    ):
        assert larger.value == pytest.approx(figure.value * factor)
        if figure.low is not None and figure.high is not None:
            assert larger.low == pytest.approx(figure.low * factor)
            assert larger.high == pytest.approx(figure.high * factor)


@given(PAIRS)
def test_swapping_the_variants_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    forward, backward = hodges_lehmann(paired_ratios(one, other)), hodges_lehmann(paired_ratios(other, one))
    assert forward.value == pytest.approx(1 / backward.value)
    if len(pairs) >= 6:
        assert forward.low is not None and backward.high is not None
        assert forward.low * backward.high == pytest.approx(1)


@given(PAIRS, st.randoms())
def test_the_order_of_rounds_is_irrelevant(pairs: list[tuple[float, float]], order: random.Random) -> None:
    def figure() -> Estimate:
        return hodges_lehmann(paired_ratios([a for a, _ in pairs], [b for _, b in pairs]))

    before = figure()
    order.shuffle(pairs)
    after = figure()
    assert after.value == pytest.approx(before.value)
    assert (after.low, after.high) == (before.low, before.high)


@given(TIMES)
def test_the_interval_holds_its_figure(times: list[float]) -> None:
    for figure in (median_interval(times), hodges_lehmann(times)):
        if figure.low is not None and figure.high is not None:
            assert figure.low * (1 - 1e-9) <= figure.value <= figure.high * (1 + 1e-9)


@pytest.mark.parametrize("n", [6, 7, 10, 25, 60])
def test_hodges_lehmann_by_brute_force(n: int) -> None:
    noise = random.Random(n)
    logs = sorted(noise.gauss(0, 1) for _ in range(n))
    averages = sorted((logs[i] + logs[j]) / 2 for i in range(n) for j in range(i, n))
    rank = {6: 1, 7: 3, 10: 9, 25: 90, 60: 649}[n]  # tables of the signed-rank test, two-sided 5%: critical value + 1
    figure = hodges_lehmann([math.exp(x) for x in logs])
    assert figure.value == pytest.approx(math.exp(statistics.median(averages)))
    assert figure.low == pytest.approx(math.exp(averages[rank - 1]))
    assert figure.high == pytest.approx(math.exp(averages[-rank]))


def test_hodges_lehmann_needs_six_ratios_for_an_interval() -> None:
    assert hodges_lehmann([1.1] * 5) == Estimate(pytest.approx(1.1))
    assert hodges_lehmann([1.1] * 6).low == pytest.approx(1.1)


def test_its_normal_approximation_goes_on_where_the_exact_ranks_end() -> None:
    noise = random.Random(3)
    ratios = [math.exp(noise.gauss(0, 0.05)) for _ in range(61)]
    exact, approximate = hodges_lehmann(ratios[:60]), hodges_lehmann(ratios)
    assert exact.half_width is not None
    assert approximate.half_width == pytest.approx(exact.half_width, rel=0.1)


def by_student(ratios: list[float]) -> Estimate:
    """What normal noise would suggest: the geometric mean with Student's interval on the logarithms."""
    logs = [math.log(r) for r in ratios]
    half = student_t(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.fmean(logs)
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


@pytest.mark.parametrize("outliers_share", [0.0, 0.1])
def test_the_intervals_cover_as_often_as_they_say(outliers_share: float) -> None:
    noise = random.Random(7)

    def ratio() -> float:
        outlier = noise.expovariate(4) if noise.random() < outliers_share else 0.0
        return 1.2 * math.exp(noise.gauss(0, 0.05) + outlier * noise.choice((-1, 1)))

    trials = [[ratio() for _ in range(12)] for _ in range(600)]
    typical = [hodges_lehmann(ratios) for ratios in trials]
    assert 0.92 <= statistics.fmean(figure.spans(1.2) for figure in typical) <= 0.98
    assert statistics.fmean(median_interval(ratios).spans(1.2) for ratios in trials) >= 0.93
    widths = [statistics.median(f.half_width or 0 for f in figures) for figures in (typical, map(by_student, trials))]
    assert widths[0] < 1.1 * widths[1] if not outliers_share else widths[0] < widths[1]


def test_a_round_counts_by_its_median() -> None:
    assert round_medians([1, 2, 90, 4, 5, 6], 3) == [2, 5]
    assert round_medians([1, 3, 5], 2) == [2, 5]


def test_estimate_follows_the_statistic() -> None:
    samples = (1.0, 2.0, 90.0, 4.0, 5.0, 6.0)
    assert estimate(measurement("median", samples, 3)) == Estimate(3.5)
    assert estimate(measurement("value", (42.0,))) == Estimate(42.0)
    ratio = estimate(measurement("hodges-lehmann", (2.0,) * 6))
    assert ratio is not None and ratio.value == pytest.approx(2) and not ratio.spans(1)
    assert estimate(measurement("median", ())) is None


def test_half_width_is_relative() -> None:
    assert Estimate(10, 9, 12).half_width == pytest.approx(0.15)


def test_paired_ratios_need_equal_lengths() -> None:
    with pytest.raises(ValueError):
        paired_ratios([1.0, 2.0], [1.0])


def test_steady_only_when_two_windows_agree() -> None:
    assert not steady([[1.0, 1.1]])
    assert not steady([[2.0] * 5, [1.0] * 5])
    assert not steady([[1.0] * 5, [0.5, 1.0, 1.0, 1.0, 1.0]])
    assert steady([[2.0] * 5, [1.0] * 5, [1.01] * 5])


def test_outliers_are_counted_beyond_the_outer_fences() -> None:
    calm = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    assert outliers(calm) == 0
    assert outliers([*calm * 3, 9.0]) == 1
    assert outliers([1.0, 9.0, 1.0]) == 0


# --- shares and rates -------------------------------------------------------------------------------------------------


def figure_of(statistic: str, samples: tuple[float, ...], per_round: int = 1) -> Estimate | None:
    return estimate(Measurement("m", "m", "", "higher", statistic, "timed", samples, per_round))


def test_one_of_one_may_be_anything_from_a_fifth_up() -> None:
    """Wilson's interval by hand: 1 / (1 + z^2) for one of one, z^2 / (1 + z^2) from above for none of one."""
    one, none = figure_of("wilson", (100.0,)), figure_of("wilson", (0.0,))
    assert one == Estimate(100.0, pytest.approx(100 / (1 + 1.959964**2)), pytest.approx(100.0))
    assert none == Estimate(0.0, pytest.approx(0.0, abs=1e-9), pytest.approx(100 - 100 / (1 + 1.959964**2)))
    many = figure_of("wilson", (100.0,) * 30 + (0.0,) * 2)
    assert many and many.low and many.value == 93.75 and 79 < many.low < 80


def test_a_ratio_without_an_interval_is_no_figure() -> None:
    assert figure_of("hodges-lehmann", (1.2,) * 5) is None and figure_of("hodges-lehmann", (1.2,) * 6) is not None
    assert point(Measurement("m", "m", "x", "higher", "hodges-lehmann", "timed", (1.2,) * 5)) == pytest.approx(1.2)


@given(st.lists(st.floats(0.5, 50), min_size=8, max_size=8), st.sampled_from([1, 2, 4, 8]))
def test_a_rate_is_the_inverse_of_the_time_it_comes_from(times: list[float], per_round: int) -> None:
    """Medians of an even count of samples and of their inverses would differ."""
    time, rate = (
        figure_of(s, tuple(v), per_round) for s, v in (("median", times), ("inverse-median", [1 / t for t in times]))
    )
    assert time and rate and rate.value * time.value == pytest.approx(1)
    if time.low and time.high:
        assert (
            rate.low and rate.high and rate.low * time.high == pytest.approx(1) == pytest.approx(rate.high * time.low)
        )


def test_benjamini_and_hochberg_reject_up_to_the_largest_that_holds() -> None:
    """The example of their paper of 1995, section 3.2: of 15 p-values the four smallest at 0.05 (Bonferroni: three)."""
    values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719]
    values += [0.6528, 0.7590, 1.0]
    turned = values[::-1]
    assert benjamini_hochberg(turned, 0.05) == [False] * 11 + [True] * 4
    assert benjamini_hochberg([0.02] * 3, 0.02) == [True] * 3
    assert benjamini_hochberg([], 0.05) == []
