"""`prune` in one's own code: outputs and places kept are those that `bench` measured, and it leaves no trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_unchanged_figures import places_kept
from tiny import one_thread  # noqa: F401
from torch import Tensor, nn

import repshift_cli
from repshift_cli import UsageError, prune
from repshift_cli.benchmark import builder, planning
from repshift_cli.records import Case, call
from repshift_cli.sweep.axes import Axes

MODELS: dict[str, dict[str, Any]] = {
    "vit_t": {"image_size": 64},
    "vit_t protected": {"image_size": 64, "protect": "first:2,last:1"},
    "dinov2_s_reg": {"image_size": 56},
    "umt_b": {"image_size": 32, "frames": 2, "batch": 1},
    "minilm": {"tokens": 12},
    "mamba_130m": {"tokens": 5, "variant": "none+repshift"},
    "vim_t": {"image_size": 48, "variant": "none+repshift"},
    "resnet18": {"image_size": 64, "layers": "1,2", "variant": "none+repshift"},
    "resnet18 stride": {"image_size": 64, "layers": "1,2", "variant": "none+stride"},
    "convnext_t": {"image_size": 64, "layers": "1", "removal": "token", "variant": "none+repshift"},
    "timm:vit_tiny_patch16_224": {"image_size": 64},
}
FEW = ("vit_t", "minilm", "resnet18")
"""Those that are tested in the fast round; one for each way of cutting."""


def case_of(model: str, **options: Any) -> Case:
    """The one pruned case of a sweep, planned as `bench` plans it."""
    told = {"layers": "2,4", "keep": 0.6, "variant": "sdpa+repshift", "batch": 2} | options
    sweep = Axes.from_options({"model": model.partition(" ")[0], "device": "cpu", **told})
    (planned,) = planning.plan_cases(sweep, "cpu")
    assert planned.refused is None, planned.refused
    return planned.case


def options_of(case: Case) -> dict[str, Any]:
    options = dict(case.options) | ({} if case.removal is None else {"removal": case.removal})
    return {"keep": case.keep, "layers": case.layers, "method": case.pruning, "protect": case.protect, **options}


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, whatever holds them."""
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
    return [v for v in values if isinstance(v, Tensor)]


def measured(case: Case) -> tuple[Any, Any, list[Tensor], list[list[list[int]]]]:
    """The module and the inputs of a case as `bench` makes them, its output, and the places that each cut kept."""
    with places_kept() as noted:
        step = builder.lone_step(case)
        with step.active():
            output = step.forward()
    (places,) = noted.values()
    return step.subject.module, step.subject.inputs, flat(output), places


def in_the_first(cuts: list[list[list[int]]]) -> list[list[list[int]]]:
    """Places of each cut in what was left before it, as places in the first sequence."""
    found = [cuts[0]]
    for cut in cuts[1:]:
        found.append([[before[i] for i in row] for before, row in zip(found[-1], cut, strict=True)])
    return found


@pytest.mark.parametrize("model", [m if m in FEW else pytest.param(m, marks=pytest.mark.slow) for m in MODELS])
def test_outputs_and_places_are_those_that_bench_measured(model: str) -> None:
    """To rounding: Mamba's by that of another order of sums, for `bench` scans by a kernel of its own."""
    if model.startswith("timm"):
        pytest.importorskip("timm")
    case = case_of(model, **MODELS[model])
    module, inputs, expected, places = measured(case)
    with torch.inference_mode():
        whole = flat(call(module, inputs))
        with prune(module, inputs=inputs, **options_of(case)) as handle:
            outputs, kept = flat(call(module, inputs)), [k.tolist() for k in handle.kept]
        after = flat(call(module, inputs))
    for output, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, other, rtol=1e-5, atol=1e-4 if "mamba" in model else 1e-6)
    grid = model.startswith(("resnet", "convnext"))
    assert kept == (places if grid else in_the_first(places)) and len(kept) == len(case.layers)
    assert all(torch.equal(a, b) for a, b in zip(whole, after, strict=True)), "the model is whole again"
    assert not torch.equal(outputs[0], whole[0])


# --- a model of one's own ---------------------------------------------------------------------------------------------


def vit(**changes: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
    config = ViTConfig(**sizes, image_size=64, **changes)
    return ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, 64, 64)}


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    with torch.no_grad():
        yield vit()


def test_any_batch_and_size_afterwards(model: Any) -> None:
    module, x = model
    with prune(module, keep=0.5, layers=[1, 3], inputs=x) as handle:
        module(pixel_values=torch.randn(3, 3, 96, 96), interpolate_pos_encoding=True)
        assert [k.shape for k in handle.kept] == [(3, 19), (3, 10)]
        module(**x)
        assert [k.shape for k in handle.kept] == [(2, 9), (2, 5)]
        assert all((k[:, 0] == 0).all() for k in handle.kept), "the class token stays"


def test_keep_1_is_the_untouched_model(model: Any) -> None:
    module, x = model
    whole = module(**x).logits
    with prune(module, keep=1.0, layers=[1], inputs=x) as handle:
        assert torch.equal(module(**x).logits, whole) and handle.kept == ()


def test_a_handle_is_removed_once_and_twice_does_no_harm(model: Any) -> None:
    module, x = model
    whole = module(**x).logits
    handle = prune(module, keep=0.5, inputs=x)
    assert not torch.equal(module(**x).logits, whole) and handle.layers == (1,)
    handle.remove()
    handle.remove()
    assert torch.equal(module(**x).logits, whole)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())


