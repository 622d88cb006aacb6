"""The runner with a clock, a timer and models played by fakes: exact numbers, nothing really measured."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from repshift_cli.analysis.stats import estimate, hodges_lehmann
from repshift_cli.benchmark import runner
from repshift_cli.benchmark.failures import NO_KERNEL_HELP, ContextLost, reason_of
from repshift_cli.benchmark.runner import Parts, Settings, compare
from repshift_cli.records import (
    Case,
    CaseBroken,
    Measurement,
    Metric,
    Output,
    Progress,
    Record,
    Step,
    Subject,
    UsageError,
)

VANILLA = Case("m", "random", "random", 224, None, 2, "fp32", "cpu", "vanilla")
FLASH = replace(VANILLA, attention="flash")
PRUNED = replace(FLASH, pruning="repshift", keep=0.6, layers=(3,))
RANDOM = replace(PRUNED, pruning="random")
ORACLE = replace(PRUNED, pruning="oracle")
TOKENS = (197,)
COUNTED = Metric("macs", "MACs", "MAC", "lower", "value", "counted", "Counted.")

Script = Callable[[int, int], float]
"""(timed rounds finished so far, calls of this case so far) -> milliseconds of the forward; it may raise."""


@dataclass(frozen=True)
class Reading:
    sm_clock: int | None = 1000
    memory_clock: int | None = None
    temperature: int | None = None
    throttle: tuple[str, ...] = ()
    hardware_throttled: bool = False


@dataclass
class Memory:
    """The probe that measures before anything is timed."""

    log: list[tuple[str, Case]]

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        self.log.append(("memory", step.case))
        return (Metric("memory", "memory", "B", "lower", "value", 25, "allocator").of(9),)


OUTPUT = Output("float32 (2, 10)", 1.0, (0.5, -1.0))


def put_out(step: Step, nothing: dict[Case, Exception]) -> Output:
    if step.case in nothing:
        raise nothing[step.case]
    return OUTPUT


@dataclass
class Bench:
    """All parts of the runner, played: the clock goes on by what each forward takes."""

    scripts: dict[Case, float | Script]
    readings: Callable[[int], Reading | None] = lambda taken: None
    seconds: float = 0.0
    rounds: int = 0
    calls: dict[Case, int] = field(default_factory=dict)
    log: list[tuple[str, Case]] = field(default_factory=list)
    words: list[Progress] = field(default_factory=list)
    collecting: set[bool] = field(default_factory=set)
    prepare_fails: dict[Case, BaseException] = field(default_factory=dict)
    verify_fails: dict[Case, BaseException] = field(default_factory=dict)
    probe_fails: dict[Case, BaseException] = field(default_factory=dict)
    tokens: int = 196
    warnings: tuple[str, ...] = ()

    def run(self, settings: Settings, cases: Sequence[Case] = (), **changes: Any) -> list[Record]:
        cases = cases or tuple(self.scripts)
        wanted, nothing = changes.pop("wanted", set(cases)), changes.pop("nothing", {})
        turns = changes.pop("turns", runner.Alone())
        parts = Parts(self.prepare, self.verify, lambda step: [self], self, self.watch, lambda: self.seconds)
        parts = replace(parts, memory=lambda step: [Memory(self.log)], output=lambda step: put_out(step, nothing))
        parts = replace(parts, turns=turns)
        return list(compare([(c, TOKENS) for c in cases], wanted, parts, settings, self.words.append, **changes))

    def prepare(self, case: Case) -> Step:
        self.log.append(("prepare", case))
        if case in self.prepare_fails:
            raise self.prepare_fails[case]
        subject = Subject(None, (), (), (), 1, self.tokens, "img", None, None, self.warnings)  # type: ignore[arg-type]

        @contextmanager
        def active() -> Iterator[None]:
            self.log.append(("in", case))
            yield

        return Step(case, subject, active, lambda: self.forward(case), lambda given: None)

    def forward(self, case: Case) -> float:
        assert self.rounds < 3000, "the rounds never end"
        script, call = self.scripts[case], self.calls.get(case, 0)
        self.calls[case] = call + 1
        self.collecting.add(gc.isenabled())
        ms = script(self.rounds, call) if callable(script) else script
        self.seconds += ms / 1000
        return ms

    def verify(self, step: Step) -> str:
        self.log.append(("verify", step.case))
        if step.case in self.verify_fails:
            raise self.verify_fails[step.case]
        return f"kernel of {step.case.attention}"

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        self.log.append(("probe", step.case))
        if step.case in self.probe_fails:
            raise self.probe_fails[step.case]
        return (COUNTED.of(7),)

    source = "fake"

    def time(self, forward: Callable[[], Any], count: int) -> list[float]:
        return [forward() for _ in range(count)]

    def watch(self) -> Reading | None:
        self.rounds += 1
        return self.readings(self.rounds - 1)


PRECISE = Settings(precision=0.01, budget=100.0)


def exactly(rounds: int) -> Settings:
    return Settings(precision=0.01, budget=0.001, rounds=rounds)


def by_case(records: list[Record]) -> dict[Case, Record]:
    return {r.case: r for r in records}


def samples(record: Record, metric: str = "latency") -> tuple[float, ...]:
    found = record.measurement(metric)
    assert found is not None
    return found.samples


def why(record: Record, metric: str) -> str | None:
    found = record.measurement(metric)
    assert found is not None and not found.samples
    return found.reason


# --- figures ----------------------------------------------------------------------------------------------------------


def test_constant_times_give_exact_figures() -> None:
    vanilla, flash, pruned = Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: 25.0}).run(PRECISE)
    assert samples(vanilla) == (40.0,) * 10 and samples(pruned) == (25.0,) * 10
    assert samples(pruned, "speedup_vs_vanilla") == (1.6,) * 10
    assert samples(pruned, "speedup_vs_flash") == (1.2,) * 10
    assert samples(flash, "speedup_vs_vanilla") == (40 / 30,) * 10
    assert samples(vanilla, "speedup_vs_flash") == (0.75,) * 10
    assert samples(pruned, "throughput") == (1000 * 2 / 25.0,) * 10
    assert pruned.status == "ok" and pruned.stopped_by == "precision" and pruned.rounds == 10
    assert pruned.kernel == "kernel of flash" and samples(pruned, "macs") == (7.0,)
    assert pruned.warnings == ()
    assert why(flash, "speedup_vs_flash") == "reference: this is flash itself"
    assert why(vanilla, "speedup_vs_vanilla") == "reference: this is vanilla itself"


def test_ratios_are_paired_within_the_round_and_their_interval_is_over_rounds() -> None:
    drift = [1.0, 1.5, 0.9, 2.0, 1.1, 3.0, 1.0, 0.7]
    gain = [1.20, 1.22, 1.18, 1.21, 1.19, 1.23, 1.17, 1.20]

    def flash(round: int, call: int) -> float:
        return 100 * drift[round]

    def pruned(round: int, call: int) -> float:
        return 100 * drift[round] / gain[round]

    record = by_case(Bench({FLASH: flash, PRUNED: pruned}).run(exactly(8)))[PRUNED]
    assert samples(record, "speedup_vs_flash") == pytest.approx(gain)
    ratio = record.measurement("speedup_vs_flash")
    assert ratio is not None
    figure = estimate(ratio)
    assert figure is not None and figure.value == pytest.approx(hodges_lehmann(gain).value)
    assert figure.half_width is not None and figure.half_width < 0.02  # the drift of 0.7 to 3 is gone


def test_the_unit_is_the_rounds_median_not_the_sample() -> None:
    """Within a round of three one slow forward does not move the ratio."""

    def hiccup(round: int, call: int) -> float:
        return 900.0 if call % 4 == 1 else 7.0  # each round: one untimed forward and three timed ones

    bench = Bench({FLASH: 14.0, PRUNED: 7.0})
    quiet = by_case(bench.run(exactly(6)))[PRUNED]
    assert len(samples(quiet)) == 6 * 3 and samples(quiet, "speedup_vs_flash") == (2.0,) * 6
    noisy = by_case(Bench({FLASH: 14.0, PRUNED: lambda r, c: hiccup(r, c) if r else 7.0}).run(exactly(6)))[PRUNED]
    assert 900.0 in samples(noisy) and samples(noisy, "speedup_vs_flash") == (2.0,) * 6


def test_time_over_oracle_is_of_the_same_schedule_and_attention() -> None:
    elsewhere = replace(ORACLE, layers=(6,))
    other = replace(ORACLE, attention="vanilla")
    records = by_case(Bench({elsewhere: 50.0, other: 80.0, PRUNED: 30.0, ORACLE: 25.0, FLASH: 60.0}).run(PRECISE))
    assert samples(records[PRUNED], "time_vs_oracle") == (1.2,) * 10
    assert records[elsewhere].measurement("time_vs_oracle") is None
    assert records[ORACLE].measurement("time_vs_oracle") is None
    assert records[FLASH].measurement("time_vs_oracle") is None


def test_eager_and_graph_are_never_compared_with_each_other() -> None:
    flash, pruned = (replace(c, execution="graph") for c in (FLASH, PRUNED))
    records = by_case(Bench({FLASH: 60.0, PRUNED: 30.0, flash: 40.0, pruned: 32.0}).run(PRECISE))
    assert samples(records[PRUNED], "speedup_vs_flash")[0] == 2.0
    assert samples(records[pruned], "speedup_vs_flash")[0] == 1.25
    alone = by_case(Bench({FLASH: 60.0, pruned: 32.0}).run(PRECISE))[pruned]
    assert why(alone, "speedup_vs_flash") == "no flash in this run; add it to --variant"


def test_a_reference_that_was_not_asked_for_is_named() -> None:
    (record,) = Bench({PRUNED: 30.0}).run(PRECISE)
    assert why(record, "speedup_vs_vanilla") == "no vanilla in this run; add it to --variant"
    assert record.stopped_by == "precision" and samples(record) == (30.0,) * 10


# --- rounds -----------------------------------------------------------------------------------------------------------


def orders(bench: Bench, contenders: int, rounds: int) -> list[tuple[Case, ...]]:
    """The order of the contenders in each timed round: the last `rounds * contenders` entries."""
    entered = [case for what, case in bench.log if what == "in"][-contenders * rounds :]
    return [tuple(entered[i : i + contenders]) for i in range(0, len(entered), contenders)]


def shuffled(seed: int) -> tuple[list[tuple[Case, ...]], list[Case]]:
    bench = Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: 25.0})
    records = bench.run(replace(exactly(12), seed=seed))
    return orders(bench, 3, 12), [r.case for r in records]


def test_every_round_has_a_new_order_that_the_seed_fixes() -> None:
    first, cases = shuffled(0)
    assert all(set(order) == {VANILLA, FLASH, PRUNED} for order in first)
    assert len(set(first)) >= 4 and len({order[0] for order in first}) == 3
    assert shuffled(0)[0] == first and shuffled(1)[0] != first
    assert cases == shuffled(1)[1] == [VANILLA, FLASH, PRUNED]


def alternating(low: float, high: float) -> Script:
    return lambda round, call: high if round % 2 else low


def test_the_budget_stops_what_is_not_precise() -> None:
    """60 ms per round and a budget of 1.2 s for two cases' 0.6 s each: 20 rounds."""
    bench = Bench({FLASH: 30.0, PRUNED: alternating(20.0, 40.0)})
    records = bench.run(Settings(precision=0.01, budget=0.6))
    assert [(r.rounds, r.stopped_by) for r in records] == [(20, "budget")] * 2
    assert records[1].warnings[0] == "the time budget ended before ±1.0% was reached; --budget raises it"


