"""`repshift operators`: what is asked for, which cells come of it, what is measured of an operator, what is shown."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from synthetic import CPU

from repshift_cli import cli, registry
from repshift_cli.analysis.crossing import Crossing, crossing
from repshift_cli.benchmark.builder import StepBuilder
from repshift_cli.benchmark.contenders import OVER_FLASH
from repshift_cli.benchmark.operators import choice, measures, steps
from repshift_cli.benchmark.timers import timer_for
from repshift_cli.benchmark.verification import WrongKernel
from repshift_cli.machine import memory
from repshift_cli.operators.base import flex
from repshift_cli.operators.base.sdpa import FLASH_KERNELS, FLASH_OPS
from repshift_cli.probes.fidelity import NotFinite
from repshift_cli.probes.memory import ABOVE, MemoryProbe
from repshift_cli.records import OPERATORS, Case, Record, RepshiftError, Run, UsageError, store
from repshift_cli.records.profile import ProfileRun
from repshift_cli.renderers.sheets.crossing import crossings
from repshift_cli.renderers.sheets.profile import sheets_of
from repshift_cli.renderers.sheets.run import header_of
from repshift_cli.sweep.operators import OperatorAxes, expand

SMALL = {"tokens": "64", "heads": "2", "head_dim": "16", "window": "16"}


def planned(**given: Any) -> list[Any]:
    axes = OperatorAxes.from_options(SMALL | given)
    return list(expand(axes, "cpu", choice.offered(axes.operator, "cpu")))


def case(operator: str = "flash", **changes: Any) -> Case:
    found = [p.case for p in planned(operator=operator) if p.case.attention == operator]
    return replace(found[0], **changes)


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("512", (512,)), ("1k,2k", (1024, 2048)), ("1k:8k:x2", (1024, 2048, 4096, 8192)), ("1:3", (1, 2, 3))],
)
def test_sizes_are_lists_and_growing_ranges(text: str, sizes: tuple[int, ...]) -> None:
    assert OperatorAxes.from_options({"tokens": text}).tokens == sizes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tokens": "0"}, "too small"),
        ({"tokens": "1k:4k:x1"}, "no growing range"),
        ({"dtype": "fp8"}, "unknown value 'fp8'"),
        ({"input": "real"}, "choose from planted"),
        ({"input": "captured"}, "name the model"),
        ({"model": "vit_t"}, "goes with --input captured"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        OperatorAxes.from_options(given)


def test_options_come_back_from_a_run_file() -> None:
    axes = OperatorAxes.from_options(SMALL | {"causal": False, "backward": True, "rounds": "3"})
    assert OperatorAxes.from_options(json.loads(json.dumps(axes.as_options()))) == axes


def test_unknown_operators_and_engines_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean sliding"):
        choice.offered(["slidding"], "cpu")
    with pytest.raises(UsageError, match="no engine 'cuda'; it has plain, flex"):
        choice.offered(["sliding:cuda"], "cpu")


# --- cells ------------------------------------------------------------------------------------------------------------


def test_each_group_has_its_reference_and_half_of_the_tokens() -> None:
    cells = planned(operator="linear,decode_mqa")
    groups = {p.case.group for p in cells}
    assert len(groups) == 3
    by_phase = {
        (c.option("causal"), c.option("decode")): [p.case.variant for p in cells if p.case.group == c.group]
        for c in (p.case for p in cells)
    }
    prefill = ["flash", "flash+oracle", "linear"]
    assert by_phase[False, None] == by_phase[True, None] == prefill
    assert by_phase[None, True] == ["decode", "decode_mqa", "decode_mqa:split"]
    half = next(p for p in cells if p.case.pruning == "oracle")
    assert half.tokens == (64, 32)


def test_operators_stand_only_under_the_masks_that_they_are_defined_for() -> None:
    cells = planned(operator="linformer,nsa")
    assert {(p.case.attention, p.case.option("causal")) for p in cells if p.case.attention != "flash"} == {
        ("linformer", False),
        ("nsa", True),
    }
    assert planned(operator="linformer", causal=True) == []


def test_operators_begin_with_cold_caches_on_cuda_and_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word is part of the case, so that cold is never compared with warm; stored cases of a CPU stay."""
    monkeypatch.setattr(choice, "total_bytes", lambda device: 2**33)

    def word(device: str, **given: str) -> Any:
        axes = OperatorAxes.from_options(SMALL | {"operator": "linear"} | given)
        (found,) = {p.case.option("cache") for p in expand(axes, device, choice.offered(("linear",), "cpu"))}
        return found

    assert [word("cuda"), word("cpu"), word("cuda", cache="warm"), word("cpu", cache="cold")] == [
        "cold", None, None, "cold",
    ]  # fmt: skip
    (cold,) = [p.case for p in planned(operator="linear", causal=False, cache="cold") if p.case.attention == "linear"]
    assert "cold cache" in header_of(CPU, [cold])
    station = StepBuilder("cpu")
    station.comparing([cold])
    assert station.parts.timer == timer_for("cpu", cold=True) != timer_for("cpu")
    station.comparing([case("linear")])
    assert station.parts.timer == timer_for("cpu")