def test_a_pruned_model_is_not_pruned_again(model: Any) -> None:
    module, x = model
    with prune(module, keep=0.5, inputs=x):
        with pytest.raises(UsageError, match=r"pruned already: call remove\(\)"):
            prune(module, keep=0.9, inputs=x)
        with pytest.raises(UsageError, match="pruned already"):
            prune(nn.ModuleDict({"inside": module}), inputs=x)
    prune(module, keep=0.9, inputs=x).remove()


def test_a_model_in_training_stays_in_training() -> None:
    module, x = vit(hidden_dropout_prob=0.1)
    module.train()
    with torch.enable_grad(), prune(module, keep=0.5, inputs=x):
        assert all(m.training for m in module.modules())
        module(**x).logits.sum().backward()
    assert next(module.parameters()).grad is not None


def test_autocast_keeps_the_places_of_its_own_scores(model: Any) -> None:
    module, x = model
    with prune(module, keep=0.5, layers=[2], inputs=x) as handle, torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(**x).logits.dtype == torch.bfloat16 and handle.kept[0].shape == (2, 9)


@pytest.mark.slow
def test_compiled_code_follows(model: Any) -> None:
    module, x = model
    compiled = torch.compile(module)
    whole = compiled(**x).logits
    with prune(compiled, keep=0.5, layers=[2], inputs=x) as handle:
        torch.testing.assert_close(compiled(**x).logits, module(**x).logits)
        assert handle.kept[0].shape == (2, 9) and not torch.allclose(module(**x).logits, whole)
    torch.testing.assert_close(compiled(**x).logits, whole)


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_pruned_model_on_other_inputs() -> None:
    module, x = vit()
    module, pixels = module.cuda(), x["pixel_values"].cuda()
    with torch.inference_mode(), prune(module, keep=0.5, layers=[1, 3], inputs={"pixel_values": pixels}) as handle:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            module(pixels)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = module(pixels).logits
        pixels.copy_(torch.randn_like(pixels))
        graph.replay()
        replayed = captured.clone()
        torch.testing.assert_close(replayed, module(pixels).logits)
        assert [k.shape for k in handle.kept] == [(2, 9), (2, 5)]


def test_padding_goes_first_and_each_sentence_is_as_if_alone() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    module = BertModel(BertConfig(**sizes, vocab_size=50)).eval()
    ids, mask = torch.randint(5, 50, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    with torch.no_grad(), prune(module, keep=0.5, layers=[1], inputs={"input_ids": ids}):
        both = module(ids, attention_mask=mask).pooler_output
        alone = module(ids[1:, :7]).pooler_output
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("protect", [None, "first:2,last:1"])
def test_a_padded_prompt_is_as_if_alone_and_its_last_token_stays(side: str, protect: str | None) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    module = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50, max_position_embeddings=32)).eval()
    ids, mask = torch.randint(5, 50, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    own = slice(5, 12) if side == "left" else slice(0, 7)
    mask[1] = 0
    mask[1, own] = 1
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), prune(module, keep=0.5, layers=[1], inputs={"input_ids": ids}, protect=protect) as handle:
        both = module(ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        kept = handle.kept[0]
        alone = module(ids[1:, own], use_cache=False).logits
        expected = [place + own.start for place in handle.kept[0][0].tolist()]
        whole = module(ids[:1], use_cache=False).logits
        masked = module(ids[:1], attention_mask=torch.ones(1, 12), use_cache=False).logits
    found = [i for i, place in enumerate(kept[1].tolist()) if mask[1, place]]
    assert [kept[1, i].item() for i in found] == expected and expected[-1] == own.stop - 1
    torch.testing.assert_close(both[1, found], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(masked, whole)
    torch.testing.assert_close(both[:1], whole, rtol=1e-4, atol=1e-5)


def test_a_profile_says_how(model: Any, tmp_path: Path) -> None:
    module, x = model
    profile = tmp_path / "tuned.toml"
    told = 'keep = 0.5\nlayers = [[1, 3]]\nform = "update"\nvariant = "flash,flash+lowest"\n'
    profile.write_text(f'title = "tuned"\nmodel = "vit_b"\n{told}')
    with prune(module, profile=profile, inputs=x) as handle:
        assert (handle.keep, handle.layers, handle.method) == (0.5, (1, 3), "lowest")
    with prune(module, profile=profile, inputs=x, keep=0.25, method="stride") as handle:
        assert (handle.keep, handle.layers, handle.method) == (0.25, (1, 3), "stride")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keep": 1.5}, "share of the tokens"),
        ({"layers": [9]}, "beyond the depth of ViTForImageClassification, which has 4"),
        ({"method": "repshfit"}, "did you mean repshift"),
        ({"form": "papre"}, "choose from paper, update"),
        ({"method": "random", "form": "update"}, r"form applies to methods that take it \(.*\), not to random"),
        ({"colour": "red"}, "no option 'colour'; methods take operation"),
        ({"profile": "keep-sweep"}, "28 ways to prune are named .* give keep, layers"),
        ({"protect": "first:17"}, "leaves none of the 16 tokens"),
        ({"adapter": {"blocks": "nowhere"}}, "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(model: Any, wrong: dict[str, Any], words: str) -> None:
    module, x = model
    with pytest.raises(UsageError, match=words):
        prune(module, inputs=x, **wrong)
    assert all(not m._forward_hooks for m in module.modules())


def test_the_package_imports_no_torch() -> None:
    code = "import sys, repshift_cli; print(repshift_cli.__version__); assert 'torch' not in sys.modules"
    root = str(Path(repshift_cli.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repshift_cli.__version__