@pytest.mark.parametrize("hours", [1, 10**6])
def test_a_clock_that_jumps_ends_the_rounds_and_costs_no_figure(hours: int) -> None:
    """A machine that slept: the wall clock has no part in it, and the monotonic one only goes on."""

    def jumping(round: int, call: int) -> float:
        bench.seconds += 3600 * hours if round == 3 else 0
        return 30.0

    bench = Bench({FLASH: jumping, PRUNED: alternating(20.0, 40.0)})
    records = bench.run(Settings(precision=0.01, budget=0.6))
    assert [(r.status, r.rounds, r.stopped_by) for r in records] == [("ok", runner.LEAST_ROUNDS, "budget")] * 2
    assert all(set(r.measurement("latency").samples) <= {20.0, 30.0, 40.0} for r in records)  # type: ignore[union-attr]


def test_the_budget_leaves_rounds_enough_for_an_interval() -> None:
    records = Bench({FLASH: 30.0, PRUNED: alternating(20.0, 40.0)}).run(Settings(precision=0.01, budget=0.001))
    assert [(r.rounds, r.stopped_by) for r in records] == [(runner.LEAST_ROUNDS, "budget")] * 2
    latency = records[1].measurement("latency")
    assert latency is not None and (figure := estimate(latency)) is not None and figure.low is not None


