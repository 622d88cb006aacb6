"""The gate's judgement: what it promises over a thousand simulated gates, and laws that hold for all rounds."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import ON_CPU

from repshift_cli.analysis import stats
from repshift_cli.analysis.comparison import ABSENT, BETTER, Finding, Lonely
from repshift_cli.analysis.stats import Estimate
from repshift_cli.gate import outputs
from repshift_cli.gate import verdict as rules
from repshift_cli.gate.thresholds import (
    MOST_ROUNDS,
    PROCESS_ROUNDS,
    QUICK_LEAST,
    QUICK_MOST,
    QUICK_PROCESS,
    QUICK_ROUNDS,
    ROUNDS,
)
from repshift_cli.gate.verdict import (
    FAIL,
    INCONCLUSIVE,
    INFORM,
    PASS,
    Check,
    Judged,
    Outcome,
    Round,
    decide,
    judge,
)
from repshift_cli.records import Measurement, Output, UsageError

GATES, FIRST, MOST, CASES = 1000, ROUNDS, MOST_ROUNDS, 4
BETWEEN, WITHIN = 0.006, 0.01
"""What processes differ by, and the turns of one process."""
MOOD, SPELL = 0.02, 8
"""What the machine's moods differ by, and for how many turns they last."""
OUTLIER, OUTLIERS_AMONG_TURNS, OUTLIERS_AMONG_PROCESSES = 1.2, 0.02, 0.01
DRIFT = 0.05
"""How much slower the machine gets in the course of a gate."""

CHECKS = [Check(dataclasses.replace(ON_CPU, seed=i), "latency", 0.01) for i in range(CASES)]


# --- a thousand gates -------------------------------------------------------------------------------------------------


class Machine:
    """Rounds of two fresh processes: each has its own pace, each of its turns some noise, and the machine has moods,
    which last for some turns and come to both sides; head is slower by `effects`.

    In turn, base and head alternate (base, head, head, base ...) and their ratio is the median over pairs of turns; one
    after another, each sees moods of its own, and the ratio is that of medians. `kept` is one pair of processes that
    serves all rounds, as the gate's never do.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        effects: Sequence[float],
        checks: Sequence[Check] = CHECKS,
        turns: int = PROCESS_ROUNDS,
        together: bool = True,
        kept: bool = False,
    ) -> None:
        self.rng, self.effects, self.checks, self.turns = rng, np.array(effects), checks, turns
        self.together, self.number = together, 0
        self.kept = self.paces() if kept else None

    def paces(self) -> np.ndarray:
        """How slow two processes are, by side and case, as a factor."""
        slow = np.where(self.rng.random((2, 1)) < OUTLIERS_AMONG_PROCESSES, OUTLIER, 1)
        return np.exp(self.rng.normal(0, BETWEEN, (2, len(self.effects)))) * slow

    def moods(self) -> np.ndarray:
        """The machine's, as a logarithm, by side and turn."""
        steps, drift = 2 * self.turns, DRIFT * self.number / MOST
        walk = np.convolve(self.rng.normal(0, MOOD, steps + SPELL - 1), np.full(SPELL, SPELL**-0.5), "valid") + drift
        if not self.together:
            return walk.reshape(2, self.turns)
        pairs = walk.reshape(self.turns, 2)
        pairs[1::2] = pairs[1::2, ::-1]
        return pairs.T

    def measure(self) -> Round:
        """One round."""
        shape = (2, self.turns, len(self.effects))
        noise = np.exp(self.rng.normal(0, WITHIN, shape) + self.moods()[:, :, None])
        noise *= np.where(self.rng.random(shape) < OUTLIERS_AMONG_TURNS, OUTLIER, 1)
        base, head = noise * (self.paces() if self.kept is None else self.kept)[:, None, :]
        self.number += 1
        ratios = np.median(head / base, 0) if self.together else np.median(head, 0) / np.median(base, 0)
        return dict(zip(self.checks, ratios * (1 + self.effects), strict=True))


