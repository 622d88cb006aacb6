"""Models that nobody wrote a family for: learnt tokens found by trial, outputs read, refusals that name the way out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_reduction import best, shift
from tiny import WIDTH, case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli.attention import vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.benchmark import builder
from repshift_cli.models import hf, own
from repshift_cli.models.base.outputs import reading_of
from repshift_cli.models.discovery.adapter import Adapter
from repshift_cli.models.discovery.blocks import NoSites
from repshift_cli.models.discovery.located import Located, located
from repshift_cli.probes.fidelity import FidelityProbe
from repshift_cli.records import Case, Subject, UsageError, call
from repshift_cli.reduction import repshift
from repshift_cli.reduction.engine.hooks import pruned

DEPTH = 3
HALF: dict[str, Any] = {"pruning": "repshift", "keep": 0.5, "operation": "mlp", "distance": "l2", "form": "paper"}


class Summarised(nn.Module):
    """Patches of an image and `counts` learnt tokens in front, in the middle and behind; classes from the first."""

    def __init__(self, front: int = 1, middle: int = 0, behind: int = 0, make: Callable[[], nn.Module] = tiny.PreNorm):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 8, 8)
        self.summary, self.query, self.tail = (nn.Parameter(torch.randn(1, n, WIDTH)) for n in (front, middle, behind))
        self.places = nn.Parameter(torch.randn(1, 16 + front + middle + behind, WIDTH))
        self.blocks = nn.ModuleList(make() for _ in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def embed(self, pixels: Tensor) -> Tensor:
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        summary, query, tail = (t.expand(len(x), -1, -1) for t in (self.summary, self.query, self.tail))
        return torch.cat((summary, x[:, :8], query, x[:, 8:], tail), dim=1) + self.places

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Causal(tiny.PreNorm):
    def forward(self, x: Tensor) -> Tensor:
        q = k = v = self.first(x).unflatten(-1, (4, -1)).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.turn(mixed)
        return x + self.feed(self.second(x))

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(WIDTH, WIDTH)
        self.mix = nn.Identity()


class Decoder(nn.Module):
    """Token ids to the logits of every position."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(23, WIDTH)
        self.blocks = nn.ModuleList(Causal() for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 23)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def made(model: nn.Module) -> Any:
    torch.manual_seed(0)
    return tiny.roughen(model).double()


def at(*counts: int) -> Located:
    return located(made(Summarised(*counts)), (tiny.pixels(2, 3, 32, 32),), None)


# --- learnt tokens ----------------------------------------------------------------------------------------------------


def test_a_token_of_any_name_that_comes_from_no_input_is_protected() -> None:
    found = at(2, 0, 1)
    assert (found.prefix, found.suffix, found.free) == (2, 1, 16)
    assert found.warnings[0].startswith("2 leading tokens do not come from the input (summary, tail) and are protected")
    assert found.warnings[1].startswith(
        "1 trailing token does not come from the input (summary, tail) and is protected"
    )


def test_a_learnt_token_in_the_middle_is_named() -> None:
    found = at(0, 2, 0)
    assert (found.prefix, found.suffix, found.free) == (0, 0, 18)
    assert "tokens in the middle do not come from the input (query) and may be dropped, at 9, 10" in found.warnings[0]


def test_where_every_token_comes_from_the_input_nothing_is_said() -> None:
    found = at(0, 0, 0)
    assert (found.prefix, found.free, found.warnings) == (0, 16, ())
    plain = tiny.plain_torch()
    known = located(plain.module, plain.inputs, None)
    assert (known.prefix, known.warnings) == (1, ()), "a class token by its usual name needs no word"


def test_an_adapter_may_let_learnt_tokens_go_but_not_in_silence() -> None:
    adapter = Adapter("blocks", "mix", "second", "feed", prefix=1)
    found = located(made(Summarised(3)), (tiny.pixels(2, 3, 32, 32),), adapter)
    assert found.prefix == 1
    said = "of the 3 leading tokens that do not come from the input (summary), prefix = 1"
    assert any(said in warning for warning in found.warnings)
    freed = Adapter("blocks", "mix", "second", "feed")
    assert located(made(Summarised(3)), (tiny.pixels(2, 3, 32, 32),), freed).prefix == 3


