"""Attribution: a made-up CUDA trace gives exact tables, streams count once, what does not fit is said."""

from __future__ import annotations

from typing import Any

import cuda_trace
import pytest
from cuda_trace import KERNELS, Writer
from hypothesis import given, settings
from hypothesis import strategies as st

from repshift_cli.profiling.attribution import Tally, nanoseconds, nested, wall_shares
from repshift_cli.records.profile import Breakdown


def breakdown(events: list[dict[str, Any]]) -> Breakdown:
    tally = Tally()
    for event in events:
        tally.add(event)
    return tally.breakdown("it")


def parts(b: Breakdown) -> dict[tuple[str, int | None], tuple[float, float | None]]:
    return {(p.part, p.layer): (p.host_ms, p.device_ms) for p in b.parts}


PRUNED = breakdown(cuda_trace.trace(steps=2, pruned=True)["traceEvents"])


# --- exact tables -----------------------------------------------------------------------------------------------------


def test_every_part_of_every_block_has_its_kernels_time() -> None:
    found = parts(PRUNED)
    for part, (_, length) in KERNELS.items():
        assert found[(part, 1)][1] == pytest.approx(length / 1000)
    assert {part for part, layer in found if layer == 2} == {"norm", "projection", "attention", "mlp", "other"}
    assert found[("mlp", 2)] == (pytest.approx(0.02), pytest.approx(0.09))


def test_kernels_and_launches_are_counted_per_step() -> None:
    assert (PRUNED.kernel_count, PRUNED.launches) == (11, 11)
    gemm = PRUNED.kernels[0]
    assert (gemm.name, gemm.calls, gemm.ms) == ("sm90_xmma_gemm_bf16", 4, pytest.approx(0.26))


def test_operators_own_what_they_launch() -> None:
    ops = {o.name: o for o in PRUNED.ops}
    assert ops["aten::addmm"].device_ms == pytest.approx(0.26)
    assert ops["aten::topk"].device_ms == pytest.approx(0.015)
    assert ops["aten::topk"].host_ms == pytest.approx(0.016)  # with the call that launches
    assert "repshift/score" not in ops


def test_the_parts_and_the_idle_time_add_up_to_the_step() -> None:
    assert PRUNED.step == pytest.approx(1.0)
    assert sum(p.host_ms for p in PRUNED.parts) == pytest.approx(PRUNED.step, rel=1e-4)
    assert sum(p.device_ms or 0 for p in PRUNED.parts) == pytest.approx(PRUNED.busy_ms, rel=1e-4)
    assert PRUNED.idle_share == pytest.approx(1 - 0.428)


def test_waiting_for_the_device_is_a_part_of_its_own() -> None:
    waited = parts(PRUNED)[("wait", None)][0]
    assert waited == pytest.approx(1.0 - 0.246 - 0.019, abs=2e-3)


def test_an_op_inside_another_is_not_counted_twice() -> None:
    out = Writer()
    out.host("cpu_op", "aten::linear", 0, 10)
    out.host("cpu_op", "aten::addmm", 2, 5)
    assert {o.name: o.host_ms for o in breakdown(out.events).ops} == {"aten::linear": 0.005, "aten::addmm": 0.005}


def test_what_runs_outside_the_steps_does_not_count() -> None:
    events = cuda_trace.trace(steps=1)["traceEvents"]
    out = Writer()
    out.number = 500
    out.host("cpu_op", "aten::addmm", 5000, 16)
    out.host("cuda_runtime", "cudaLaunchKernel", 5002, 8, correlation=77)
    out.kernel("late", 5010, 100, 77)
    assert breakdown(events + out.events[4:]) == breakdown(events)


# --- streams ----------------------------------------------------------------------------------------------------------


def two_streams(second: float) -> Breakdown:
    """A kernel of 100 us from 100 on, and another of 100 us on another stream."""
    out = Writer()
    out.host("user_annotation", "ProfilerStep#1", 0, 400)
    for part, correlation, at, stream in (("mlp", 1, 100.0, 7), ("cut", 2, second, 8)):
        out.host("cpu_op", f"repshift/{part}", 10.0 * correlation, 8)
        out.host("cuda_runtime", "cudaLaunchKernel", 10.0 * correlation + 1, 2, correlation=correlation)
        out.kernel(part, at, 100, correlation, stream)
    return breakdown(out.events)


@pytest.mark.parametrize(("second", "busy", "each"), [(250.0, 0.2, 0.1), (150.0, 0.15, 0.075), (100.0, 0.1, 0.05)])
def test_overlapping_streams_count_once(second: float, busy: float, each: float) -> None:
    found = two_streams(second)
    assert found.busy_ms == pytest.approx(busy)
    assert found.overlapped_ms == pytest.approx(0.2 - busy)
    assert [p.device_ms for p in found.parts if p.part in ("mlp", "cut")] == pytest.approx([each, each])
    assert [k.ms for k in found.kernels] == pytest.approx([0.1, 0.1])  # a kernel's own duration stays


spans = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda s: (s[0], s[0] + s[1])), max_size=12)


@settings(deadline=None)
@given(spans)
def test_shares_of_the_wall_clock_add_up_to_the_union(given: list[tuple[int, int]]) -> None:
    union = {instant for start, end in given for instant in range(start, end)}
    shares = wall_shares(given)
    assert sum(shares) == pytest.approx(len(union))
    assert all(0 < share <= end - start + 1e-9 for share, (start, end) in zip(shares, given, strict=True))


# --- nesting ----------------------------------------------------------------------------------------------------------


