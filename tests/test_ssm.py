"""State space models through the hooks against plain forwards: Vision Mamba, and transformers' Mamba and Mamba-2."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_vim import plain_mixer, rms_norm, two_streams
from tiny import case, one_thread, pixels, roughen  # noqa: F401
from torch import Tensor, nn
from transformers.models.mamba import modeling_mamba

from repshift_cli import cli, registry
from repshift_cli.benchmark import builder
from repshift_cli.kernels import scan
from repshift_cli.models import mamba, vim
from repshift_cli.models.base.vim import VisionMamba, class_position
from repshift_cli.models.discovery.blocks import NoSites, find_sites
from repshift_cli.probes.base.traffic_model import stored_bytes
from repshift_cli.probes.hbm import modelled
from repshift_cli.probes.macs import MacsProbe
from repshift_cli.profiling import digest, recorder
from repshift_cli.records import Case, Subject, UsageError, call, dropped_share, kept, tokens_along
from repshift_cli.records.profile import Breakdown
from repshift_cli.reduction import oracle, repshift, stride
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.selection import fixed, scored

Score = Callable[[Tensor, Tensor], Tensor]
"""(x, the branch's output), each (B, N, C) -> (B, N), the highest kept."""

SCORES: dict[tuple[str, str | None], Score] = {
    ("attention", "paper"): lambda x, y: (y - x).square().sum(-1).sqrt(),
    ("attention", "update"): lambda x, y: y.square().sum(-1).sqrt(),
    ("block", None): lambda x, y: ((x + y) - x).square().sum(-1).sqrt(),
}
SCHEDULES = [(0.8, (1, 3)), (0.5, (2, 3))]
BATCH = 3


def asked(keep: float, layers: tuple[int, ...], operation: str, form: str | None, **changes: Any) -> Case:
    return case(
        attention="none",
        pruning="repshift",
        keep=keep,
        layers=layers,
        operation=operation,
        form=form,
        distance="l2",
        **changes,
    )


def best(scores: Tensor, keep: float) -> list[list[int]]:
    """The places of the highest scores (B, n), in their order."""
    rows = scores.tolist()
    count = kept(scores.shape[1], keep)
    return [sorted(sorted(range(len(row)), key=lambda i, row=row: -row[i])[:count]) for row in rows]


def rows_of(x: Tensor, places: list[list[int]]) -> Tensor:
    return torch.stack([row[i] for row, i in zip(x, places, strict=True)])


# --- Vision Mamba -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[40, 48], ids=["25 patches", "36 patches"])
def small_vim(request: pytest.FixtureRequest) -> tuple[VisionMamba, Subject]:
    torch.manual_seed(0)
    size = request.param
    module = roughen(VisionMamba(16, 4, image_size=size, patch_size=8, states=4, classes=7)).double()
    assert isinstance(module, VisionMamba)
    return module, vim_subject(module, {"pixel_values": pixels(BATCH, 3, size, size)})


def vim_subject(module: VisionMamba, inputs: Any) -> Subject:
    sites = find_sites(module, inputs, scanning=True).sites
    return Subject(module, inputs, (inputs,), sites, 0, 0, "img", vim.itself, vim.itself, central=1)


def middle_out(scores: Tensor, keep: float) -> list[list[int]]:
    """The patches with the highest scores, and the class token in their middle again."""
    middle = (scores.shape[1] - 1) // 2
    patches = [i for i in range(scores.shape[1]) if i != middle]
    chosen = [[patches[i] for i in row] for row in best(scores[:, patches], keep)]
    return [[*row[: len(row) // 2], middle, *row[len(row) // 2 :]] for row in chosen]


def plain_vim(module: VisionMamba, images: Tensor, score: Score, keep: float, layers: tuple[int, ...]) -> Tensor:
    x = module.embed(images)
    for layer, block in enumerate(module.layers, start=1):
        y = plain_mixer(block.mixer, rms_norm(block.norm, x))
        out = x + y
        x = rows_of(out, middle_out(score(x, y), keep)) if layer in layers else out
    return rms_norm(module.norm_f, x)[:, (x.shape[1] - 1) // 2] @ module.head.weight.T + module.head.bias


@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
@pytest.mark.parametrize(("operation", "form"), SCORES)
def test_vim_is_the_plain_forward(
    small_vim: tuple[VisionMamba, Subject], keep: float, layers: tuple[int, ...], operation: str, form: str | None
) -> None:
    module, subject = small_vim
    images = subject.inputs["pixel_values"]
    with torch.inference_mode():
        expected = plain_vim(module, images, SCORES[operation, form], keep, layers)
        before = module(images)
        with pruned(subject, repshift, asked(keep, layers, operation, form)):
            logits = module(images)
        assert torch.equal(module(images), before)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(logits, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
def test_hidden_state_and_residual_are_cut_alike(
    small_vim: tuple[VisionMamba, Subject], keep: float, layers: tuple[int, ...]
) -> None:
    """The official two streams; the mixer's output alone tells the update's length."""
    module, subject = small_vim
    images = subject.inputs["pixel_values"]

    def cut(layer: int, hidden: Tensor) -> Tensor | None:
        return torch.tensor(middle_out(hidden.norm(dim=-1), keep)) if layer in layers else None

    with torch.inference_mode():
        expected = two_streams(module, images, cut)
        with pruned(subject, repshift, asked(keep, layers, "attention", "update")):
            torch.testing.assert_close(module(images), expected, rtol=1e-10, atol=1e-10)


def test_keep_1_is_the_untouched_vim(small_vim: tuple[VisionMamba, Subject]) -> None:
    module, subject = small_vim
    with torch.inference_mode(), pruned(subject, repshift, asked(1.0, (1, 2), "attention", "paper")):
        inside = module(**subject.inputs)
    with torch.inference_mode():
        assert torch.equal(inside, module(**subject.inputs))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.7, 0.8, 0.9])
def test_the_class_token_stands_where_the_model_reads_it(small_vim: tuple[VisionMamba, Subject], keep: float) -> None:
    """Of 1 to 41 patches, of odd and even numbers that stay."""
    subject, parities = small_vim[1], set()
    for free in range(1, 42):
        tokens, stays = free + 1, kept(free, keep)
        rows = torch.arange(tokens).expand(2, -1).unsqueeze(-1)
        scores = torch.randn(2, tokens, generator=torch.Generator().manual_seed(free))
        cuts = [scored(scores, subject, tokens, dropped_share(keep))]
        cuts += [fixed(m.choose(free, stays), subject, tokens) for m in (oracle, stride)]
        for cut in cuts:
            left = cut.rows(rows)
            assert left.shape[1] == stays + 1
            assert (left[:, class_position(stays + 1), 0] == class_position(tokens)).all()
            assert (left.diff(dim=1) > 0).all() or (left.sort(dim=1).values.diff(dim=1) > 0).all()
        parities.add(stays % 2)
    assert parities == {0, 1}


@pytest.mark.slow
def test_the_papers_macs_of_vim_t() -> None:
    """1.5 -> 1.3 G (Table 7), cut to 0.8 after blocks 10 and 20."""
    given = case(model="vim_t", image_size=224, batch=1, attention="none")
    pruned_case = asked(0.8, (10, 20), "attention", "paper", model="vim_t", image_size=224, batch=1)
    facts = vim.facts("vim_t")
    assert tokens_along(facts, 0.8, (10, 20)) == (197, 158, 127)
    shop = builder.StepBuilder("cpu")
    counted = [MacsProbe().measure(shop.prepare(c))[0].samples[0] for c in (given, pruned_case)]
    assert counted == [1_525_108_224, 1_313_109_504]


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        (vim, {"image_size": 100}, "no multiple of the patch size 16"),
        (vim, {"frames": 4}, "takes images"),
        (mamba, {"image_size": 64}, "use --tokens"),
        (mamba, {"frames": 4}, "use --tokens"),
        (mamba, {"length": 1}, "give 2 or more"),
        (mamba, {"weights": "x.safetensors"}, "random weights only"),
    ],
)
def test_what_cannot_be_is_said(family: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        family.facts(next(iter(family.ALIASES)), **options)


# --- Mamba and Mamba-2 ------------------------------------------------------------------------------------------------


@pytest.fixture
def shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mamba.ALIASES, "mamba_130m", {"width": 64, "depth": 3})
    monkeypatch.setitem(mamba.ALIASES, "mamba2_130m", {"width": 64, "depth": 3, "heads": 2})


@pytest.fixture(params=["mamba_130m", "mamba2_130m"])
def language(request: pytest.FixtureRequest, shrunk: None) -> Subject:
    subject = mamba.build(case(model=request.param, length=21, batch=BATCH))
    roughen(subject.module).double()
    for block in subject.module.backbone.layers:
        block.residual_in_fp32 = False
    return subject


def plain_language(subject: Subject, score: Score, keep: float, layers: tuple[int, ...]) -> Tensor:
    """What the head reads, (B, C): it gives its logits in fp32."""
    body = subject.module.backbone
    x = body.embeddings(subject.inputs["input_ids"])
    for layer, block in enumerate(body.layers, start=1):
        y = block.mixer(block.norm(x))
        out = x + y
        if layer in layers:
            places = best(score(x, y)[:, :-1], keep)
            out = rows_of(out, [[*row, out.shape[1] - 1] for row in places])
        x = out
    return body.norm_f(x)[:, -1]


@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
@pytest.mark.parametrize(("operation", "form"), SCORES)
def test_mamba_is_the_plain_forward(
    language: Subject, keep: float, layers: tuple[int, ...], operation: str, form: str | None
) -> None:
    read: list[Tensor] = []
    language.module.lm_head.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    with torch.inference_mode(), language.context():
        expected = plain_language(language, SCORES[operation, form], keep, layers)
        before = call(language.module, language.inputs).logits
        with pruned(language, repshift, asked(keep, layers, operation, form)):
            logits = language.logits(call(language.module, language.inputs))
        assert torch.equal(call(language.module, language.inputs).logits, before)
        through_head = (expected @ language.module.lm_head.weight.T).float()
    assert logits.shape == (BATCH, language.module.config.vocab_size)
    assert read[1].dtype == torch.float64
    torch.testing.assert_close(read[1][:, -1], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits, through_head, rtol=1e-6, atol=1e-5)
    assert not torch.allclose(logits, before[:, -1], rtol=1e-3, atol=1e-3)


def test_our_scan_gives_what_transformers_loop_gives(shrunk: None) -> None:
    subject = mamba.build(case(model="mamba_130m", length=37, batch=2))
    roughen(subject.module)
    theirs = modeling_mamba.mamba_selective_scan
    with torch.inference_mode():
        expected = call(subject.module, subject.inputs).logits
        with pytest.raises(RuntimeError, match="midway"), subject.context():
            assert modeling_mamba.mamba_selective_scan is not theirs
            out = call(subject.module, subject.inputs).logits
            raise RuntimeError("midway")
    assert modeling_mamba.mamba_selective_scan is theirs
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_our_scan_takes_no_cache(shrunk: None) -> None:
    subject = mamba.build(case(model="mamba_130m", length=9, batch=2))
    with torch.inference_mode(), subject.context(), pytest.raises(UsageError, match="use_cache=False"):
        call(subject.module, {**subject.inputs, "use_cache": True})


def test_a_step_runs_within_the_subjects_context(shrunk: None) -> None:
    step = builder.lone_step(case(model="mamba_130m", length=9, batch=2, attention="none"))
    theirs = modeling_mamba.mamba_selective_scan
    with step.active():
        assert modeling_mamba.mamba_selective_scan is mamba._scan
    assert modeling_mamba.mamba_selective_scan is theirs


def test_a_scan_that_cannot_be_replaced_is_named(shrunk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_mamba.MambaMixer, "forward", lambda self, hidden_states, **_: hidden_states)
    subject = mamba.build(case(model="mamba_130m", length=9, batch=2))
    assert subject.warnings[-1].startswith("scan: transformers' own (a Python loop")
    theirs = modeling_mamba.mamba_selective_scan
    with subject.context():
        assert modeling_mamba.mamba_selective_scan is theirs


@pytest.mark.parametrize(("name", "said"), [("mamba_130m", "plain torch (mamba-ssm is"), ("mamba2_130m", "chunks of")])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_record_says_which_scan_ran(shrunk: None, name: str, said: str, dtype: str) -> None:
    """In bf16 the residual is held in fp32."""
    subject = mamba.build(case(model=name, length=9, batch=2, dtype=dtype))
    assert said in subject.warnings[-1]
    assert (subject.tokens, subject.suffix, subject.protected) == (8, 1, 1)
    site = subject.sites[0]
    assert (type(site.attention).__name__[-5:], site.middle, site.mlp) == ("Mixer", None, None)


def test_macs_of_mamba_go_down(shrunk: None) -> None:
    """Per token: projections, convolution and 4 per state; the head reads one token."""
    inner, rank, states = 128, 4, 16
    per_token = (
        64 * 2 * inner + 4 * inner + inner * (rank + 2 * states) + rank * inner + 4 * inner * states + inner * 64
    )
    padding = 3 * 4 * inner  # transformers convolves three tokens more and drops them
    shared = {"model": "mamba_130m", "length": 21, "batch": 2}
    cases = [case(**shared, attention="none"), asked(0.5, (1,), "attention", "paper", **shared)]
    counted = [MacsProbe().measure(builder.lone_step(c))[0].samples[0] for c in cases]
    expected = [sum(lengths) * per_token + 3 * padding + 64 * 50280 for lengths in ((21, 21, 21), (21, 11, 11))]
    assert counted == expected


# --- blocks of a single branch ----------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(tiny.WIDTH), inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


def test_blocks_that_are_half_of_one_are_refused() -> None:
    """Attention and MLP by turns in a flat list: what is one branch in the first is another in the second."""
    turns: Iterator[nn.Module] = iter([tiny.Attention(tiny.WIDTH, 4), nn.Linear(tiny.WIDTH, tiny.WIDTH)] * 2)
    model = tiny.roughen(tiny.PlainTransformer(lambda: Residual(next(turns)), depth=4))
    with pytest.raises(NoSites, match="looked at Residual"):
        find_sites(model, (torch.randn(2, 12, tiny.WIDTH),))


# --- probes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def vim_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(vim.ALIASES, "vim_t", {"width": 32, "depth": 2})
    return builder.lone_step(asked(0.5, (1,), "attention", "paper", model="vim_t", image_size=64, batch=2))


def test_modelled_bytes_are_those_of_the_scan_that_runs(vim_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step in plain torch; of a fused scan its inputs and its output."""
    plain = modelled(vim_step)[0]
    assert "repshift.selective_scan" not in plain.parts["operator"]
    given: list[Any] = []
    monkeypatch.setattr("repshift_cli.probes.base.traffic_model.scan_in_use", lambda u: given.append(u) or "mamba-ssm")
    fused = modelled(vim_step)[0]
    moved = 0
    for u in given:
        moved += 2 * u.nbytes + stored_bytes([u, u.clone()])  # u, delta, z and y
        moved += 2 * 4 * u.shape[0] * 16 * u.shape[2] + 4 * u.shape[1] * 16 + 2 * 4 * u.shape[1]  # B, C, A, D, the bias
    assert len(given) == 4
    assert fused.parts["operator"]["repshift.selective_scan"] == moved
    assert plain.samples[0] > fused.samples[0]


def test_the_profile_names_the_mixer(vim_step: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    recorder.record(vim_step, path, 1)
    found, _ = digest.digest(Breakdown("none+repshift", vim_step.case), path)
    for layer in (1, 2):
        parts = {p.part for p in found.parts if p.layer == layer}
        assert parts >= {"mixer", "projection", "norm"}
        assert not parts & {"attention", "mlp"}
        assert (parts >= {"score", "select", "cut"}) == (layer == 1)


def test_torch_compile_knows_the_shape_of_a_scan() -> None:
    u = torch.empty(2, 8, 5, device="meta").transpose(0, 1).contiguous().transpose(0, 1)
    given = [torch.empty(*s, device="meta") for s in ((2, 8, 5), (8, 4), (2, 4, 5), (2, 4, 5))]
    out = scan.selective_scan(u, *given)
    assert (out.shape, out.is_contiguous()) == (u.shape, True)


# --- the command line -------------------------------------------------------------------------------------------------


def test_back_ends_are_one_where_there_is_no_attention(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(vim.ALIASES, "vim_t", {"width": 32, "depth": 2})
    monkeypatch.chdir(tmp_path)
    options = ["--model", "vim_t", "--image-size", "64", "--variant", "flash,flash+repshift,vanilla"]
    assert cli.run(["bench", *options, "--layers", "1", "--rounds", "1", "--json", "run.json"], debug=False) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert [(r["case"]["attention"], r["case"]["pruning"]) for r in run["records"]] == [
        ("none", "none"),
        ("none", "repshift"),
    ]
    for record in run["records"]:
        assert (record["status"], record["kernel"]) == ("ok", "no attention")
        assert any(w.startswith("scan: plain torch") for w in record["warnings"])
    assert run["records"][1]["tokens"] == [17, 11]
    assert "vs unpruned" in capsys.readouterr().out


def test_the_families_are_listed() -> None:
    assert {"vim_t", "vim_s", "mamba_130m", "mamba2_130m"} <= set(registry.aliases())