def test_precision_stops_at_the_first_look_where_every_ratio_has_it() -> None:
    """Looks after 10, 12, 14, 16, 18, 20, 23, 26, ... rounds: each a tenth and one later."""
    noise = random.Random(3)
    factors = [math.exp(noise.gauss(0, 0.03)) for _ in range(2000)]
    bench = Bench({VANILLA: 30.0, FLASH: 30.0, PRUNED: lambda round, call: 30.0 * factors[round]})
    record = by_case(bench.run(Settings(precision=0.01, budget=1000.0)))[PRUNED]
    ratios = samples(record, "speedup_vs_flash")
    looks = [10]
    while looks[-1] < len(ratios):
        looks.append(looks[-1] + 1 + looks[-1] // 10)
    widths = [hodges_lehmann(ratios[:n]).half_width or 9.0 for n in looks]
    assert record.stopped_by == "precision" and record.rounds == len(ratios) == looks[-1] > 20
    assert widths[-1] <= 0.01 < min(widths[:-1])


def test_exact_rounds_whatever_the_precision_and_the_budget() -> None:
    for rounds in (1, 6, 23):
        (record,) = Bench({FLASH: 30.0}).run(exactly(rounds))
        assert (record.rounds, record.stopped_by, len(samples(record))) == (rounds, "rounds", rounds)
        assert [w for w in record.warnings if "give no interval" not in w] == []


@pytest.mark.parametrize(("ms", "per_round"), [(50.0, 1), (20.0, 1), (19.0, 2), (3.0, 7), (1.0, 20), (0.01, 20)])
def test_short_forwards_share_a_round_behind_an_untimed_one(ms: float, per_round: int) -> None:
    bench = Bench({FLASH: ms})
    (record,) = bench.run(exactly(6))
    latency = record.measurement("latency")
    assert latency is not None and latency.per_round == per_round and len(latency.samples) == 6 * per_round
    untimed = 0 if per_round == 1 else 6
    assert bench.calls[FLASH] == record.warmup + 6 * per_round + untimed


def test_what_the_first_forward_after_a_switch_takes_does_not_count() -> None:
    def cold_first(round: int, call: int) -> float:
        timed = call - 42  # warm-up: the first two forwards and two windows of twenty
        return 99.0 if timed >= 0 and timed % 8 == 0 else 3.0

    (record,) = Bench({FLASH: cold_first}).run(exactly(6))
    assert record.warmup == 42 and set(samples(record)) == {3.0}


# --- warm-up ----------------------------------------------------------------------------------------------------------


def test_warm_up_goes_on_until_two_windows_agree() -> None:
    """100 / 50 gives windows of 2, whatever the very first takes: (90, 90), (80, 80), (60, 60), then (50, 50) twice."""
    speeds = [900.0, 50.0, 90, 90, 80, 80, 60, 60]
    bench = Bench({FLASH: lambda round, call: speeds[call] if call < len(speeds) else 50.0})
    (record,) = bench.run(PRECISE)
    assert record.warmup == 2 + 5 * 2 and set(samples(record)) == {50.0} and record.warnings == ()


def test_a_warm_up_that_never_settles_ends_after_a_fifth_of_the_budget_and_says_so() -> None:
    """Every window (2 x 50 ms, 2 x 80 ms) differs from the one before; 0.5 s is a fifth of the budget."""
    bench = Bench({FLASH: lambda round, call: 50.0 if call // 2 % 2 or call == 0 else 80.0})
    (record,) = bench.run(Settings(precision=0.01, budget=2.5))
    assert record.warmup == 2 + 2 * 4
    assert "warm-up did not settle; close other programs or raise --budget" in record.warnings


@pytest.mark.parametrize("count", [1, 7])
def test_as_many_untimed_forwards_as_asked_for(count: int) -> None:
    bench = Bench({FLASH: lambda round, call: 900.0 if call == 0 and count > 1 else 5.0})
    (record,) = bench.run(replace(exactly(6), warmup=count))
    assert record.warmup == count and bench.calls[FLASH] == count + 6 * (1 + 4), "4 forwards of 5 ms in a round"
    assert not any("warm-up" in word for word in record.warnings)


def test_the_warm_up_is_not_in_the_budget_of_the_rounds() -> None:
    slow_start = Bench({FLASH: lambda round, call: 4000.0 if call == 0 else 20.0 + 20 * (round % 2)})
    (record,) = slow_start.run(Settings(precision=0.001, budget=0.595))
    assert record.stopped_by == "budget" and record.rounds == 20


# --- the device's state -----------------------------------------------------------------------------------------------

HOT = Reading(sm_clock=500, throttle=("hardware slowdown",), hardware_throttled=True)


def test_rounds_under_a_hardware_throttle_are_repeated_and_kept_apart() -> None:
    bench = Bench(
        {FLASH: lambda round, call: 90.0 if round in (2, 3) else 30.0, PRUNED: 20.0},
        readings=lambda round: HOT if round in (2, 3) else Reading(temperature=60 + round),
    )
    flash, pruned = bench.run(exactly(6))
    assert samples(flash) == (30.0,) * 6 and samples(flash, "latency_throttled") == (90.0, 90.0)
    assert samples(pruned, "latency_throttled") == (20.0, 20.0)
    assert samples(pruned, "speedup_vs_flash") == (1.5,) * 6 and flash.rounds == 6
    assert samples(flash, "sm_clock") == (1000.0,) * 6
    assert samples(flash, "temperature") == (60.0, 61.0, 64.0, 65.0, 66.0, 67.0)
    assert flash.measurement("memory_clock") is None
    assert flash.warnings == ("2 rounds under a hardware throttle were repeated (hardware slowdown)",)


def test_a_throttle_without_end_is_measured_in_the_end_and_said() -> None:
    (record,) = Bench({FLASH: 5.0}, readings=lambda round: HOT).run(exactly(6))
    assert record.status == "ok" and record.rounds == 6 and len(samples(record)) == 6 * 4
    assert len(samples(record, "latency_throttled")) == runner.MOST_RETRIES * 4
    assert record.warnings == (
        "the device was throttled by hardware in rounds that count; cool it and measure again",
        f"{runner.MOST_RETRIES} rounds under a hardware throttle were repeated (hardware slowdown)",
    )


def test_outliers_are_flagged_and_kept() -> None:
    noise = random.Random(0)
    bench = Bench({FLASH: lambda round, call: 300.0 if round == 4 else 30.0 + noise.random()})
    (record,) = bench.run(exactly(12))
    assert 300.0 in samples(record) and len(samples(record)) == 12
    assert record.warnings == ("1 of 12 rounds are outliers (kept); something else may be running here",)


def test_the_subjects_own_warnings_come_along() -> None:
    (record,) = Bench({FLASH: 30.0}, warnings=("random weights",)).run(PRECISE)
    assert record.warnings == ("random weights",)


def test_what_torch_picks_and_the_librarys_own_are_compared_with_where_they_are_measured() -> None:
    sdpa, eager = replace(FLASH, attention="sdpa"), replace(FLASH, attention="eager")
    records = by_case(Bench({FLASH: 30.0, sdpa: 25.0, eager: 50.0, PRUNED: 20.0}).run(exactly(6)))
    assert samples(records[PRUNED], "speedup_vs_sdpa") == (1.25,) * 6
    assert samples(records[PRUNED], "speedup_vs_eager") == (2.5,) * 6
    assert why(records[sdpa], "speedup_vs_sdpa") == "reference: this is sdpa itself"
    (alone,) = Bench({FLASH: 30.0}).run(exactly(6))
    assert alone.measurement("speedup_vs_sdpa") is None, "nobody asked for it"


# --- failures ---------------------------------------------------------------------------------------------------------


def others_went_on(records: list[Record], failing: Case, reason: str) -> None:
    found = by_case(records)
    assert found[failing].status == "failed" and found[failing].reason == reason
    assert not found[failing].measurements
    for case in found.keys() - {failing}:
        assert found[case].status == "ok" and len(samples(found[case])) == 10


def test_a_case_that_cannot_be_prepared() -> None:
    bench = Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: 25.0}, prepare_fails={FLASH: TypeError("no\nway")})
    records = bench.run(PRECISE)
    others_went_on(records, FLASH, "TypeError: no")
    assert bench.calls.get(FLASH) is None
    assert why(records[2], "speedup_vs_flash") == "flash failed, so nothing can be compared with it"


def test_a_wrong_kernel_fails_its_row_though_it_was_timed() -> None:
    bench = Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: 25.0}, verify_fails={PRUNED: RuntimeError("ran on math")})
    others_went_on(bench.run(PRECISE), PRUNED, "RuntimeError: ran on math")
    assert bench.calls[PRUNED] > 10


