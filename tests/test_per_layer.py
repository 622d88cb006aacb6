"""Schedules with a value of their own at each layer: `--keep 0.9,0.7 --layers 3,6 --per-layer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_plan
import torch
from tiny import case, one_thread, subject  # noqa: F401
from torch import nn

from repshift_cli import cli, prune, registry
from repshift_cli.records import Case, Run, UsageError, tokens_along
from repshift_cli.records.json_codec import from_plain, json_schema, to_plain
from repshift_cli.records.labels import labels
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.renderers.page.command import command_of
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.profiles import load_profile

TWO = {"keep": "0.9,0.7", "sign": "highest,lowest", "layers": "3,6", "per_layer": True}


def test_a_list_is_one_schedule_and_is_read_back_as_it_was_stored() -> None:
    told = Axes.from_options(TWO)
    assert (told.keep, told.options) == (((0.9, 0.7),), (("sign", ("highest,lowest",)),))
    several = Axes.from_options(TWO | {"keep": ["0.9,0.7,0.7", "0.8"], "layers": ["3,6,9"], "sign": ["highest"]})
    assert several.keep == ((0.9, 0.7, 0.7), 0.8)
    for axes in (told, several):
        assert Axes.from_options(axes.as_options()) == axes
    assert Axes.from_options({**TWO, "per_layer": None}).keep == (0.9, 0.7), "without --per-layer it is two keeps"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keep": [0.9, 0.7]}, r"--keep: .*\[\[0.9, 0.7\]\]"),
        ({"keep": "0.9,1"}, "1 drops nothing at its layer"),
        ({"keep": "0.9,1.7"}, "outside"),
        ({"sign": "highest,low"}, "unknown value 'low'; did you mean lowest"),
    ],
)
def test_a_mistake_is_one_sentence(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Axes.from_options(TWO | wrong)


def planned(**changes: Any) -> list[Case]:
    axes = Axes.from_options({**TWO, "variant": "flash,flash+repshift,flash+random", "model": "m"} | changes)
    given = {name: getattr(axes, name) for name in ("keep", "layers", "variant", "model", "per_layer")}
    return [p.case for p in test_plan.planned(**given, **dict(axes.options))]


def test_the_cases_say_what_stays_at_each_layer() -> None:
    plain, own, random = planned()
    assert (own.keep, own.layers, own.option("sign")) == ((0.9, 0.7), (3, 6), "highest,lowest")
    assert (random.keep, random.option("sign")) == ((0.9, 0.7), None)
    assert "keep=0.9,0.7 layers=3,6" in own.key and "sign=highest,lowest" in own.key
    assert tokens_along(test_plan.FACTS, own.keep, own.layers) == (197, 178, 125)
    cases = [plain, own, *planned(keep="0.8", variant="flash+repshift", sign="highest")]
    assert labels(cases)[own] == "flash+repshift keep 0.9,0.7 highest,lowest"
    assert planned(keep="0.7,0.7", sign="lowest,lowest")[1].keep == 0.7, "alike at all layers is a keep like any other"
    assert own.at(3).option("sign") == "highest" and own.at(6).option("sign") == "lowest"
    assert own.schedule == random.schedule != planned(keep="0.7,0.9")[1].schedule
    score = {"operation": "mlp,block", "distance": "l1,cosine", "form": "update"}
    mixed = planned(**score)[1]
    assert [mixed.at(layer).option("operation") for layer in (3, 6)] == ["mlp", "block"]
    blocks = planned(operation="block,block", form="update")[1]
    assert (blocks.option("operation"), blocks.option("form")) == ("block", None), "alike at all is one, as of keep"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keep": "0.9,0.8,0.7"}, "--keep .* 3 layers"),
        ({"layers": "3"}, "2"),
        ({"operation": "mlp,attention,block"}, "--operation .* 3 layers"),
    ],
)
def test_one_value_for_each_layer_or_one_for_all(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        planned(**wrong)


def test_lists_go_with_the_schedules_of_as_many_layers() -> None:
    cases = planned(keep=["0.9,0.7", "0.5"], layers=["3,6", "4"], sign=["highest,lowest", "lowest"])[1:]
    told = [(c.rate, c.layers, c.option("sign")) for c in cases if c.pruning == "repshift"]
    pairs = [("0.9,0.7", (3, 6)), ("0.5", (3, 6))]
    signs = ("highest,lowest", "lowest")
    assert told == [*((*pair, sign) for pair in pairs for sign in signs), ("0.5", (4,), "lowest")]


def test_a_record_keeps_it_and_its_schema_allows_it() -> None:
    own = planned()[1]
    assert from_plain(Case, json.loads(json.dumps(to_plain(own)))) == own
    kinds = json_schema()["$defs"]["Case"]["properties"]["keep"]["anyOf"]
    assert kinds == [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]
    for keep in ([0.9], [0.9, 1.2]):
        with pytest.raises(ValueError, match="keep"):
            from_plain(Case, to_plain(own) | {"keep": keep})


def test_a_profile_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('title = "x"\nkeep = [[0.9, 0.7]]\nlayers = [[3, 6]]\nsign = "highest,lowest"\nper-layer = true\n')
    assert Axes.from_options(load_profile(str(path)) | {"title": None}).keep == ((0.9, 0.7),)
    path.write_text('title = "x"\nkeep = [[0.9, 0.7]]\n')
    with pytest.raises(UsageError, match=r"own.toml:2: keep"):
        load_profile(str(path))


# --- a model with such a schedule -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**sizes, image_size=64, patch_size=16)
    return ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 3, 64, 64)}


def test_each_layer_keeps_its_own_share_by_its_own_sign(model: Any) -> None:
    module, inputs = model
    whole = subject(module, inputs)
    repshift = registry.load(registry.find("reduction", "repshift"))

    def kept(**how: Any) -> list[torch.Tensor]:
        with torch.inference_mode(), pruned(whole, repshift, case(pruning="repshift", **how)) as dropped:
            module(**inputs)
            return [places.tolist() for places in dropped.kept]

    own = kept(keep=(0.75, 0.5), layers=(1, 3), options=(("sign", "lowest,highest"), ("operation", "mlp")))
    first = kept(keep=0.75, layers=(1,), options=(("sign", "lowest"), ("operation", "mlp")))
    assert own[0] == first[0] and [len(places[0]) for places in own] == [13, 7]
    assert first != kept(keep=0.75, layers=(1,), options=(("sign", "highest"), ("operation", "mlp")))
    how = {"distance": "l1,cosine", "form": "update"}
    mixed = kept(keep=0.5, layers=(1, 3), options=(("operation", "attention,block"), *how.items()))
    alone = {"operation": "attention", "distance": "l1", "form": "update"}
    assert mixed[0] == kept(keep=0.5, layers=(1,), options=tuple(alone.items()))[0]
    with prune(module, inputs=inputs, keep=0.5, layers=[1], method="repshift", **alone):
        (last,) = kept(keep=0.5, layers=(3,), options=(("operation", "block"), ("distance", "cosine")))
    left = [[row[place] for place in own] for row, own in zip(mixed[0], last, strict=True)]
    assert mixed[1] == left, "the form of the other layer says nothing of a whole block's shift"
    with prune(module, inputs=inputs, keep=[0.75, 0.5], layers=[1, 3], sign=["lowest", "highest"]) as handle:
        with torch.inference_mode():
            module(**inputs)
        assert [places.tolist() for places in handle.kept] == own and handle.keep == (0.75, 0.5)
    with pytest.raises(UsageError, match="for 2 layers"):
        prune(module, inputs=inputs, keep=[0.75, 0.5], layers=[1])


def test_a_stage_of_a_grid_keeps_its_own_share() -> None:
    from repshift_cli.benchmark import builder, planning

    told = {"model": "resnet18", "image_size": 32, "layers": "1,2", "keep": "0.5,0.8", "per_layer": True}
    (plan,) = planning.plan_cases(Axes.from_options({**told, "variant": "none+repshift"}), "cpu")
    assert plan.tokens == (64, 36, 9)
    step = builder.lone_step(plan.case)
    with torch.inference_mode(), step.active():
        step.forward()


def test_bench_measures_it_and_stores_what_measures_it_again(tmp_path: Path, capsys: Any) -> None:
    out, as_json = tmp_path / "run.json", tmp_path / "told.json"
    words = "bench --model vit_t --image-size 32 --keep 0.9,0.7 --layers 3,6 --per-layer --sign highest,lowest"
    more = f"--variant flash,flash+repshift --timing-only --rounds 1 --out {out} --json {as_json}"
    assert cli.run([*words.split(), *more.split()], False) == 0
    run = from_plain(Run, json.loads(out.read_text()))
    assert run.records[1].status == "ok" and run.records[1].case.keep == (0.9, 0.7)
    assert " 0.9,0.7 " in capsys.readouterr().out.replace("│", " ")
    assert "--keep 0.9,0.7 --layers 3,6 --per-layer" in (command_of(run) or "")
