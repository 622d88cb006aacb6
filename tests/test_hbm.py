"""The byte model against hand-counted cases, and what the HBM probe makes of an instrument's figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from repshift_cli import registry
from repshift_cli.attention.base.swap import attending
from repshift_cli.benchmark.derived import rates
from repshift_cli.counters.base.traffic import CounterError, Traffic
from repshift_cli.probes import Counter
from repshift_cli.probes.base.traffic_model import (
    FORMULA,
    OUTSIDE,
    TrafficModel,
    attention_bytes,
    stored_bytes,
    watching,
)
from repshift_cli.probes.hbm import HbmProbe, modelled
from repshift_cli.records import Measurement, Step, call

B, H, N, D = 2, 3, 20, 16
E = 4
"""Bytes per element of fp32."""


def qkv(n: int = N, device: str = "cpu", dtype: torch.dtype = torch.float32, kv_heads: int = H) -> list[Tensor]:
    shapes = [(B, heads, n, D) for heads in (H, kv_heads, kv_heads)]
    return [torch.empty(*shape, device=device, dtype=dtype).normal_() for shape in shapes]


def moved(work: Any) -> tuple[int, int]:
    with torch.inference_mode(), TrafficModel() as model:
        work()
    return model.read, model.written


# --- single operators, counted by hand --------------------------------------------------------------------------------


def test_views_and_allocations_move_nothing() -> None:
    x = torch.randn(8, 16)
    views = (
        lambda: x.view(16, 8),
        lambda: x.t()[:4].unsqueeze(0).expand(5, 4, 8),
        lambda: torch.empty_like(x),
        lambda: x.unflatten(1, (4, 4)).transpose(1, 2),
        lambda: x.chunk(2, dim=1),
        lambda: x.detach(),
    )
    assert [moved(view) for view in views] == [(0, 0)] * len(views)


ROWS, COLUMNS, BIAS = torch.tensor([1, 5]), torch.zeros(8, 2, dtype=torch.long), torch.zeros(8)


@pytest.mark.parametrize(
    ("work", "read", "written"),
    [
        (lambda x, y: x + y, 2 * 512, 512),
        (lambda x, y: x + x, 512, 512),
        (lambda x, y: x[:, :4] + 1, 8 * 4 * E, 8 * 4 * E),
        (lambda x, y: x + y[:1].expand(8, 16), 512 + 64, 512),
        (lambda x, y: x.add_(y), 2 * 512, 512),
        (lambda x, y: x.copy_(y), 512, 512),
        (lambda x, y: x.zero_(), 0, 512),
        (lambda x, y: torch.neg(x, out=y), 512, 512),
        (lambda x, y: x.sum(), 512, E),
        (lambda x, y: torch.cat([x, y]), 1024, 1024),
        (lambda x, y: x.t().contiguous(), 512, 512),
        (lambda x, y: x.to(torch.bfloat16), 512, 256),
        (lambda x, y: x @ y.t(), 1024, 8 * 8 * E),
        (lambda x, y: x.index_select(0, ROWS), 2 * 64 + 16, 2 * 64),
        (lambda x, y: x[ROWS], 2 * 64 + 16, 2 * 64),
        (lambda x, y: x.gather(1, COLUMNS), 8 * 2 * E + 8 * 2 * 8, 8 * 2 * E),
        (lambda x, y: x.topk(2).values, 512, 8 * 2 * E + 8 * 2 * 8),
        (lambda x, y: F.linear(x, y, BIAS), 1024 + 8 * E, 8 * 8 * E),
    ],
)
def test_an_operator_counted_by_hand(work: Any, read: int, written: int) -> None:
    x, y = torch.randn(8, 16), torch.randn(8, 16)
    assert moved(lambda: work(x, y)) == (read, written)


def test_bytes_of_tensors_that_share_memory() -> None:
    x = torch.randn(8, 16)
    assert stored_bytes([x, x]) == 512
    assert stored_bytes([x, x.t()]) == 512, "never above the storage"
    assert stored_bytes([x[:2], x[4:6]]) == 4 * 16 * E
    assert stored_bytes([x[:2], x[:2]]) == 2 * 16 * E, "the same view twice"
    assert stored_bytes([x[:1].expand(100, 16)]) == 16 * E
    assert stored_bytes([torch.empty(0)]) == 0


# --- attention, counted by hand for every back end --------------------------------------------------------------------


def compulsory(n: int, e: int, kv_heads: int = H) -> int:
    """e (2 B Hq N d + 2 B Hkv N d): q read and the output written, k and v read."""
    return e * (2 * B * H * n * D + 2 * B * kv_heads * n * D)


def attend(name: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int]:
    with attending(registry.load(registry.find("attention", name))):
        return moved(lambda: F.scaled_dot_product_attention(q, k, v))


def test_flash_on_a_cpu_moves_the_compulsory_bytes_and_its_logsumexp() -> None:
    q, k, v = qkv()
    assert sum(attend("flash", q, k, v)) == compulsory(N, E) + B * H * N * 4


def test_vanilla_adds_four_passes_over_the_scores_and_the_scaling_of_q() -> None:
    """Scores written, read and written by softmax, read again; q times the scale is read and written once more."""
    q, k, v = qkv()
    assert sum(attend("vanilla", q, k, v)) == compulsory(N, E) + 4 * E * B * H * N * N + 2 * E * B * H * N * D


def test_math_scales_q_and_k() -> None:
    """torch's own composite: as vanilla, with the scale shared between q and k, each read and written once more."""
    q, k, v = qkv()
    assert sum(attend("math", q, k, v)) == compulsory(N, E) + 4 * E * B * H * N * N + 4 * E * B * H * N * D