def test_time_comes_before_whatever_looks_at_kernels_and_memory_before_any_capture() -> None:
    """torch's profiler leaves CUPTI attached; a graph keeps a pool of its own."""
    graph, compiled = (replace(FLASH, execution=e) for e in ("graph", "compile"))
    cases = (graph, compiled, FLASH, PRUNED)
    bench = Bench(dict.fromkeys(cases, 30.0))
    records = bench.run(PRECISE)
    order = [what for what, _ in bench.log if what != "in"]
    assert order == ["prepare", "memory"] * 4 + ["verify", "probe"] * 4
    assert [case for what, case in bench.log if what == "prepare"] == [FLASH, PRUNED, compiled, graph]
    timed = [place for place, (what, _) in enumerate(bench.log) if what == "in"]
    assert len(timed) == 4 * (1 + 10), "the warm-up and the rounds"
    assert max(timed) < bench.log.index(("verify", graph))
    assert [r.case for r in records] == list(cases)
    assert samples(records[0], "memory") == (9.0,)


def test_time_alone_is_measured_without_any_pass() -> None:
    bench = Bench({FLASH: 30.0, PRUNED: 20.0})
    (_, record) = bench.run(replace(PRECISE, passes=False))
    assert {what for what, _ in bench.log} == {"prepare", "in"}
    assert samples(record, "speedup_vs_flash") and record.kernel is None