def test_the_trial_leaves_the_parameters_as_they_were() -> None:
    model = made(Summarised())
    before = {name: p.clone() for name, p in model.named_parameters()}
    located(model, (tiny.pixels(2, 3, 32, 32),), None)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# --- outputs ----------------------------------------------------------------------------------------------------------


def read(model: nn.Module, *inputs: Tensor, entering: int = 17, told: str | None = None) -> str:
    return reading_of(model, inputs, entering, told).what


def test_what_a_model_puts_out_is_found_or_told() -> None:
    pixels, hidden = tiny.pixels(2, 3, 32, 32), tiny.pixels(2, 17, WIDTH)
    assert read(made(Summarised()), pixels) == "logits of 5 classes"
    assert read(made(Summarised()), pixels, told="features").startswith("features")
    assert read(made(nn.LayerNorm(WIDTH)), hidden).startswith("features")
    assert read(made(nn.Linear(WIDTH, WIDTH)), hidden).startswith("features"), "a projection tells no classes apart"
    assert read(made(nn.Linear(WIDTH, WIDTH)), hidden[:, 0], told="logits") == f"logits of {WIDTH} classes"
    assert read(made(nn.Linear(WIDTH, 9)), hidden) == "logits of 9 for each token, compared at the last"


def test_your_own_decoder_is_compared_at_its_last_token(own_model: Callable[..., str]) -> None:
    name = own_model("decoder")
    assert own.facts(name).tokens == 19, "the last of 20 stays"
    given = case(model=name, input="own", weights="own", layers=(1,), batch=2, **HALF)
    subject = own.build(given)
    module, ids = subject.module.double(), subject.inputs["ids"]
    x = module.words(ids)
    for layer, block in enumerate(module.blocks, start=1):
        q = block.first(x).unflatten(-1, (4, -1)).transpose(1, 2)
        scores = q @ q.transpose(-1, -2) / (WIDTH / 4) ** 0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        middle = x + block.turn((weights @ q).transpose(1, 2).flatten(2))
        update = block.feed(block.second(middle))
        x = middle + update
        if layer == 1:
            seen = {"resid_mid": middle[:, :-1], "mlp_out": update[:, :-1]}
            stay = [[*best(scores, 0.5), 19] for scores in shift(seen, "mlp", "l2", "paper")]
            x = torch.stack([row[places] for row, places in zip(x, stay, strict=True)])
    expected = module.head(x)[:, -1]
    with torch.inference_mode(), attending(vanilla), pruned(subject, repshift, given):
        torch.testing.assert_close(subject.logits(call(module, subject.inputs)), expected, rtol=0, atol=1e-10)
    assert expected.shape == (2, 23)


def test_your_own_decoder_is_compared_at_every_token_that_both_have_too(own_model: Callable[..., str]) -> None:
    name = own_model("decoder")
    given = case(model=name, input="own", weights="own", layers=(1, 2), batch=2, **HALF)
    step = builder.lone_step(given)
    with torch.inference_mode():
        whole = call(step.subject.module, step.subject.inputs).log_softmax(-1)
        with step.active():
            other = step.forward().log_softmax(-1)
        assert step.kept is not None
        places = step.kept()
        rows = torch.stack([row[p] for row, p in zip(whole, places, strict=True)])
    assert places.shape == (2, 6) and places[:, -1].tolist() == [19, 19], "the last token stays"
    found = {m.metric: m for m in FidelityProbe(step.subject).measure(step)}
    expected = (rows.exp() * (rows - other)).sum(-1).clamp_min(0)
    assert found["fidelity_kl_each"].samples[0] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found["fidelity_kl"].samples[0] == pytest.approx(float(expected[:, -1].mean()), rel=1e-4)
    same = (rows.argmax(-1) == other.argmax(-1)).float()
    assert found["fidelity_top1_each"].samples[0] == pytest.approx(100 * float(same.mean()))
    plain = builder.lone_step(replace(given, pruning="none", keep=1.0, layers=()))
    untouched = {m.metric: m for m in FidelityProbe(plain.subject).measure(plain)}
    assert untouched["fidelity_kl_each"].samples[0] < 1e-6 and untouched["fidelity_top1_each"].samples == (100.0,)
    hidden = {m.metric: m for m in FidelityProbe(step.subject).measure(replace(step, kept=None))}
    assert "eager row" in str(hidden["fidelity_kl_each"].reason)


