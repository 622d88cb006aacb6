"""Compiled forwards: code of their own for every case, breaks counted; and nothing in pruning waits for the device."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import FAMILIES, case, one_thread  # noqa: F401
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from repshift_cli import registry
from repshift_cli.benchmark import builder, execution
from repshift_cli.benchmark.verification import WrongKernel, verify
from repshift_cli.cli import app
from repshift_cli.records import Case, Step, Subject

METHODS = ("repshift", "lowest", "random", "stride", "oracle")
RIVALS = ("cls_attention", "column_attention", "dart", "divprune", "evit", "mctf", "norm", "pitome", "tome", "vid_tldr")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its code generator: the same capture, guards and breaks, in a moment."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def compiled(given: Case, subject: Subject) -> Step:
    return execution.compiled(builder.eager_step(given, subject))


def subject_of(family: str) -> Subject:
    plain = FAMILIES[family]()
    return tiny.subject(plain.module, plain.inputs)


def output(step: Step, compared: Any) -> Tensor:
    with step.active():
        return compared(step.forward()).clone()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "videomae", "torch_encoder"])
def test_interleaved_cases_keep_code_of_their_own(family: str, quick: None) -> None:
    plain = FAMILIES[family]()
    subject = tiny.subject(plain.module, plain.inputs)
    cases = [
        case(attention="vanilla"),
        case(attention="flash"),
        case(attention="flash", pruning="repshift", keep=0.5, layers=(1, 2)),
        case(attention="flash", pruning="repshift", keep=0.5, layers=(2,)),
        case(attention="flash", pruning="lowest", keep=0.5, layers=(2,)),
        case(attention="flash", pruning="oracle", keep=0.7, layers=(1,)),
    ]
    steps = [compiled(given, subject) for given in cases]
    expected = [output(step.operators, plain.compared) for step in steps]
    for _ in range(2):
        for step, wanted in zip(steps, expected, strict=True):
            torch.testing.assert_close(output(step, plain.compared), wanted, rtol=0, atol=1e-12)
    assert not torch.equal(expected[2], expected[3])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["vit", "torch_encoder"])
def test_pruning_breaks_no_graph(family: str, method: str, quick: None) -> None:
    step = compiled(case(attention="flash", pruning=method, keep=0.5, layers=(1, 2)), subject_of(family))
    breaks = {m.metric: m.samples for m in step.built}
    assert breaks["graph_breaks"] == (0.0,)
    assert breaks["compile_time"][0] > 0


class Broken(tiny.PreNorm):
    """A block in which torch.compile cannot go on."""

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return super().forward(x)


@pytest.mark.slow
def test_breaks_are_counted_and_cases_kept_apart_behind_them(quick: None) -> None:
    model = tiny.roughen(tiny.PlainTransformer(Broken)).double()
    inputs = (tiny.pixels(2, 12, tiny.WIDTH),)
    subject = tiny.subject(model, inputs)
    cases = [case(), case(pruning="repshift", keep=0.5, layers=(1,)), case(pruning="lowest", keep=0.5, layers=(1,))]
    if "isolate_recompiles" not in execution.inspect.signature(torch.compile).parameters:
        with pytest.raises(Exception, match="graph_break"):
            compiled(cases[0], subject)
        return
    steps = [compiled(given, subject) for given in cases]
    assert [step.built[1].samples[0] for step in steps] == [steps[0].built[1].samples[0]] * 3
    assert steps[0].built[1].samples[0] >= 1
    for step in steps:
        torch.testing.assert_close(output(step, torch.clone), output(step.operators, torch.clone), rtol=0, atol=1e-12)


def test_compiling_again_within_the_measurements_is_an_error(quick: None) -> None:
    step = compiled(case(), subject_of("plain_torch"))
    longer = (tiny.pixels(tiny.BATCH, 14, tiny.WIDTH),)
    with step.active(), pytest.raises(Exception, match=r"(?i)recompil"):
        step.run(longer)


def test_compiled_attention_is_verified() -> None:
    """The calls of the eager twin, the operators of the compiled forward."""
    step = builder.eager_step(case(attention="flash"), subject_of("vit"))
    other = builder.eager_step(case(attention="math"), subject_of("vit"))
    flash = builder._backend("flash")

    def pretended(forward: Step) -> Step:
        return Step(
            case(attention="flash", execution="compile"),
            step.subject,
            forward.active,
            forward.forward,
            forward.run,
            eager=step,
        )

    assert verify(pretended(step), flash.OPS, "") == f"flash_attention_for_cpu ×{tiny.DEPTH}"
    with pytest.raises(WrongKernel, match="attention_math instead"):
        verify(pretended(other), flash.OPS, "")
    vanilla = builder._backend("vanilla")
    with pytest.raises(WrongKernel, match="flash_attention_for_cpu instead"):
        verify(pretended(step), vanilla.OPS, "")


@pytest.mark.slow
def test_bench_measures_every_case_compiled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    given = ["bench", "--model", "tiny:small_model", "--keep", "0.5", "--layers", "1", "--rounds", "3", "--hbm", "off"]
    done = CliRunner().invoke(app, [*given, "--variant", "flash,flash+repshift", "--compile", "--json", "-"])
    assert done.exit_code == 0, done.output
    records = json.loads(done.stdout)["records"]
    assert [r["case"]["execution"] for r in records] == ["eager", "compile"] * 2
    for record in records:
        found = {m["metric"]: m for m in record["measurements"]}
        assert ("compile_time" in found) == (record["case"]["execution"] == "compile")
        assert found["speedup_vs_flash"]["samples"] or record["case"]["pruning"] == "none"
        assert found.get("graph_breaks", {"samples": [0.0]})["samples"] == [0.0]


def test_what_the_record_says_of_scores_and_paths() -> None:
    plain = FAMILIES["vit"]()
    given = case(attention="flash", pruning="repshift", keep=0.5, layers=(1, 2), form="update")
    subject = tiny.subject(plain.module, plain.inputs)
    paths, words = builder._looked(builder.eager_step(given, subject))
    assert (paths, words) == (("cut:torch", "score:torch", "select:torch"), ())
    broken = subject.sites[1].mlp.register_forward_hook(lambda m, a, o: o.index_fill(1, torch.tensor([3]), torch.inf))
    paths, words = builder._looked(builder.eager_step(given, subject))
    broken.remove()
    assert words == ("3 scores after block 2 are not finite: such tokens count as highest and stay",)


# --- nothing waits for the device -------------------------------------------------------------------------------------

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal", "item")


class Waits(TorchDispatchMode):
    """Raises where an operator would make the host wait for the device's data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if masks or name.startswith(WAITING):
            raise AssertionError(f"aten::{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [lambda t: t[t > 0], lambda t: t.sum().item(), lambda t: t.nonzero()])
def test_waiting_is_noticed(rows: Any) -> None:
    with pytest.raises(AssertionError, match="waits for the device"), Waits():
        rows(torch.ones(3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_never_waits_for_the_device(family: str, method: str) -> None:
    given = case(attention="flash", pruning=method, keep=0.5, layers=(1, 2))
    options: list[dict[str, str]] = [{}]
    if method == "repshift":
        options = [
            {"operation": o, "distance": d, "form": f}
            for o in ("mlp", "attention", "block")
            for d in ("l2", "l1", "cosine")
            for f in ("paper", "update")
        ]
    subject = subject_of(family)
    for chosen in options:
        step = builder.eager_step(given.with_options(**chosen), subject)
        with step.active(), Waits():
            step.forward()


@pytest.mark.parametrize(
    ("method", "attention"), [*((m, "flash") for m in RIVALS), ("tome", "vanilla"), ("mctf", "vanilla")]
)
def test_no_rival_waits_either(method: str, attention: str) -> None:
    """What a CUDA graph holds: no number of rows that hangs on the data, and under vanilla the sizes as a bias."""
    own = {n: o.default for n, o in registry.options_of(registry.find("reduction", method)).items()}
    given = case(attention=attention, pruning=method, keep=0.7, layers=(1, 2)).with_options(**own)
    step = builder.eager_step(given, subject_of("vit"))
    with step.active(), Waits():
        step.forward()