@pytest.mark.parametrize("passes", [True, False])
def test_a_case_that_puts_out_nothing_fails_though_it_was_timed(passes: bool) -> None:
    """Also where time alone is measured; the others go on."""
    bench = Bench({FLASH: 30.0, PRUNED: 0.1})
    flash, pruned = bench.run(replace(PRECISE, passes=passes), nothing={PRUNED: CaseBroken("the output is None")})
    assert (pruned.status, pruned.reason) == ("failed", "the output is None")
    assert flash.status == "ok" and flash.output == OUTPUT


def test_a_probe_that_raises_for_nan_and_the_like() -> None:
    bench = Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: 25.0}, probe_fails={PRUNED: ValueError("holds NaN")})
    records = bench.run(PRECISE)
    others_went_on(records, PRUNED, "ValueError: holds NaN")
    assert by_case(records)[PRUNED].kernel == "kernel of flash"


def test_a_failure_in_the_warm_up() -> None:
    def breaks(round: int, call: int) -> float:
        if call == 3:
            raise RuntimeError("fell over")
        return 30.0

    others_went_on(Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: breaks}).run(PRECISE), PRUNED, "RuntimeError: fell over")


def test_a_reference_that_fails_in_the_middle_of_the_rounds() -> None:
    def breaks(round: int, call: int) -> float:
        if round == 4:
            raise MemoryError
        return 30.0

    records = Bench({VANILLA: 40.0, FLASH: breaks, PRUNED: 25.0}).run(PRECISE)
    others_went_on(records, FLASH, "out of memory: MemoryError; try a smaller batch")
    assert why(records[2], "speedup_vs_flash") == "flash failed, so nothing can be compared with it"
    assert samples(records[2], "speedup_vs_vanilla") == (1.6,) * 10


