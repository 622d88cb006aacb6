"""What the Triton path tells of itself, and what it spares the host: launches played by nothing, on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import host_cost

from repshift_cli.kernels import launches, paths
from repshift_cli.kernels.cut import gather, gather_add
from repshift_cli.kernels.select import top
from repshift_cli.kernels.shift import distance, length, moved_from
from repshift_cli.probes.base.traffic_model import TrafficModel, watching
from repshift_cli.probes.launches import count_operators
from repshift_cli.records import UsageError

B, N, P, C, K = 2, 20, 1, 48, 7
FP32, BF16 = torch.float32, torch.bfloat16


def told(work: Callable[[], Any]) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    with host_cost.without_launches(), launches.listening(lambda *launch: found.append(launch)):
        work()
    return found


@pytest.mark.parametrize(("dtype", "e"), [(FP32, 4), (BF16, 2)])
def test_a_launch_tells_the_bytes_of_the_tables_in_the_docstrings(dtype: torch.dtype, e: int) -> None:
    whole = torch.zeros(B, P + N, C, dtype=dtype)
    free, scores, rows = whole[:, P:], torch.zeros(B, N), torch.zeros(B, K, dtype=torch.int64)
    score, kept = 4 * B * N, B * (P + K) * C * e
    assert told(lambda: distance(free, free, "l2")) == [("triton.score", 2 * B * N * C * e, score)]
    assert told(lambda: moved_from(free, free, "cosine")) == [("triton.score", 2 * B * N * C * e, score)]
    assert told(lambda: length(free, "l1")) == [("triton.score", B * N * C * e, score)]
    assert told(lambda: top(scores, K)) == [("triton.select", 4 * B * N, 8 * B * K)]
    assert told(lambda: gather(whole, P, rows)) == [("triton.cut", kept + 8 * B * K, kept)]
    assert told(lambda: gather_add(whole, whole, P, rows)) == [("triton.cut", 2 * kept + 8 * B * K, kept)]


def test_the_byte_model_and_the_operators_hold_every_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of blocks without a kernel of their own: two sums in each, one of which the cut takes over."""
    step = host_cost.step((1,))
    with host_cost.without_launches():
        with step.active(), TrafficModel() as model, watching(model, step.subject.sites):
            step.forward()
        operators = count_operators(step)
        monkeypatch.setattr(launches, "listening", lambda _: nullcontext())
        seen_by_torch = count_operators(step)
    seen = {name: moved for name, moved in model.operators.items() if name.startswith("triton")}
    width, tokens, stay = 8, 196, 195
    kept = (1 + stay) * width * 4
    assert seen == {
        "triton.score": [tokens * width * 4, 4 * tokens],
        "triton.select": [4 * tokens, 8 * stay],
        "triton.cut": [2 * kept + 8 * stay, kept],
    }
    assert sum(map(sum, seen.values())) <= sum(model.blocks["1"])
    assert operators == seen_by_torch + 3


def test_what_a_kernels_path_hangs_on_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score, select, whether to add late, and the cut: each decided once, however many layers and forwards follow."""
    asked: list[str] = []
    decide = paths._decide
    monkeypatch.setattr(paths, "_decide", lambda part, *rest: asked.append(part) or decide(part, *rest))
    step = host_cost.step(tuple(range(1, host_cost.LAYERS + 1)))
    with host_cost.without_launches(), step.active():
        for _ in range(3):
            step.forward()
    assert sorted(asked) == ["cut", "cut", "score", "select"]


def test_the_decision_is_taken_anew_where_another_path_is_forced() -> None:
    scores = torch.zeros(B, N)
    assert paths.path_for("select", scores) == "torch"
    with host_cost.without_launches():
        assert paths.path_for("select", scores) == "triton"
    assert paths.path_for("select", scores) == "torch"


def test_where_triton_cannot_build_its_launcher_plain_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images to run models in have no C compiler; here there is no GPU, which Triton's driver says too."""
    there = torch.device("cuda", 0)
    tensor: Any = SimpleNamespace(is_cuda=True, is_cpu=False, device=there, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(paths, "_decided", {})
    assert paths.path_for("cut", tensor) == "torch"
    with paths.using("triton"), pytest.raises(UsageError, match="Triton does not start"):
        paths.path_for("cut", tensor)
    monkeypatch.setattr(paths, "_cannot_start", lambda: None)
    paths._decided.clear()
    assert paths.path_for("cut", tensor) == "triton"


def test_the_benchmark_runs() -> None:
    assert host_cost.microseconds(repeats=3) > 0