@pytest.mark.parametrize(
    ("operator", "arguments", "beside"),
    [
        ("_scaled_dot_product_flash_attention", (), B * H * N * 4 + 3 * 8),
        ("_scaled_dot_product_efficient_attention", (None, False), 2 * 8),
        ("_scaled_dot_product_cudnn_attention", (None, False), B * H * N * 4 + 2 * 8),
    ],
)
def test_torchs_cuda_kernels_move_the_compulsory_bytes(operator: str, arguments: Any, beside: int) -> None:
    """With tensors that are only said to be on CUDA; beside them the logsumexp and the state of the random numbers."""
    with FakeTensorMode():
        q, k, v = qkv(device="cuda", dtype=torch.bfloat16)
        found = moved(lambda: getattr(torch.ops.aten, operator)(q, k, v, *arguments))
    assert sum(found) == compulsory(N, 2) + beside


@pytest.mark.parametrize("kv_heads", [H, 1])
@pytest.mark.parametrize("package", ["flash_attn2", "flash_attn3", "flash_attn4"])
def test_a_package_that_shows_no_operator_is_counted_by_formula(
    package: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages' launches are played by a function that torch does not see: exactly the compulsory bytes remain."""
    part = registry.load(registry.find("attention", package))
    monkeypatch.setattr(part, "attend", lambda q, k, v, **_: torch.empty_like(q))
    q, k, v = qkv(kv_heads=kv_heads)
    with torch.inference_mode(), attending(part), TrafficModel() as model, watching(model, ()):
        F.scaled_dot_product_attention(q, k, v)
    assert list(model.operators) == [FORMULA]
    assert model.read + model.written == compulsory(N, E, kv_heads)
    assert model.written == E * B * H * N * D
    assert attention_bytes(q, k, v) == tuple(model.operators[FORMULA])


def test_attention_that_shows_its_operator_is_counted_once() -> None:
    q, k, v = qkv()
    part = registry.load(registry.find("attention", "flash"))
    with torch.inference_mode(), attending(part), TrafficModel() as model, watching(model, ()):
        F.scaled_dot_product_attention(q, k, v)
    assert FORMULA not in model.operators
    assert model.read + model.written == compulsory(N, E) + B * H * N * 4


def test_materialised_attention_grows_with_the_square_of_n_and_fused_with_n() -> None:
    """The paper's argument, exactly: the second differences over N are 8e B H for vanilla and 0 for flash."""
    sums = {name: [sum(attend(name, *qkv(n))) for n in range(16, 97, 16)] for name in ("vanilla", "flash")}
    second = {name: [c - 2 * b + a for a, b, c in zip(s, s[1:], s[2:], strict=False)] for name, s in sums.items()}
    assert set(second["vanilla"]) == {2 * 16**2 * 4 * E * B * H}
    assert set(second["flash"]) == {0}


# --- a whole model ----------------------------------------------------------------------------------------------------


def step(**changes: Any) -> Step:
    from repshift_cli.benchmark import builder

    plain = tiny.vit()
    module, inputs = plain.module.float(), {name: value.float() for name, value in plain.inputs.items()}
    return builder.eager_step(tiny.case(attention="flash", **changes), tiny.subject(module, inputs))


def test_the_parts_add_up_to_the_whole() -> None:
    total, read, written = modelled(step())
    assert total.samples[0] == read.samples[0] + written.samples[0]
    for parts in total.parts.values():
        assert sum(parts.values()) == total.samples[0]
    assert list(total.parts["block"]) == [OUTSIDE, "1", "2", "3"]
    assert any("flash_attention" in name for name in total.parts["operator"])
    blocks = total.parts["block"]
    assert blocks["1"] == blocks["2"] == blocks["3"]


def test_pruning_shows_where_it_costs_and_where_it_saves() -> None:
    """The cut after block 1 costs in block 1 and saves in blocks 2 and 3."""
    whole, pruned = (
        modelled(s)[0].parts["block"]
        for s in (
            step(),
            step(pruning="repshift", keep=0.5, layers=(1,), operation="mlp", distance="l2", form="update"),
        )
    )
    assert pruned["1"] > whole["1"]
    assert pruned["2"] == pruned["3"] < whole["2"]


def test_watching_leaves_no_hook_behind() -> None:
    made = step()
    bound = F.scaled_dot_product_attention
    modelled(made)
    assert F.scaled_dot_product_attention is bound
    for site in made.subject.sites:
        assert not site.block._forward_hooks and not site.block._forward_pre_hooks


# --- the probe --------------------------------------------------------------------------------------------------------


def named(found: Any) -> dict[str, Measurement]:
    return {m.metric: m for m in found}


def test_without_an_instrument_the_figure_is_missing_and_the_model_stands_beside_it() -> None:
    found = named(HbmProbe(Counter(None, "no GPU in this run")).measure(step()))
    assert found["hbm_modelled"].samples and found["hbm_modelled"].source == "modelled"
    for name in ("hbm", "hbm_read", "hbm_written"):
        assert (found[name].samples, found[name].reason) == ((), "no GPU in this run")


def test_counted_bytes_carry_label_and_instrument() -> None:
    told = [Traffic.of(5, 7), Traffic.of(6, 7), Traffic.of(5, 9)]
    found = named(HbmProbe(Counter("cupti", "", "counter", lambda case: told)).measure(step()))
    assert (found["hbm"].samples, found["hbm"].source, found["hbm"].provider) == ((12, 13, 14), "counter", "cupti")
    assert (found["hbm_read"].samples, found["hbm_written"].samples) == ((5, 6, 5), (7, 7, 9))
    assert found["hbm"].label == "HBM (cupti)"


def test_a_sampled_sum_has_no_directions() -> None:
    found = named(HbmProbe(Counter("gpm", "", "sampled", lambda case: [Traffic(12.0)])).measure(step()))
    assert (found["hbm"].samples, found["hbm"].source, found["hbm"].label) == ((12,), "sampled", "HBM (gpm, sampled)")
    assert found["hbm_read"].reason == found["hbm_written"].reason == "gpm tells the sum only"


def test_a_case_that_cannot_be_counted_costs_its_own_cell() -> None:
    def crash(case: Any) -> Any:
        raise CounterError("the child crashed (SIGSEGV)")

    found = named(HbmProbe(Counter("cupti", "", "counter", crash, (CounterError,))).measure(step()))
    assert found["hbm"].reason == "cupti: the child crashed (SIGSEGV)"
    assert found["hbm_modelled"].samples


def test_off_measures_nothing_and_models_nothing() -> None:
    found = HbmProbe(Counter(None, "not asked for (--hbm off)", modelled=False)).measure(step())
    assert {m.reason for m in found} == {"not asked for (--hbm off)"}
    assert {m.metric for m in found} >= {"hbm", "hbm_modelled"}


def measured(total: float, macs: float = 0.0) -> list[Measurement]:
    kind = ("", "B", "lower", "median", "counter")
    found = [Measurement("hbm", *kind, samples=(total,), provider="cupti")]
    found += [Measurement("macs", *kind, samples=(macs,))] if macs else []
    return [*found, Measurement("hbm_modelled", *kind, samples=(2 * total,))]


def test_bytes_and_time_give_the_share_of_the_peak_and_the_intensity() -> None:
    found, words = rates(measured(1e9, macs=25e9), milliseconds=1.0, batch=4, peak=2e12)
    by_name = named(found)
    assert by_name["hbm_share_of_peak"].samples == (50.0,)
    assert by_name["arithmetic_intensity"].samples == (200.0,)
    assert by_name["hbm_modelled_over_measured"].samples == (2.0,)
    assert {(m.source, m.provider) for m in found} == {("counter", "cupti")}
    assert words == []


def test_more_than_the_peak_is_not_believed() -> None:
    _, words = rates(measured(1e9), milliseconds=1.0, batch=1, peak=0.97e12)
    assert len(words) == 1 and "1000 GB/s were counted, above the peak of 970 GB/s" in words[0]
    assert rates(measured(1e9), milliseconds=1.0, batch=1, peak=0.99e12)[1] == []


def test_without_a_peak_or_without_bytes_there_is_no_share() -> None:
    found, _ = rates(measured(1e9), 1.0, 1, "the peak bandwidth is not known: Not Supported")
    assert named(found)["hbm_share_of_peak"].reason == "the peak bandwidth is not known: Not Supported"
    missing = [Measurement("hbm", "HBM", "B", "lower", "median", "counter", reason="no GPU in this run")]
    found, words = rates(missing, 1.0, 1, 1e12)
    assert {m.reason for m in found} == {"no GPU in this run"} and words == []
    assert rates([], 1.0, 1, 1e12) == ([], [])


def test_the_library_runs_as_before_under_the_model() -> None:
    made = step()
    with made.active():
        before = made.forward().logits
        with TrafficModel() as model, watching(model, made.subject.sites):
            after = call(made.subject.module, made.subject.inputs).logits
    assert torch.equal(before, after)


# --- the command ------------------------------------------------------------------------------------------------------


def test_what_moves_the_bytes_is_shown(tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthetic import small_run

    from repshift_cli.cli import run
    from repshift_cli.records.json_codec import to_json

    made = small_run()
    parts = {"operator": {"aten.addmm": 3.0 * 2**20, "aten.add": 2.0**20}, "block": {"1": 2.0**20, "2": 2.0**20}}
    parts["operator"] |= {f"aten.op{i}": 1024.0 for i in range(9)}
    total = Measurement("hbm_modelled", "HBM modelled", "B", "lower", "value", "modelled", (4.0 * 2**20,))
    record = replace(made.records[0], measurements=(replace(total, parts=parts),))
    file = tmp_path / "run.json"
    file.write_text(to_json(replace(made, records=(record,))), encoding="utf-8")
    assert run(["show", str(file), "--traffic"], False) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "vit_b · batch 1 · vanilla: 4 MiB modelled (cold cache)"
    assert lines[1].startswith("· by operator: addmm 3 MiB (75%), add 1 MiB (25%), op0 1 KiB (0%)")
    assert lines[1].endswith("3 others 3 KiB (0%)")
    assert lines[2] == "· by block: 1–2 1 MiB each"
    file.write_text(to_json(made), encoding="utf-8")
    assert run(["show", str(file), "--traffic"], False) == 0
    assert "no case of this run was modelled" in capsys.readouterr().out