def test_without_names_all_that_run_here_are_measured() -> None:
    axes = OperatorAxes.from_options(SMALL)
    names = {o.name for o in choice.offered((), "cpu")}
    assert "cudnn" not in names and {"softmax", "mla:absorbed", "paged:pages"} <= names
    missing = {p.name for p in registry.parts("operators").values()} - {n.partition(":")[0] for n in names}
    assert all(registry.load(registry.find("operators", n)).ENGINES["plain"].unavailable("cpu") for n in missing)
    assert not [p.refused for p in expand(axes, "cpu", choice.offered((), "cpu")) if p.refused]


def test_what_was_named_and_cannot_be_is_a_row_with_the_reason() -> None:
    cells = {p.case.attention: p.refused for p in planned(operator="cudnn,swin,flex", tokens="63", backward=True)}
    assert cells["cudnn"] == "exists on CUDA only"
    assert "no grid of whole" in cells["swin"]
    assert cells["flex"] is None or "backward pass on cpu" in cells["flex"] or "C++" in cells["flex"]


def test_a_matrix_that_would_not_fit_is_refused_by_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda device: 8 * 2**20)
    monkeypatch.setattr(choice, "total_bytes", memory.total_bytes)
    cells = {p.case.variant: p.refused for p in planned(operator="softmax", tokens="2048", causal=False)}
    assert cells["flash"] is None
    assert cells["softmax"].startswith("would hold 0 GiB at once (1 x 2 heads, 2048 tokens, fp32)")


def test_what_is_held_by_formula_is_about_what_the_allocator_sees() -> None:
    """What is refused for want of memory goes by the formula; copies of q, k, v and the output are left beside it."""
    probe = MemoryProbe(lambda: "not asked for")
    for one in (p.case for p in planned(tokens="512", heads="4", head_dim="64", causal=True) if not p.refused):
        if one.keep < 1 or one.attention == "flex":
            continue
        shape = choice.shape_of(one)
        given = 4 * shape.batch * shape.heads * shape.queries * shape.head_dim
        (above,) = (m for m in probe.measure(steps.step_of(one, steps.subject_of(one))) if m.metric == ABOVE.name)
        held = 4 * choice.cost_of(one).held
        assert 0.4 * held - 2**18 < above.samples[0] < 1.5 * held + 4 * given + 2**18, one.variant


def test_graphs_of_backward_passes_that_do_not_fit_together_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [p.case for p in planned(operator="softmax,linear,additive", tokens="256", causal=True, backward=True)]
    sizes = {c.variant: choice.kept(c) for c in cells}
    assert sizes["flash"] < sizes["linear"] < sizes["softmax"] < sizes["additive"]
    assert choice.kept(case("softmax")) == 0 and choice.not_held([case("softmax")]) == frozenset()
    assert choice.not_held(cells) == frozenset(), "where all fit, all stay ready"
    for has, expected in ((10 * sizes["additive"], set()), (2.7 * sizes["additive"], {"additive"})):
        monkeypatch.setattr(choice, "total_bytes", lambda device, has=has: int(has))
        assert {c.variant for c in choice.not_held(cells)} == expected
    needs = 4 * (4 * 2 * 256 * 16) + 2 * sizes["additive"]
    monkeypatch.setattr(choice, "total_bytes", lambda device: needs)
    refused = {
        p.case.variant: p.refused for p in planned(operator="additive", tokens="256", causal=True, backward=True)
    }
    assert refused["flash"] is None and "would hold" in refused["additive"]


def test_a_backward_pass_that_is_not_held_has_the_same_gradients_and_keeps_nothing() -> None:
    one = case("softmax")
    one = one.with_options(**dict(one.options), backward=True)
    subject = steps.subject_of(one)
    held, anew = (steps.step_of(one, subject, held) for held in (True, False))
    assert held.subject.warnings == () and anew.subject.warnings == (steps.MADE_ANEW,)
    with held.active(), anew.active():
        assert all(torch.equal(a, b) for a, b in zip(held.forward(), anew.forward(), strict=True))
    held.forward()
    with pytest.raises(AssertionError):
        anew.forward()
    assert "flash" not in measures.verified(anew)