def test_where_all_fail_each_says_why() -> None:
    def breaks(round: int, call: int) -> float:
        raise RuntimeError(f"call {call}")

    records = Bench({FLASH: breaks, PRUNED: breaks}).run(PRECISE)
    assert [(r.status, r.reason) for r in records] == [("failed", "RuntimeError: call 0")] * 2


def test_other_tokens_than_planned() -> None:
    (record,) = Bench({FLASH: 30.0}, tokens=256).run(PRECISE)
    assert (record.status, record.reason) == (
        "failed",
        "RuntimeError: 197 tokens were planned and 257 enter the first block",
    )


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OutOfMemoryError("CUDA ran out\nmore"), "out of memory: CUDA ran out; try a smaller batch"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "out of memory: DefaultCPUAllocator: can't allocate memory: 9 bytes; try a smaller batch",
        ),
        (RuntimeError("CUDA Out of memory"), "out of memory: CUDA Out of memory; try a smaller batch"),
        (
            RuntimeError("No available kernel. Aborting execution."),
            f"RuntimeError: No available kernel: {NO_KERNEL_HELP}",
        ),
        (KeyError("x"), "KeyError: 'x'"),
        (AssertionError(), "AssertionError: AssertionError"),
        (UsageError("say it so"), "say it so"),
        (ValueError("\n\n  second line  \n third"), "ValueError: second line"),
    ],
)
def test_reasons_are_one_line_in_plain_words(error: BaseException, reason: str) -> None:
    assert reason_of(error) == reason