@cache
def verdicts(effect: float, gates: int = GATES, quick: bool = False, together: bool = True) -> Counter[str]:
    """What gates say where one of the cases is slower by `effect`."""
    found: Counter[str] = Counter()
    first, most = (QUICK_ROUNDS, QUICK_MOST) if quick else (FIRST, MOST)
    turns, delta = (QUICK_PROCESS, QUICK_LEAST) if quick else (PROCESS_ROUNDS, 0.01)
    checks = [dataclasses.replace(check, delta=delta) for check in CHECKS]
    for seed in range(gates):
        effects = [effect, *[0.0] * (CASES - 1)]
        machine = Machine(np.random.default_rng([seed, round(effect * 1e6)]), effects, checks, turns, together)
        judged = decide(checks, machine.measure, first, most)
        found[worst(judged)] += 1
    return found


def worst(judged: dict[Check, Judged]) -> str:
    found = {j.verdict for j in judged.values()}
    return next(v for v in (FAIL, INCONCLUSIVE, PASS) if v in found)


@pytest.mark.slow
def test_a_against_a_does_not_cry_wolf() -> None:
    found = verdicts(0.0)
    assert found[FAIL] <= GATES * 0.01
    assert found[PASS] >= GATES * 0.9, "a gate that always stays open would not cry wolf either"


@pytest.mark.slow
def test_3_percent_is_caught() -> None:
    assert verdicts(0.03)[FAIL] >= GATES * 0.99


@pytest.mark.slow
def test_one_and_a_half_percent_is_hardly_ever_let_through() -> None:
    found = verdicts(0.015)
    assert found[PASS] <= GATES * 0.05
    assert found[INCONCLUSIVE] > 0


def test_a_quick_gate_promises_the_same_for_larger_slow_downs() -> None:
    """A third of the processes: A/A passes, 5% is caught, and 3% is hardly ever let through."""
    alike, slow, little = (verdicts(effect, 300, quick=True) for effect in (0.0, 0.05, 0.03))
    assert alike[FAIL] <= 3 and alike[PASS] >= 285
    assert slow[FAIL] >= 295 and little[PASS] <= 15


def test_turns_make_up_for_the_moods_of_a_machine() -> None:
    """What is measured one after another stays open on a machine that is as moody as this one."""
    in_turn, apart = (verdicts(0.0, 60, together=together) for together in (True, False))
    assert in_turn[PASS] >= 57 and apart[INCONCLUSIVE] >= 30 and apart[FAIL] <= 1


def test_the_rounds_of_a_process_that_is_kept_warm_are_no_rounds_of_their_own() -> None:
    """As many ratios from one pair of processes cry wolf by what these two happen to differ by."""
    kept = Counter[str]()
    for seed in range(60):
        machine = Machine(np.random.default_rng(seed), [0.0] * CASES, kept=True)
        kept[worst(decide(CHECKS, machine.measure, FIRST, FIRST))] += 1
    assert kept[FAIL] >= 6 and kept[PASS] <= 30, kept
    assert verdicts(0.0, 60)[FAIL] == 0


def test_a_gate_without_confirmation_or_correction_would_cry_wolf_more_often() -> None:
    """The margin is spent on purpose: at an effect of exactly delta an uncorrected test fails far more often."""
    plain, gated = 0, 0
    for seed in range(100):
        machine = Machine(np.random.default_rng(seed), [0.01] * CASES)
        rounds = [machine.measure() for _ in range(FIRST)]
        p = [stats.signed_rank_p([r[c] for r in rounds], 1.01) for c in CHECKS]
        plain += min(p) <= 0.05
        gated += any(j.verdict == FAIL for j in decide(CHECKS, machine.measure, FIRST, MOST).values())
    assert plain >= 10 and gated <= 2


# --- laws -------------------------------------------------------------------------------------------------------------

RATIOS = st.lists(st.floats(0.8, 1.25), min_size=8, max_size=24)
ONE = Check(ON_CPU, "latency", 0.01)


def rounds_of(ratios: Sequence[float]) -> list[Round]:
    return [{ONE: r} for r in ratios]


@given(RATIOS)
def test_swapping_the_sides_inverts_the_ratio(ratios: list[float]) -> None:
    there = judge([ONE], rounds_of(ratios))[ONE].ratio
    back = judge([ONE], rounds_of([1 / r for r in ratios]))[ONE].ratio
    assert back.value == pytest.approx(1 / there.value)
    assert there.low and there.high and back.low and back.high
    assert (back.low, back.high) == (pytest.approx(1 / there.high), pytest.approx(1 / there.low))