def test_graphs_are_refused_where_they_cannot_be() -> None:
    reasons = {p.refused for p in planned(operator="xattention", cuda_graph=True) if p.case.execution == "graph"}
    assert reasons == {"CUDA graphs exist on CUDA only"}
    _, engine = choice.parted(case("xattention"))
    on_cuda = replace(case("xattention"), device="cuda:0", execution="graph", dtype="bf16")
    assert "depends on the data" in (choice.beyond_execution(engine, on_cuda) or "")


def test_kv_heads_divide_heads() -> None:
    with pytest.raises(UsageError, match="does not divide"):
        planned(kv_heads="3")
    (one,) = {p.case.option("kv_heads") for p in planned(kv_heads="1", operator="flash")}
    assert one == 1


# --- what is measured -------------------------------------------------------------------------------------------------


def test_what_ran_is_named_and_anything_else_fails() -> None:
    names = Counter({"aten::_scaled_dot_product_flash_attention_for_cpu": 1, "aten::bmm": 2})
    assert measures.judged(names, None, FLASH_OPS, FLASH_KERNELS) == "flash_attention_for_cpu ×1"
    with pytest.raises(WrongKernel, match="instead of what it claims"):
        measures.judged(Counter({"aten::_scaled_dot_product_attention_math": 1}), None, FLASH_OPS, FLASH_KERNELS)
    with pytest.raises(WrongKernel, match="instead of what it claims"):
        measures.judged(names, None, (), "")
    with pytest.raises(WrongKernel, match="none of"):
        measures.judged(Counter({"aten::bmm": 2}), None, FLASH_OPS, FLASH_KERNELS)
    with pytest.raises(WrongKernel, match="no device kernel matches"):
        measures.judged(names, Counter({"ampere_gemm": 1}), FLASH_OPS, FLASH_KERNELS)
    device = Counter({"void pytorch_flash::flash_fwd_kernel<...>": 1})
    assert measures.judged(names, device, FLASH_OPS, FLASH_KERNELS) == "flash_fwd_kernel"


def test_flex_that_fell_back_to_its_eager_form_fails() -> None:
    compiled = Counter({"Torch-Compiled Region: 0/0": 1})
    assert measures.judged(compiled, None, flex.COMPILED, "") == "compiled flex_attention ×1"
    q = torch.randn(1, 1, 8, 16)
    with torch.profiler.profile() as recorded:
        flex.flex_attention(q, q, q)
    eager = compiled + Counter(e.name for e in recorded.events())
    with pytest.raises(WrongKernel, match="ran eagerly"):
        measures.judged(eager, None, flex.COMPILED, "")


def test_gradients_must_run_on_the_kernel_of_the_forward() -> None:
    op = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert measures.judged(Counter({op: 1, f"{op}_backward": 1}), None, FLASH_OPS, "", backward=True)
    with pytest.raises(WrongKernel, match="gradients"):
        measures.judged(Counter({op: 1}), None, FLASH_OPS, "", backward=True)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("operator", ["flash", "softmax", "linear"])
def test_steps_are_verified_as_they_are_timed(operator: str, backward: bool) -> None:
    one = case(operator)
    one = one.with_options(**dict(one.options), **({"backward": True} if backward else {}))
    step = steps.step_of(one, steps.subject_of(one))
    told = measures.verified(step)
    assert told.startswith({"flash": "flash_attention_for_cpu", "softmax": "softmax", "linear": "bmm"}[operator])
    with step.active():
        first, second = step.forward(), step.forward()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not backward or len(first) == 3


def test_errors_are_relative_to_the_definition_and_to_full_attention() -> None:
    found = {}
    for operator in ("flash", "sliding", "linear"):
        one = case(operator)
        step = steps.step_of(one, steps.subject_of(one))
        found[operator] = measures.ErrorProbe().measure(step)
    assert found["flash"][0].samples[0] < 1e-6 and found["flash"][1].samples[0] < 1e-6
    assert found["sliding"][0].samples[0] < 1e-6 < 1e-2 < found["sliding"][1].samples[0]
    assert not found["linear"][1].samples and "trained" in (found["linear"][1].reason or "")
    assert measures.distance(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0]).double()) == pytest.approx(4 / 3)


def test_errors_that_would_need_too_much_memory_are_missing_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measures.MOST_SCORES, "cpu", 100)
    one = case()
    own, _ = measures.ErrorProbe().measure(steps.step_of(one, steps.subject_of(one)))
    assert not own.samples and "several matrices" in (own.reason or "")