# --- references -------------------------------------------------------------------------------------------------------


def test_references_are_timed_and_verified_but_neither_probed_nor_recorded() -> None:
    bench = Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: 25.0})
    (record,) = bench.run(PRECISE, wanted={PRUNED})
    assert record.case == PRUNED and samples(record, "speedup_vs_vanilla") == (1.6,) * 10
    assert [case for what, case in bench.log if what == "probe"] == [PRUNED]
    assert [case for what, case in bench.log if what == "verify"] == [VANILLA, FLASH, PRUNED]


def test_a_reference_on_the_wrong_kernel_is_no_reference() -> None:
    bench = Bench({FLASH: 30.0, PRUNED: 25.0}, verify_fails={FLASH: RuntimeError("ran on math")})
    (record,) = bench.run(PRECISE, wanted={PRUNED})
    assert why(record, "speedup_vs_flash") == "flash failed, so nothing can be compared with it"


def test_a_reference_that_failed_before_is_not_tried_again() -> None:
    bench = Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: 25.0})
    (record,) = bench.run(PRECISE, wanted={PRUNED}, broken={FLASH})
    assert FLASH not in {case for _, case in bench.log} and FLASH not in bench.calls
    assert why(record, "speedup_vs_flash") == "flash failed, so nothing can be compared with it"
    assert samples(record, "speedup_vs_vanilla") == (1.6,) * 10


# --- what passes through ----------------------------------------------------------------------------------------------