# --- inputs -----------------------------------------------------------------------------------------------------------

SOURCE = """
import test_located, torch, tiny

def vision():
    return test_located.made(test_located.Summarised()), (tiny.pixels(2, 3, 32, 32),)

def decoder():
    return test_located.made(test_located.Decoder()), {"ids": torch.arange(40).reshape(2, 20) % 23}

def scaled():
    import test_own
    return test_located.made(test_located.Summarised(make=test_own.Scaled)), (tiny.pixels(2, 3, 32, 32),)

class ResNet(torch.nn.Module):
    def forward(self, x):
        return x

def resnet():
    return ResNet(), (tiny.pixels(2, 3, 32, 32),)
"""
MODULE = "located_under_test"


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The name of one of SOURCE's functions, importable."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    own._made.cache_clear()
    yield lambda function: f"{MODULE}:{function}"
    own._made.cache_clear()
    sys.modules.pop(MODULE, None)


def own_case(name: str, **changes: Any) -> Case:
    return case(**{"model": name, "input": "own", "weights": "own", **changes})


def test_a_larger_batch_repeats_your_inputs(own_model: Callable[..., str]) -> None:
    name = own_model("vision")
    two, five = (own.build(own_case(name, batch=n)).inputs[0] for n in (2, 5))
    assert torch.equal(five, two[[0, 1, 0, 1, 0]])
    assert own.build(own_case(name, batch=1)).inputs[0].shape[0] == 1


def test_your_own_classifier_takes_images(own_model: Callable[..., str], tmp_path: Path) -> None:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    name = own_model("vision")
    assert own.facts(name, data=str(tmp_path)).tokens == 16
    subject: Subject = own.build(own_case(name, batch=2, input=str(tmp_path)))
    assert [tuple(i[0].shape) for i in subject.evaluation] == [(2, 3, 32, 32)] * 2
    assert torch.equal(subject.evaluation[1][0][1], subject.evaluation[0][0][0]), "the last batch is filled up"
    assert subject.logits(call(subject.module, subject.inputs)).shape == (2, 5)


# --- ways out ---------------------------------------------------------------------------------------------------------


def test_scaled_branches_come_with_the_adapter_that_would_do(own_model: Callable[..., str], tmp_path: Path) -> None:
    name = own_model("scaled")
    with pytest.raises(NoSites, match="this TOML file as --model would do:") as refusal:
        own.facts(name)
    toml = str(refusal.value).partition("would do:\n")[2]
    (tmp_path / "mine.toml").write_text(toml)
    assert own.facts("mine.toml").operations == ("mlp", "attention", "block")
    at = located(own._made("mine.toml").module, own._made("mine.toml").inputs, own._made("mine.toml").adapter)
    assert at.found.sites[0].attention is own._made("mine.toml").module.blocks[0].mix


def test_an_architecture_that_is_built_in_is_named(own_model: Callable[..., str]) -> None:
    with pytest.raises(NoSites, match="this architecture is built in: --model resnet18, resnet34 or resnet50"):
        own.facts(own_model("resnet"))


@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_first_is_told_the_option(batch: int) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 64), DEPTH, enable_nested_tensor=False)
    with pytest.raises(UsageError, match="build it with batch_first=True"):
        located(made(encoder), (tiny.pixels(12, batch, WIDTH),), None)


def test_a_checkpoint_whose_branches_are_scaled_is_shown_the_way_too(tmp_path: Path) -> None:
    from transformers import BeitConfig, BeitForImageClassification

    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BeitConfig(**shape, image_size=32, patch_size=8, use_relative_position_bias=True)
    BeitForImageClassification(config).save_pretrained(tmp_path)
    given = case(model=f"hf:{tmp_path}", weights=str(tmp_path), image_size=32)
    with pytest.raises(NoSites, match="from a function of your own it can be pruned") as no:
        hf.build(given)
    module = BeitForImageClassification.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    found = located(module, {"pixel_values": torch.randn(2, 3, 32, 32)}, Adapter(**no.value.adapter)).found
    assert found.biased and found.sites[0].operations == ("mlp", "attention", "block")