def test_an_output_that_is_not_finite_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    one = case()
    subject = steps.subject_of(one)
    broken = replace(subject, inputs=(subject.inputs[0] * math.nan, *subject.inputs[1:]))
    with pytest.raises(NotFinite):
        measures.ErrorProbe().measure(steps.step_of(one, broken))


def test_rates_are_the_counts_over_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "ceilings", lambda device, dtype: (1e9, 1e9))
    one = case("softmax")
    found, words = measures.derived(SimpleNamespace(case=one), 2.0)
    values = {m.metric: m.samples[0] for m in found}
    flops = 2 * 2 * 64 * 64 * 2 * 16
    assert values["tflops"] == pytest.approx(flops / 2e-3 / 1e12)
    assert values["share_of_compute"] == pytest.approx(100 * flops / 2e-3 / 1e9)
    moved = 4 * (2 * 2 * 64 * 16 * 2 + 4 * 2 * 64 * 64)
    assert values["share_of_bandwidth"] == pytest.approx(100 * moved / 2e-3 / 1e9)
    assert words == []
    _, words = measures.derived(SimpleNamespace(case=one), 1e-3)
    assert "above" in words[0]


def test_half_of_the_tokens_is_what_the_oracle_would_keep() -> None:
    half = replace(case(), pruning="oracle", keep=0.5)
    step = steps.step_of(half, steps.subject_of(half))
    assert step.subject.inputs[0].shape == (1, 2, 32, 16)
    assert measures.macs(half) == 2 * 32 * 32 * 2 * 16


def test_inputs_are_those_of_the_case_and_alike_for_all_of_a_group() -> None:
    one, other = case("flash"), case("softmax")
    assert one.group == other.group != replace(one, input="gaussian").group
    first, second = steps.subject_of(one).inputs, steps.subject_of(other).inputs
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- break-even -------------------------------------------------------------------------------------------------------


def test_crossings_are_interpolated_on_logarithmic_scales() -> None:
    assert crossing([(256, 1.5), (512, 2.0)]) == Crossing("always")
    assert crossing([(256, 1.5), (512, 0.9)]) == crossing([]) == Crossing("never")
    found = crossing([(256, 0.25), (1024, 0.5), (4096, 2.0)])
    assert found.word == "from" and found.between == (1024, 4096) and found.at == pytest.approx(2048)
    assert crossing([(1, 2.0), (2, 0.5), (4, 2.0)]).between == (2, 4)


def run_of(curves: dict[str, dict[int, float]]) -> Run:
    base = case()
    records = tuple(
        Record(
            replace(base, attention=name, length=n),
            "ok",
            tokens=(n,),
            rounds=8,
            measurements=(OVER_FLASH.of(*[ratio * (0.9965 + 0.001 * i) for i in range(8)]),),
        )
        for name, curve in curves.items()
        for n, ratio in curve.items()
    )
    return Run(CPU, {}, tuple(r.case for r in records), records)


def test_the_break_even_table_and_its_chart() -> None:
    run = run_of({"softmax": {256: 0.6, 1024: 0.6}, "linear": {256: 0.6, 1024: 2.1}, "sliding": {256: 1.1, 1024: 4.5}})
    (sheet,) = crossings(run)
    cells = {c.title: [cell.line for cell in c.cells] for c in sheet.columns}
    assert cells["operator"] == ["sliding", "linear", "softmax"]
    assert cells["faster from"][0] == "256 or fewer" and cells["faster from"][2] == "–"
    assert cells["faster from"][1].endswith("(256–1024)")
    assert cells["chart"] == ["▅▇", "▄▆", "▄▄"]
    assert list(cells)[-2:] == ["256", "1024"]
    assert crossings(run_of({"softmax": {256: 0.5}})) == []
    (sheet,) = crossings(run_of({"mqa": {256: 1.0, 1024: 1.0}}))
    assert sheet.columns[1].cells[0].text == "–", "an interval that holds 1 shows nothing"
    assert len(sheets_of(run)) == 3


# --- the command ------------------------------------------------------------------------------------------------------

Repshift = Callable[..., tuple[int, str, str]]


@pytest.fixture
def repshift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Repshift:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "220")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(list(arguments), debug=False)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


TINY = ("--tokens", "32,64", "--heads", "2", "--head-dim", "16", "--rounds", "6", "--seed", "1")