@given(RATIOS, st.floats(0.5, 2))
def test_scaling_one_side_scales_the_ratio(ratios: list[float], factor: float) -> None:
    plain = judge([ONE], rounds_of(ratios))[ONE].ratio
    scaled = judge([ONE], rounds_of([r * factor for r in ratios]))[ONE].ratio
    assert scaled.value == pytest.approx(plain.value * factor)


@given(RATIOS, st.randoms())
def test_the_order_of_the_rounds_does_not_matter(ratios: list[float], order: object) -> None:
    mixed = list(ratios)
    order.shuffle(mixed)  # type: ignore[attr-defined]
    assert judge([ONE], rounds_of(mixed)) == judge([ONE], rounds_of(ratios))


@given(RATIOS, st.floats(1.0, 1.1))
def test_the_test_and_the_interval_agree(ratios: list[float], bound: float) -> None:
    low = stats.hodges_lehmann(ratios, rules.CONFIDENCE).low
    assert low is not None
    if abs(low / bound - 1) > 1e-9:
        assert (stats.signed_rank_p(ratios, bound) <= rules.LEVEL) == (low > bound)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_bonferroni_and_no_correction(p_values: list[float]) -> None:
    rejected = stats.holm(p_values, 0.05)
    for p, out in zip(p_values, rejected, strict=True):
        assert p <= 0.05 if out else p > 0.05 / len(p_values)


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]


def test_signed_rank_p_by_hand() -> None:
    """All eight rounds above the bound: 1 of 2^8 sign patterns; all but the smallest: 2 of them."""
    assert stats.signed_rank_p([1.02 + i / 1000 for i in range(8)], 1.01) == 1 / 256
    assert stats.signed_rank_p([1.0095, *(1.02 + i / 1000 for i in range(7))], 1.01) == 2 / 256


@given(st.lists(st.floats(0.5, 50), min_size=2, max_size=20), st.lists(st.floats(0.5, 50), min_size=2, max_size=20))
def test_unpaired_ratios_invert_too(a: list[float], b: list[float]) -> None:
    there, back = stats.unpaired_ratio(a, b), stats.unpaired_ratio(b, a)
    assert there.low and back.high
    assert there.value == pytest.approx(1 / back.value) and there.low == pytest.approx(1 / back.high)


# --- looks and confirmation -------------------------------------------------------------------------------------------


def script(*batches: Sequence[float]) -> tuple[Callable[[], Round], list[int]]:
    """A measure that gives these ratios one after another, and the count of what it gave."""
    values, given_out = [r for batch in batches for r in batch], [0]

    def measure() -> Round:
        given_out[0] += 1
        return {ONE: values[given_out[0] - 1]}

    return measure, given_out


SLOW = [1.04 + i / 10000 for i in range(12)]
SAME = [1.0 + (-1) ** i * i / 10000 for i in range(12)]
WIDE = [1.0 + (-1) ** i * 0.05 for i in range(12)]


def test_a_pass_needs_one_look() -> None:
    measure, count = script(SAME)
    assert decide([ONE], measure, 12, 24)[ONE].verdict == PASS and count == [12]


def test_what_is_open_is_measured_up_to_the_last_look_and_no_further() -> None:
    measure, count = script(WIDE, WIDE)
    judged = decide([ONE], measure, 12, 24)[ONE]
    assert (judged.verdict, judged.rounds, count) == (INCONCLUSIVE, 24, [24])


def test_a_regression_is_confirmed() -> None:
    measure, count = script(SLOW, SLOW)
    judged = decide([ONE], measure, 12, 24)[ONE]
    assert judged.verdict == FAIL and count == [24]
    assert judged.reason == "confirmed in fresh processes: +4.1% (+4.0% to +4.1%)"


