"""What only a GPU can show: events, kernels by name, graphs, the allocator's figures, no hidden synchronisation."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from gpu_support import NAMES, moved
from test_reduction import reference, run, shift
from tiny import FAMILIES, case
from torch import Tensor
from typer.testing import CliRunner

from repshift_cli import cli, registry
from repshift_cli.attention import flash, vanilla
from repshift_cli.benchmark.builder import StepBuilder
from repshift_cli.records import Case, Measurement, Step, store
from repshift_cli.reduction import repshift

pytestmark = pytest.mark.gpu

DEPTH = 12
REPSHIFT = {
    "pruning": "repshift",
    "keep": 0.7,
    "layers": (1, 4, 7),
    "options": (("operation", "mlp"), ("distance", "l2"), ("form", "update")),
}
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "repshift": REPSHIFT,
    "cosine": {**REPSHIFT, "options": (("operation", "mlp"), ("distance", "cosine"), ("form", "paper"))},
    "block": {**REPSHIFT, "options": (("operation", "block"), ("distance", "l1"))},
    "lowest": {**REPSHIFT, "pruning": "lowest"},
    "random": {"pruning": "random", "keep": 0.7, "layers": (1, 4, 7)},
    "stride": {"pruning": "stride", "keep": 0.7, "layers": (1, 4, 7)},
    "oracle": {"pruning": "oracle", "keep": 0.7, "layers": (1, 4, 7)},
}


@pytest.fixture(scope="module")
def shop() -> Iterator[StepBuilder]:
    yield StepBuilder("cuda")
    gc.collect()
    torch.cuda.empty_cache()


def on_cuda(**changes: Any) -> Case:
    return case(**{"model": "vit_t", "device": "cuda", "dtype": "bf16", "batch": 4, "attention": "flash", **changes})


def once(step: Step) -> Tensor:
    with step.active():
        return step.forward().logits.clone()


# --- time -------------------------------------------------------------------------------------------------------------


def test_events_time_the_device(shop: StepBuilder) -> None:
    """A product of 4096 x 4096 matrices in fp32 is 137 GFLOP: no device does it in 0.01 ms, none here takes 1 s."""
    a = torch.randn(4096, 4096, device="cuda")
    timer = shop.parts.timer
    assert timer.source == "CUDA events"
    samples = timer.time(lambda: a @ a, 20)
    assert len(samples) == 20
    assert all(0.01 < ms < 1000 for ms in samples)


def test_time_is_the_devices_and_not_the_hosts(shop: StepBuilder) -> None:
    """The host runs ahead of the device by far; its own time would be next to nothing."""
    a = torch.randn(4096, 4096, device="cuda")
    launched: list[float] = []

    def work() -> None:
        begin = time.perf_counter()
        for _ in range(20):
            a @ a
        launched.append((time.perf_counter() - begin) * 1000)

    shop.parts.timer.time(work, 2)
    launched.clear()
    (measured,) = shop.parts.timer.time(work, 1)
    assert measured > launched[0]


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["none", "repshift"])
def test_every_back_end_is_verified_by_its_kernels_name(shop: StepBuilder, name: str, method: str) -> None:
    missing = registry.load(registry.find("attention", name)).unavailable("cuda")
    if missing:
        pytest.skip(missing)
    step = shop.prepare(on_cuda(attention=name, **METHODS[method]))
    assert re.fullmatch(rf"({NAMES[name]})(, ({NAMES[name]}))* ×{DEPTH}", shop.parts.verify(step))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "vanilla"])
def test_back_ends_agree(shop: StepBuilder, name: str) -> None:
    missing = registry.load(registry.find("attention", name)).unavailable("cuda")
    if missing:
        pytest.skip(missing)
    by_hand, given = (once(shop.prepare(on_cuda(attention=a))) for a in ("vanilla", name))
    assert torch.nn.functional.cosine_similarity(by_hand.float(), given.float()).min() > 0.999


# --- pruning ----------------------------------------------------------------------------------------------------------


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32, neither in products nor in convolutions."""
    was = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = was


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_as_written(family: str, dtype: torch.dtype, tolerance: float) -> None:
    plain = moved(FAMILIES[family](), "cuda", dtype)
    given = case(**{**REPSHIFT, "keep": 0.5, "layers": (1, 2)}, device="cuda")
    with exact_products():
        expected = reference(plain, 0.5, (1, 2), lambda seen: shift(seen, "mlp", "l2", "update"))
        torch.testing.assert_close(run(plain, repshift, given, vanilla), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_a_pruned_forward_never_waits_for_the_device(shop: StepBuilder, method: str) -> None:
    step = shop.prepare(on_cuda(**METHODS[method]))
    with step.active():
        step.forward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.forward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_waiting_would_be_seen() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_videos_never_wait_either(shop: StepBuilder) -> None:
    """VideoMAE's table of positions is no buffer; left on the host it would be copied in every forward."""
    step = shop.prepare(on_cuda(model="umt_b", frames=2, batch=1, **{**REPSHIFT, "layers": (1, 2, 3)}))
    with step.active():
        step.forward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.forward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# --- graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["flash", "vanilla", "efficient"])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "random"])
def test_a_graph_gives_what_its_eager_twin_gives(shop: StepBuilder, method: str, attention: str) -> None:
    eager = shop.prepare(on_cuda(attention=attention, **METHODS[method]))
    graph = shop.prepare(on_cuda(attention=attention, execution="graph", **METHODS[method]))
    expected = once(eager)
    assert torch.equal(once(graph), expected)
    other = {"pixel_values": torch.randn_like(eager.subject.inputs["pixel_values"])}
    with eager.active():
        wanted = eager.run(other).logits.clone()
    with graph.active():
        given = graph.run(other).logits.clone()
        again = graph.run(eager.subject.inputs).logits.clone()
    assert torch.equal(given, wanted)
    assert torch.equal(again, expected)
    assert not torch.equal(wanted, expected)


def test_a_graph_draws_anew_in_every_replay_and_follows_the_seed(shop: StepBuilder) -> None:
    graph = shop.prepare(on_cuda(execution="graph", **METHODS["random"]))
    torch.manual_seed(1)
    first, second = once(graph), once(graph)
    torch.manual_seed(1)
    again = once(graph)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_a_graph_is_verified_and_counted_on_its_eager_twin(shop: StepBuilder) -> None:
    eager, graph = (shop.prepare(on_cuda(execution=e, **REPSHIFT)) for e in ("eager", "graph"))
    assert shop.parts.verify(graph) == shop.parts.verify(eager)
    for metric in ("macs", "hbm_modelled", "fidelity_kl"):
        assert figure(shop, graph, metric).samples == figure(shop, eager, metric).samples
    assert figure(shop, graph, "memory_peak_allocated").reason


# --- figures ----------------------------------------------------------------------------------------------------------


def figure(shop: StepBuilder, step: Step, metric: str) -> Measurement:
    for probe in (*shop.parts.memory(step), *shop.parts.probes(step)):
        for m in probe.measure(step):
            if m.metric == metric:
                return m
    raise AssertionError(metric)


def test_memory_has_four_figures_in_their_order(shop: StepBuilder) -> None:
    step = shop.prepare(on_cuda())
    (probe,) = shop.parts.memory(step)
    found = {m.metric.removeprefix("memory_"): m for m in probe.measure(step)}
    size = {name: m.samples[0] for name, m in found.items() if m.samples}
    weights = sum(p.numel() * 2 for p in step.subject.module.parameters())
    total = torch.cuda.get_device_properties("cuda").total_memory
    assert size["resting"] >= weights > 5e6
    assert size["peak_above_resting"] > 4 * 197 * 192 * 2, "at least the hidden states of one block"
    assert size["peak_allocated"] == size["resting"] + size["peak_above_resting"]
    assert size["peak_allocated"] <= size["peak_reserved"] < size["card"] <= total
    if "process" in size:
        assert size["peak_reserved"] < size["process"] <= size["card"]
    else:
        assert "NVML" in (found["process"].reason or "")


def test_vanilla_needs_the_memory_of_the_scores(shop: StepBuilder) -> None:
    peaks = {
        name: figure(shop, shop.prepare(on_cuda(attention=name, batch=64)), "memory_peak_above_resting").samples[0]
        for name in ("flash", "vanilla")
    }
    assert peaks["vanilla"] > peaks["flash"]


def test_macs_are_those_of_a_cpu(shop: StepBuilder) -> None:
    for attention in ("flash", "vanilla", "efficient", "cudnn"):
        plain, pruned = on_cuda(attention=attention), on_cuda(attention=attention, **{**REPSHIFT, "keep": 0.8})
        figures = [figure(shop, shop.prepare(c), "macs").samples[0] / 1e9 for c in (plain, pruned)]
        assert [f"{f:.2f}" for f in figures] == ["1.25", "0.80"]


def test_traffic_of_vanilla_is_above_that_of_flash(shop: StepBuilder) -> None:
    flash_bytes, vanilla_bytes = (
        figure(shop, shop.prepare(on_cuda(attention=a)), "hbm_modelled").samples[0] for a in ("flash", "vanilla")
    )
    scores = 4 * 2 * (4 * 3 * 197 * 197) * DEPTH  # four passes of bf16 over (B, H, N, N) in every block
    scaled = 2 * 2 * (4 * 197 * 192) * DEPTH  # q read and written once more
    assert vanilla_bytes - flash_bytes > scores
    assert vanilla_bytes - flash_bytes < scores + 10 * scaled


# --- the command ------------------------------------------------------------------------------------------------------


def test_bench_from_end_to_end(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    options = ["--model", "vit_t", "--batch", "8", "--keep", "0.6", "--cuda-graph", "--device", "cuda"]
    options += ["--hbm", "model"]  # a counter takes a child process for each record, and has tests of its own
    variants = "vanilla,flash,flash+repshift,flash+random,flash+oracle"
    done = CliRunner().invoke(cli.app, ["bench", *options, "--variant", variants, "--rounds", "8", "--out", str(path)])
    assert done.exit_code == 0, done.output
    stored = store.load(path)
    assert stored.machine.device_name
    assert stored.machine.driver
    assert stored.machine.cuda
    assert len(stored.records) == 10
    assert {r.case.execution for r in stored.records} == {"eager", "graph"}
    for record in stored.records:
        assert (record.status, record.rounds) == ("ok", 8), record.reason
        assert record.case.dtype == "bf16"
        assert record.tokens == ((197, 119) if record.case.keep < 1 else (197,))
        assert record.kernel
        assert record.kernel.endswith(f"×{DEPTH}")
        assert re.match(flash.KERNELS if record.case.attention == "flash" else "softmax", record.kernel)
        latency = record.measurement("latency")
        assert latency
        assert all(0.05 < ms < 1000 for ms in latency.samples)


def test_the_case_of_this_file_runs_on_a_gpu(shop: StepBuilder) -> None:
    step = shop.prepare(on_cuda())
    assert {p.device.type for p in step.subject.module.parameters()} == {"cuda"}
    assert {p.dtype for p in step.subject.module.parameters()} == {torch.bfloat16}
    assert len(step.subject.sites) == DEPTH != tiny.DEPTH
