"""`repshift profile` on a GPU: device times belong to parts, graphs say why theirs do not, snapshots are written."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from repshift_cli.benchmark.builder import StepBuilder
from repshift_cli.profiling import annotations, digest
from repshift_cli.profiling import recorder as probe
from repshift_cli.records import Case
from repshift_cli.records.profile import Breakdown

pytestmark = pytest.mark.gpu

PRUNED: dict[str, Any] = {"pruning": "repshift", "keep": 0.5, "layers": (3,)}
PRUNED |= {"options": (("operation", "mlp"), ("distance", "l2"), ("form", "update"))}


def profiled(folder: Path, **changes: Any) -> Breakdown:
    case = Case("deit_s", "random", "random", 224, None, 8, "bf16", "cuda", "flash", **changes)
    step = StepBuilder("cuda").prepare(case)
    probe.record(step, folder / "t.json", 3)
    return digest.digest(Breakdown(case.variant, case), folder / "t.json")[0]


def test_device_time_belongs_to_parts_of_blocks(tmp_path: Path) -> None:
    found = profiled(tmp_path, **PRUNED)
    device = {(p.part, p.layer): p.device_ms or 0.0 for p in found.parts}
    assert found.busy_ms and sum(device.values()) == pytest.approx(found.busy_ms, rel=0.02)
    assert sum(p.host_ms for p in found.parts) == pytest.approx(found.step, rel=0.02)
    for layer in range(1, 13):
        assert all(device[(part, layer)] > 0 for part in ("attention", "projection", "mlp", "norm"))
    assert all(device[(part, 3)] > 0 for part in annotations.SELECTION)
    assert any(p.part == "wait" for p in found.parts)
    assert found.warnings == ()


def test_the_kernels_show_the_back_end(tmp_path: Path) -> None:
    found = profiled(tmp_path)
    assert sum(k.calls for k in found.kernels if "flash" in k.name.lower()) == 12
    assert found.kernel_count and found.launches and found.launches >= 0.9 * found.kernel_count


def test_a_graph_has_the_same_kernels_and_no_parts(tmp_path: Path) -> None:
    eager, graph = profiled(tmp_path), profiled(tmp_path, execution="graph")
    assert (graph.parts, graph.missing) == ((), {"parts": digest.IN_A_GRAPH})
    assert graph.kernel_count == pytest.approx(eager.kernel_count, rel=0.1)
    assert graph.launches == 1


def test_a_memory_snapshot_holds_allocations(tmp_path: Path) -> None:
    case = Case("deit_s", "random", "random", 224, None, 8, "bf16", "cuda", "flash")
    probe.record_memory(StepBuilder("cuda").prepare(case), tmp_path / "m.pickle")
    with (tmp_path / "m.pickle").open("rb") as file:
        snapshot = pickle.load(file)
    assert any(trace for trace in snapshot["device_traces"])
    assert torch.cuda.memory._snapshot()["device_traces"] is not None