def test_nesting() -> None:
    rows = [(0, 100), (0, 40), (15, 30), (40, 90), (100, 110)]
    assert nested(rows) == ([-1, 0, 1, 0, -1], [10, 25, 15, 50, 10], 0)


def test_neighbours_whose_clock_readings_overlap_are_neighbours() -> None:
    around, own, crossing = nested([(0, 100_000), (1000, 50_001), (50_000, 90_000)])
    assert (around, crossing) == ([-1, 0, 0], 0)
    assert sum(own) == pytest.approx(100_000, abs=10)


@pytest.mark.parametrize("ns", [4470340366992287, 4470340366992303, 9007199254740993 // 2, 17, 0])
def test_times_are_exact_to_the_nanosecond(ns: int) -> None:
    assert nanoseconds(float(f"{ns // 1000}.{ns % 1000:03}")) == ns
    assert nanoseconds(None) is nanoseconds(float("nan")) is nanoseconds("1") is None


def test_ranges_that_cross_are_reported() -> None:
    out = Writer()
    out.host("user_annotation", "ProfilerStep#1", 0, 100)
    out.host("cpu_op", "repshift/mlp", 10, 40)
    out.host("cpu_op", "repshift/norm", 30, 40)
    assert "1 ranges cross" in breakdown(out.events).warnings[0]
    assert PRUNED.warnings == ()


# --- what is not there ------------------------------------------------------------------------------------------------


def test_without_a_device_its_times_are_none_not_zero() -> None:
    events = [e for e in cuda_trace.trace()["traceEvents"] if e.get("cat") in ("cpu_op", "user_annotation")]
    found = breakdown(events)
    assert (found.busy_ms, found.idle_share, found.kernel_count, found.launches) == (None, None, None, None)
    assert all(p.device_ms is None for p in found.parts) and all(o.device_ms is None for o in found.ops)
    assert sum(p.host_ms for p in found.parts) == pytest.approx(found.step, rel=1e-4)


def test_a_foreign_trace_has_kernels_and_operators_and_says_why_it_has_no_parts() -> None:
    events = [e for e in cuda_trace.trace(steps=1)["traceEvents"] if not e["name"].startswith("repshift/")]
    found = breakdown(events)
    assert found.parts == () and found.missing == {"parts": "the trace has no ranges of repshift"}
    assert [k.calls for k in found.kernels] == [4, 2, 2]
    without_steps = breakdown([e for e in events if "ProfilerStep" not in e["name"]])
    assert without_steps.kernels == found.kernels and len(without_steps.step_ms) == 1


def test_kernels_of_a_replayed_graph_belong_to_no_part() -> None:
    out = Writer()
    out.host("user_annotation", "ProfilerStep#1", 0, 400)
    out.host("cuda_runtime", "cudaGraphLaunch", 10, 5, correlation=9)
    for i in range(3):
        out.kernel("gemm", 50 + 30.0 * i, 20, 9)
    found = breakdown(out.events)
    assert (found.kernel_count, found.launches, found.parts) == (3, 1, ())
    assert found.busy_ms == pytest.approx(0.06)


def test_copies_are_work_but_no_kernels() -> None:
    out = Writer()
    out.host("user_annotation", "ProfilerStep#1", 0, 100)
    out.host("cuda_runtime", "cudaMemcpyAsync", 10, 5, correlation=9)
    out.kernel("Memcpy DtoD", 20, 10, 9, category="gpu_memcpy")
    found = breakdown(out.events)
    assert (found.kernel_count, found.launches, found.busy_ms) == (0, 0, pytest.approx(0.01))


def test_ranges_that_come_again_on_the_device_count_once() -> None:
    events = cuda_trace.trace(steps=1)["traceEvents"]
    twins = [
        {**e, "cat": "gpu_user_annotation", "pid": 0, "tid": 7} for e in events if e["name"].startswith("repshift/")
    ]
    steps = [{**e, "cat": "gpu_user_annotation", "pid": 0, "tid": 7} for e in events if "ProfilerStep" in e["name"]]
    assert breakdown(events + twins + steps) == breakdown(events)


@pytest.mark.parametrize(
    "odd",
    [
        {"ph": "X", "cat": "kernel", "name": "k", "ts": None, "dur": 3},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": 5, "dur": "long"},
        {"ph": "X", "cat": "kernel", "name": "k", "ts": float("inf"), "dur": 3},
        {"ph": "X", "cat": "python_function", "name": "f", "ts": 5, "dur": 3},
        {"ph": "s", "cat": "ac2g", "name": "ac2g", "ts": 5, "id": 3},
        {},
    ],
)
def test_events_that_say_nothing_are_passed_over(odd: dict[str, Any]) -> None:
    events = cuda_trace.trace(steps=1)["traceEvents"]
    assert breakdown([*events, odd]) == breakdown(events)


def test_a_kernel_without_a_known_launch_still_counts() -> None:
    out = Writer()
    out.host("user_annotation", "ProfilerStep#1", 0, 100)
    out.host("cpu_op", "repshift/mlp", 10, 20)
    out.kernel("orphan", 20, 10, 0)
    found = breakdown(out.events)
    assert found.busy_ms == pytest.approx(0.01)
    assert parts(found)[("other", None)][1] == pytest.approx(0.01)


def test_the_old_word_for_runtime_calls_is_understood() -> None:
    events = cuda_trace.trace(steps=1)["traceEvents"]
    renamed = [{**e, "cat": "Runtime"} if e.get("cat") == "cuda_runtime" else e for e in events]
    assert breakdown(renamed) == breakdown(events)