def test_a_failure_ends_it_whatever_else_is_open() -> None:
    """12 rounds and 12 of the confirmation; the other case would have asked for 24 before."""
    other, given_out = dataclasses.replace(ONE, metric="throughput"), [0]

    def measure() -> Round:
        given_out[0] += 1
        return {ONE: SLOW[(given_out[0] - 1) % 12], other: WIDE[(given_out[0] - 1) % 12]}

    judged = decide([ONE, other], measure, 12, 24)
    assert (judged[ONE].verdict, judged[other].verdict, given_out) == (FAIL, INCONCLUSIVE, [24])


def test_what_is_not_confirmed_is_open() -> None:
    measure, _ = script(SLOW, SAME)
    judged = decide([ONE], measure, 12, 24)[ONE]
    assert judged.verdict == INCONCLUSIVE and judged.reason and judged.reason.startswith("not confirmed")


def test_what_informs_is_not_judged() -> None:
    check = dataclasses.replace(ONE, gates=False)
    judged = judge([check], [{check: r} for r in SLOW])[check]
    assert judged.verdict == INFORM and judged.ratio.value == pytest.approx(1.0405, abs=1e-3)


def test_too_few_rounds_for_so_many_checks_are_refused() -> None:
    assert rules.least_rounds(1) == 7 and rules.least_rounds(4) == 9
    with pytest.raises(UsageError, match=r"8 rounds cannot show a regression among 4 gated checks; .* at least 9"):
        rules.check_rounds(CHECKS, 8)


def test_a_wide_threshold_lets_through_what_lies_below_it() -> None:
    wide = dataclasses.replace(ONE, delta=0.05)
    assert judge([wide], [{wide: r} for r in SLOW])[wide].verdict == PASS


# --- noise ------------------------------------------------------------------------------------------------------------


def test_learnt_noise_is_the_99th_percentile_of_a_against_a() -> None:
    """Of normal rounds of 1%: 2.58 / sqrt(12) of it, a little more for the estimator."""
    rng = np.random.default_rng(0)
    rounds = [{ONE: math.exp(x)} for x in rng.normal(0, 0.01, 400)]
    assert rules.noise(rounds, [ONE], first=12)[ONE] == pytest.approx(0.01 * 2.58 / math.sqrt(12), rel=0.15)


# --- exact metrics ----------------------------------------------------------------------------------------------------


def value(number: float, better: str = "lower") -> Measurement:
    return Measurement("macs", "MACs", "MAC", better, "value", "counted", (number,))


@pytest.mark.parametrize(
    ("base", "head", "better", "tolerance", "verdict"),
    [
        (100, 100, "lower", 0.0, PASS),
        (100, 100.1, "lower", 0.0, FAIL),
        (100, 99.9, "lower", 0.0, PASS),
        (100, 100.9, "lower", 0.01, PASS),
        (100, 101.1, "lower", 0.01, FAIL),
        (100, 99.9, "higher", 0.0, FAIL),
        (100, 200, "lower", None, INFORM),
        (0, 5, "lower", 0.0, FAIL),
    ],
)
def test_an_exact_metric_needs_no_statistics(
    base: float, head: float, better: str, tolerance: float | None, verdict: str
) -> None:
    assert rules.exact(ON_CPU, value(base, better), value(head, better), tolerance).verdict == verdict


# --- the whole --------------------------------------------------------------------------------------------------------


def finding(verdict: str, word: str = "same", ratio: float = 1.0, seed: int = 0) -> Finding:
    case = dataclasses.replace(ON_CPU, attention="flash", seed=seed)
    figure = Estimate(ratio, ratio - 0.005, ratio + 0.005)
    return Finding(case, "latency", "latency", "ms", "lower", False, 10, 10 * ratio, figure, word, 0.01, verdict, 12)


def outcome(*findings: Finding, lonely: Sequence[Lonely] = ()) -> Outcome:
    return Outcome("main (1234567890)", "the working tree", findings, tuple(lonely))