@pytest.mark.slow
def test_from_options_to_run_file_table_and_comparison(repshift: Repshift) -> None:
    code, out, err = repshift("operators", *TINY, "--operator", "sliding,decode", "--causal", "--out", "a.json")
    assert code == 0, err
    assert "attention operators · causal · 32 tokens · 2 heads of 16" in out
    assert "break-even vs flash, by tokens · causal" in out
    run = store.load(Path("a.json"))
    assert {r.status for r in run.records} == {"ok"}
    assert {r.kernel for r in run.records if r.case.attention == "flash"} == {"flash_attention_for_cpu ×1"}
    names = {m.metric for r in run.records for m in r.measurements}
    assert {"latency", "speedup_vs_flash", "tflops", "err_own", "err_full", "memory_peak_allocated", "hbm"} <= names
    assert {r.case.model for r in run.records} == {OPERATORS}

    assert "vs flash" in repshift("show", "a.json")[1]
    assert repshift("show", "a.json", "--csv", "-")[1].count("\n") == 1 + len(run.records)
    code, out, _ = repshift("compare", "a.json", "a.json", "--metric", "latency")
    assert code == 0 and "sliding 64 tokens" in out

    shorter = replace(run, records=run.records[:-1])
    store.create(Path("a.json"), shorter)
    code, _, err = repshift("operators", "--resume", "a.json")
    assert code == 0, err
    assert {r.case for r in store.load(Path("a.json")).records} == set(run.planned)


@pytest.mark.slow
def test_backward_and_captured_inputs(repshift: Repshift) -> None:
    code, out, err = repshift("operators", *TINY, "--operator", "softmax", "--backward", "--causal", "--json", "b.json")
    assert code == 0, err
    assert "backward pass · causal" in out and "decode" not in out
    captured = ("--input", "captured", "--model", "vit_t", "--layer", "2", "--no-causal", "--rounds", "2")
    code, out, err = repshift("operators", *captured, "--operator", "xattention", "--tokens", "64")
    assert code == 0, err
    assert "64 tokens · 3 heads of 64" in out and "input of vit_t layer 2" in out
    code, _, err = repshift("operators", *captured[:4], "--layer", "99")
    assert code == 2 and "no attention call number 99" in err


def test_an_operator_is_profiled_as_a_model_is(repshift: Repshift) -> None:
    asked = ("profile", "--operator", "sliding,decode-gqa", "--tokens", "64", "--heads", "2", "--head-dim", "16")
    code, out, err = repshift(*asked, "--causal", "--steps", "1", "--summary", "p.json", "--trace", "t.json")
    assert code == 0, err
    assert "attention operators · causal · 64 tokens · 2 heads of 16" in out and "Perfetto" not in out
    found = store.load_any(Path("p.json"))
    assert isinstance(found, ProfileRun)
    names = [b.case.attention for b in found.breakdowns if b.case]
    assert names == ["sliding", "decode_gqa", "decode_gqa:split"], "and no flash beside them"
    sliding, decode, _ = found.breakdowns
    assert "bmm" in str(sliding.kernel) and {op.name for op in sliding.ops} >= {"aten::bmm", "aten::_softmax"}
    assert decode.kernel == "flash_attention_for_cpu ×1"
    assert len(json.loads(Path("t.json").read_text())["traceEvents"]) > 10
    code, again, _ = repshift("profile", "--read", "t.json", "--by", "op")
    assert code == 0 and "bmm" in again
    for wrong, words in (
        (("--heads", "2"), "--heads goes with --operator"),
        (("--operator", "flash", "--keep", "0.5"), "leave out --keep"),
        (("--operator", "slidin"), "did you mean sliding"),
        (("--operator", "flash", "--read", "t.json"), "leave out --operator"),
    ):
        code, _, err = repshift("profile", *wrong)
        assert code == 2 and words in err, err


def test_the_list_has_every_operator_with_its_class_and_paper(repshift: Repshift) -> None:
    code, out, _ = repshift("operators", "--list")
    assert code == 0
    text = " ".join(out.split())
    for part in registry.parts("operators").values():
        assert part.name in text and part.constants["PAPER"] in text
    assert "not here: exists on CUDA only" in text


def test_a_dry_run_measures_nothing(repshift: Repshift) -> None:
    code, out, _ = repshift("operators", *TINY, "--operator", "flash,softmax", "--dry-run")
    assert code == 0 and "12 cases to measure, 0 refused" in out
    assert not Path("repshift-runs").exists()


def test_an_operator_that_lacks_something_is_refused_with_what(monkeypatch: pytest.MonkeyPatch) -> None:
    part = registry.find("operators", "softmax")
    module = registry.load(part)
    monkeypatch.delattr(module, "reference")
    with pytest.raises(RepshiftError, match="lacks reference"):
        registry.load(part)


def test_listing_the_command_imports_no_torch() -> None:
    code = "import sys; from repshift_cli.commands import operators; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