LOST = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`")


@pytest.mark.parametrize("error", [LOST, KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["prepare_fails", "verify_fails", "probe_fails"])
def test_a_lost_context_and_an_interrupt_pass_the_passes(error: BaseException, place: str) -> None:
    with pytest.raises(ContextLost if error is LOST else KeyboardInterrupt):
        Bench({FLASH: 30.0, PRUNED: 25.0}, **{place: {PRUNED: error}}).run(PRECISE)


@pytest.mark.parametrize("error", [LOST, KeyboardInterrupt()])
@pytest.mark.parametrize("round", [0, 3])
def test_they_pass_the_timing_and_garbage_is_collected_again(error: BaseException, round: int) -> None:
    def breaks(now: int, call: int) -> float:
        if (round and now == round) or (not round and call == 2):
            raise error
        return 30.0

    with pytest.raises(ContextLost if error is LOST else KeyboardInterrupt) as caught:
        Bench({FLASH: 30.0, PRUNED: breaks}).run(PRECISE)
    assert gc.isenabled()
    if error is LOST:
        assert isinstance(caught.value, ContextLost) and caught.value.case == PRUNED
        assert "illegal memory access" in caught.value.reason


@pytest.mark.parametrize("error", [UsageError("no such photo"), SystemExit(0), GeneratorExit()])
def test_a_model_that_refuses_or_exits_in_the_middle_fails_its_row(error: BaseException) -> None:
    flash, pruned = Bench({FLASH: 30.0, PRUNED: 25.0}, prepare_fails={PRUNED: error}).run(PRECISE)
    assert (flash.status, pruned.status) == ("ok", "failed")


def test_garbage_collection_rests_in_the_rounds_only() -> None:
    bench = Bench({FLASH: lambda round, call: 30.0})
    seen: dict[bool, set[bool]] = {True: set(), False: set()}

    def watching(round: int, call: int) -> float:
        seen[call >= 10].add(gc.isenabled())  # warm-up: two forwards and two windows of four
        return 30.0

    bench.scripts[FLASH] = watching
    (record,) = bench.run(PRECISE)
    assert record.warmup == 10 and seen == {False: {True}, True: {False}}
    assert gc.isenabled()


def test_garbage_collection_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        Bench({FLASH: 30.0}).run(PRECISE)
        assert not gc.isenabled()
    finally:
        gc.enable()


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_goes_up_and_counts_down() -> None:
    bench = Bench({FLASH: 30.0, PRUNED: 20.0})
    bench.run(exactly(8))
    shares = [w.share for w in bench.words]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(0.9)
    phases = list(dict.fromkeys(w.phase for w in bench.words))
    names = ("flash", "flash+repshift")
    assert phases == [
        *(f"{name}: making ready" for name in names),
        *(f"{name}: warm-up" for name in names),
        "timing",
        *(f"{name}: passes" for name in names),
    ]
    timing = [w for w in bench.words if w.phase == "timing"]
    assert [w.seconds_left for w in timing] == pytest.approx([0.05 * n for n in range(7, -1, -1)])
    assert {w.estimate for w in timing} == {"flash+repshift 1.50x vs flash"}


def test_the_time_left_ends_with_what_ends_the_rounds() -> None:
    by_budget = Bench({FLASH: 30.0, PRUNED: alternating(20.0, 40.0)})
    by_budget.run(Settings(precision=0.001, budget=0.6))
    left = [w.seconds_left for w in by_budget.words if w.seconds_left is not None]
    assert left[0] == pytest.approx(1.2 - 0.05) and left[-1] == pytest.approx(0) and left == sorted(left, reverse=True)
    by_precision = Bench({FLASH: 30.0, PRUNED: 20.0})
    by_precision.run(PRECISE)
    left = [w.seconds_left for w in by_precision.words if w.seconds_left is not None]
    assert left[0] == pytest.approx(2 * 100.0 - 0.05) and left[-1] == pytest.approx(0)


def test_the_estimate_is_always_of_the_same_case() -> None:
    """Of the first pruned one, however fast the others are; of the last where none is pruned."""
    bench = Bench({VANILLA: 40.0, FLASH: 30.0, PRUNED: 20.0, ORACLE: 10.0, RANDOM: 5.0})
    bench.run(exactly(8))
    assert {w.estimate for w in bench.words if w.phase == "timing"} == {"flash+repshift 1.50x vs flash"}
    plain = Bench({VANILLA: 20.0, FLASH: 25.0})
    plain.run(exactly(8))
    assert {w.estimate for w in plain.words if w.phase == "timing"} == {"flash 0.80x vs vanilla"}


def test_the_estimate_of_a_case_alone_is_its_latency() -> None:
    bench = Bench({PRUNED: 20.0})
    bench.run(exactly(2))
    assert bench.words[-2].estimate == "flash+repshift 20.0 ms"


# --- do the intervals hold what they promise? -------------------------------------------------------------------------


@pytest.mark.slow
def test_nine_of_ten_intervals_hold_the_truth_although_precision_stops_the_rounds() -> None:
    """Every look costs a little of the 95%; the fixed seeds make this the same number every time."""
    held = 0
    for seed in range(200):
        noise = random.Random(seed)
        drift = [math.exp(noise.gauss(0, 0.05)) for _ in range(400)]
        bench = Bench(
            {
                FLASH: lambda r, c, d=drift, n=noise: 40.0 * d[r] * math.exp(n.gauss(0, 0.01)),  # type: ignore[misc]
                PRUNED: lambda r, c, d=drift, n=noise: 32.0 * d[r] * math.exp(n.gauss(0, 0.01)),  # type: ignore[misc]
            }
        )
        record = by_case(bench.run(Settings(precision=0.006, budget=20.0)))[PRUNED]
        ratio = hodges_lehmann(samples(record, "speedup_vs_flash"))
        assert ratio.low is not None and ratio.high is not None and record.stopped_by == "precision"
        held += ratio.low <= 1.25 <= ratio.high
    assert 180 <= held < 200


# --- turns ------------------------------------------------------------------------------------------------------------


def test_the_warm_up_and_each_round_wait_for_their_turn_and_what_others_took_is_no_round() -> None:
    bench, said = Bench({VANILLA: 10.0}), list[str]()

    class Others:
        def take(self, waiting: Callable[[], None]) -> bool:
            said.append(f"turn after {bench.calls.get(VANILLA, 0)} forwards")
            waiting()
            return True

        def leave(self, waiting: Callable[[], None]) -> None:
            said.append("through")

    (record,) = bench.run(Settings(0.1, 1.0, rounds=2, warmup=3), turns=Others())
    assert said == ["turn after 0 forwards", "turn after 3 forwards", "turn after 6 forwards", "through"]
    assert record.rounds == 2 and "waiting for its turn" in {word.phase for word in bench.words}