@pytest.mark.parametrize(
    ("findings", "code", "words"),
    [
        ([finding(PASS)], 0, "PASS: no regression in 1 case against main (1234567890)"),
        (
            [finding(PASS, BETTER, 0.95), finding(INFORM, "worse", 1.2, 1)],
            0,
            "better: flash seed 0 latency changed by -5.0% (-5.5% to -4.5%)",
        ),
        ([finding(FAIL, "worse", 1.03)], 1, "FAIL: flash latency changed by +3.0% (+2.5% to +3.5%), against main"),
        ([finding(INCONCLUSIVE)], 3, "INCONCLUSIVE: the noise leaves open"),
        ([finding(FAIL, "worse", 1.03), finding(INCONCLUSIVE, seed=1)], 1, "FAIL: flash seed 0"),
    ],
)
def test_the_last_line_says_which_and_why(findings: list[Finding], code: int, words: str) -> None:
    said = outcome(*findings)
    assert said.exit_code == code
    assert words in said.sentence and "\n" not in said.sentence


def test_a_case_that_no_longer_runs_is_a_regression() -> None:
    case = dataclasses.replace(ON_CPU, attention="flash")
    broken = outcome(finding(PASS, seed=1), lonely=[Lonely(case, "base", "failed", "failed: out of memory")])
    assert broken.exit_code == 1 and "no longer runs (failed: out of memory)" in broken.sentence
    refused = outcome(finding(PASS, seed=1), lonely=[Lonely(case, "base", "skipped", "skipped: it takes no mask")])
    assert refused.exit_code == 1
    absent = outcome(finding(PASS, seed=1), lonely=[Lonely(case, "base", ABSENT, "it has no such case")])
    new = outcome(finding(PASS, seed=1), lonely=[Lonely(case, "head", "failed", "failed: out of memory")])
    assert absent.exit_code == new.exit_code == 0
    assert absent.sentence.endswith("; no longer planned on head: flash seed 0") and "planned" not in new.sentence


def test_a_case_that_failed_once_leaves_the_gate_open() -> None:
    case = dataclasses.replace(ON_CPU, attention="flash")
    once = dataclasses.replace(outcome(finding(PASS, seed=1)), unsteady=(Lonely(case, "base", "failed", "round 3: x"),))
    assert once.exit_code == 3
    assert (
        "failed on the working tree once and not when it was started again: flash seed 0 (round 3: x)" in once.sentence
    )
    assert dataclasses.replace(once, findings=(finding(FAIL, "worse", 1.1),)).exit_code == 1


# --- what the sides compute -------------------------------------------------------------------------------------------

LOGITS = Output("float32 (2, 10)", 1.0, (3.0, 0.0, -4.0))


@pytest.mark.parametrize(
    ("head", "verdict", "words"),
    [
        (LOGITS, PASS, "as on base"),
        (dataclasses.replace(LOGITS, sketch=(3.0, 0.2, -4.0)), PASS, "as on base"),
        (dataclasses.replace(LOGITS, sketch=(3.0, 0.5, -4.0)), FAIL, "10.00% away from base's (5.00% are let through)"),
        (dataclasses.replace(LOGITS, words="float32 (2, 12)"), FAIL, "puts out float32 (2, 12), base float32 (2, 10)"),
        (dataclasses.replace(LOGITS, words="bfloat16 (2, 10)"), FAIL, "head puts out bfloat16 (2, 10)"),
        (dataclasses.replace(LOGITS, finite=0.95), FAIL, "95.000% of head's numbers are finite, of base's 100.000%"),
        (dataclasses.replace(LOGITS, sketch=(1.0,)), FAIL, "the two versions of repshift note outputs in different"),
    ],
)
def test_what_head_computes_is_judged_before_how_fast(head: Output, verdict: str, words: str) -> None:
    found = outputs.compared(ON_CPU, LOGITS, head, 0.05, wanders=False)
    assert found.verdict == verdict and words in rules.in_words(found, "flash")
    assert outputs.compared(ON_CPU, LOGITS, head, None, wanders=False).verdict == INFORM
    assert outputs.compared(ON_CPU, LOGITS, head, 0.05, wanders=True).verdict == INFORM


def test_an_output_of_zeros_is_as_far_from_any_other_as_can_be() -> None:
    zero = dataclasses.replace(LOGITS, sketch=(0.0, 0.0, 0.0))
    assert outputs.distance(zero, zero) == 0 and outputs.distance(zero, LOGITS) == math.inf
    assert outputs.distance(LOGITS, zero) == 1
