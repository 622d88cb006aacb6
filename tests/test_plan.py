"""From axes to cases: their order and number, what is refused and why, and what is measured together."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repshift_cli import registry
from repshift_cli.records import Facts, Offers, Option, UsageError
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.plan import Backend, Planned, comparisons, default_dtype, default_layers, expand

FACTS = Facts(depth=12, tokens=196, prefix=1, head_dim=64, image_size=224)
REPSHIFT = registry.options_of(registry.find("reduction", "repshift"))
METHODS = {
    "repshift": REPSHIFT,
    "lowest": REPSHIFT,
    "random": {},
    "oracle": {},
    "near": {"distance": REPSHIFT["distance"]},
}
EVERYWHERE = {"cpu": ("fp32", "bf16"), "cuda": ("bf16", "fp16")}
BACKENDS = {
    "vanilla": Backend(None),
    "flash": Backend(Offers(EVERYWHERE, max_head_dim=256)),
    "stepped": Backend(Offers(EVERYWHERE, head_dim_multiple=16)),
    "cudnn": Backend(Offers({"cuda": ("bf16",)})),
    "absent": Backend(Offers(EVERYWHERE), "needs the package flash-attn; pip install flash-attn"),
}


def planned(facts: Facts | dict[str, Facts] = FACTS, device: str = "cpu", **axes: Any) -> tuple[Planned, ...]:
    def facts_of(model: str, size: int | None, frames: int | None, length: int | None) -> Facts:
        own = facts[model] if isinstance(facts, dict) else facts
        own = replace(own, length=length or own.length)
        return replace(own, image_size=size or own.image_size, frames=frames or own.frames)

    options = tuple((name, axes.pop(name)) for name in REPSHIFT if name in axes)
    return expand(Axes(**axes, options=options), device, facts_of, BACKENDS, METHODS)


def short(p: Planned) -> str:
    c = p.case
    words = [c.variant, *([f"{c.keep:g}@{','.join(map(str, c.layers))}"] if c.layers else [])]
    return " ".join([*words, *(value for _, value in c.options), *([] if c.execution == "eager" else "g")])


def the_reason(**changes: Any) -> str:
    (only,) = planned(**changes)
    assert only.refused is not None
    return only.refused


def test_a_refused_model_is_one_case_where_others_can_be_measured() -> None:
    def facts_of(model: str, *sizes: int | None) -> Facts:
        if model == "windows":
            raise UsageError("windows needs its whole grid")
        return FACTS

    axes = Axes(model=("windows", "deep"), variant=("flash", "flash+random"))
    found = expand(axes, "cpu", facts_of, BACKENDS, METHODS)
    assert [(p.case.model, p.case.variant, p.refused) for p in found] == [
        ("windows", "flash", "windows needs its whole grid"),
        ("deep", "flash", None),
        ("deep", "flash+random", None),
    ]
    with pytest.raises(UsageError, match="windows needs its whole grid"):
        expand(replace(axes, model=("windows",)), "cpu", facts_of, BACKENDS, METHODS)


# --- order and number -------------------------------------------------------------------------------------------------


def test_the_unpruned_come_first_then_schedule_by_schedule() -> None:
    found = planned(
        variant=("flash+random", "vanilla", "flash+repshift", "flash"), keep=(0.5, 0.7), layers=((3,), (1, 4))
    )
    assert [short(p) for p in found] == [
        "vanilla",
        "flash",
        "flash+random 0.5@3",
        "flash+repshift 0.5@3 mlp l2 paper",
        "flash+random 0.5@1,4",
        "flash+repshift 0.5@1,4 mlp l2 paper",
        "flash+random 0.7@3",
        "flash+repshift 0.7@3 mlp l2 paper",
        "flash+random 0.7@1,4",
        "flash+repshift 0.7@1,4 mlp l2 paper",
    ]


def test_groups_follow_each_other_with_the_model_outermost() -> None:
    found = planned(model=("a", "b"), image_size=(224, 384), batch=(1, 8), dtype=("fp32", "bf16"), variant=("flash",))
    cells = [(p.case.model, p.case.image_size, p.case.batch, p.case.dtype) for p in found]
    assert cells == list(product(("a", "b"), (224, 384), (1, 8), ("fp32", "bf16")))


def test_both_executions_stand_side_by_side() -> None:
    found = planned(device="cuda", variant=("flash", "flash+random"), cuda_graph=True)
    assert [short(p) for p in found] == ["flash", "flash g", "flash+random 0.6@3", "flash+random 0.6@3 g"]
    assert not any(p.refused for p in found)


def test_block_has_no_form_and_is_not_repeated_for_each() -> None:
    found = planned(
        variant=("flash+repshift",), operation=("mlp", "block"), distance=("l2", "l1"), form=("paper", "update")
    )
    assert [short(p).partition(" 0.6@3 ")[2] for p in found] == [
        "mlp l2 paper",
        "mlp l2 update",
        "mlp l1 paper",
        "mlp l1 update",
        "block l2",
        "block l1",
    ]


def test_a_method_gets_the_options_that_it_takes_and_no_others() -> None:
    axes = {"operation": ("mlp", "block"), "distance": ("l2", "cosine"), "form": ("paper", "update")}
    assert [short(p) for p in planned(variant=("flash+random",), **axes)] == ["flash+random 0.6@3"]
    near = planned(variant=("flash+near",), **axes)
    assert [short(p) for p in near] == ["flash+near 0.6@3 l2", "flash+near 0.6@3 cosine"]


def test_an_option_has_its_default_or_none_and_is_left_out_where_it_means_nothing() -> None:
    taken = {
        "margin": Option("margin", "float", "", default=0.75),
        "mode": Option("mode", "str", "", choices=("a", "b")),
        "steps": Option("steps", "int", "", default=3, unless=(("mode", "a"),)),
    }

    def options(**given: tuple[Any, ...]) -> list[dict[str, Any]]:
        axes = Axes(variant=("flash+own",), options=tuple(given.items()))
        return [dict(p.case.options) for p in expand(axes, "cpu", lambda *_: FACTS, BACKENDS, {"own": taken})]

    assert options() == [{"margin": 0.75, "steps": 3}]
    assert options(mode=("a",), steps=(1, 2)) == [{"margin": 0.75, "mode": "a"}]
    both = options(margin=(0.0, 1.0), mode=("b",))
    assert both == [{"margin": m, "mode": "b", "steps": 3} for m in (0.0, 1.0)]


@given(
    keeps=st.integers(1, 4),
    schedules=st.integers(1, 3),
    variants=st.lists(st.sampled_from(["vanilla", "flash", "flash+repshift", "flash+random"]), min_size=1, unique=True),
    operations=st.lists(st.sampled_from(["mlp", "attention", "block"]), min_size=1, unique=True),
    distances=st.lists(st.sampled_from(["l2", "l1", "cosine"]), min_size=1, unique=True),
    forms=st.lists(st.sampled_from(["paper", "update"]), min_size=1, unique=True),
)
def test_a_sweep_has_as_many_cases_as_its_axes_say(
    keeps: int, schedules: int, variants: list[str], operations: list[str], distances: list[str], forms: list[str]
) -> None:
    found = planned(
        variant=tuple(variants),
        keep=tuple((i + 1) / 10 for i in range(keeps)),
        layers=tuple((i + 1,) for i in range(schedules)),
        operation=tuple(operations),
        distance=tuple(distances),
        form=tuple(forms),
    )
    scored = sum(len(distances) * (1 if operation == "block" else len(forms)) for operation in operations)
    each = {"vanilla": 0, "flash": 0, "flash+repshift": scored, "flash+random": 1}
    unpruned = len({"vanilla", "flash"} & set(variants))
    assert len(found) == unpruned + keeps * schedules * sum(each[v] for v in variants)
    assert len({p.case.key for p in found}) == len(found)
    gathered = comparisons(found)
    pruned = any("+" in v for v in variants)
    assert len(gathered) == (keeps * schedules if pruned else 1)
    measured = [p for block in gathered for p in block]
    assert {p.case for p in measured} == {p.case for p in found}
    assert len(measured) == len(found) + unpruned * (len(gathered) - 1)


# --- what a case holds ------------------------------------------------------------------------------------------------


def test_tokens_along_the_depth_prefix_included() -> None:
    (found,) = planned(variant=("flash+random",), keep=(0.8,), layers=((1, 4, 7),))
    assert found.tokens == (197, 158, 127, 102)
    assert planned(variant=("flash",))[0].tokens == (197,)


def test_the_case_says_what_it_runs_on() -> None:
    (case,) = [p.case for p in planned(variant=("flash",), image_size=(384,), frames=(8,), seed=5, data="photos")]
    assert (case.image_size, case.frames, case.batch, case.dtype, case.device) == (384, 8, 1, "fp32", "cpu")
    assert [p.case.length for p in planned(variant=("flash",), tokens=(16, 32))] == [16, 32]
    assert (case.input, case.weights, case.seed) == ("photos", "random", 5)
    (own,) = [p.case for p in planned(replace(FACTS, weights="own", batch=4), variant=("flash",))]
    assert (own.input, own.weights, own.batch) == ("own", "own", 4)


@pytest.mark.parametrize(("depth", "layer"), [(12, 3), (24, 6), (13, 3), (4, 1), (3, 1), (1, 1)])
def test_the_default_layer_is_a_quarter_into_the_depth(depth: int, layer: int) -> None:
    assert default_layers(depth) == (layer,)


def test_each_model_has_its_own_default_layer() -> None:
    found = planned({"a": FACTS, "b": replace(FACTS, depth=24)}, model=("a", "b"), variant=("flash+random",))
    assert [p.case.layers for p in found] == [(3,), (6,)]


def test_default_dtypes() -> None:
    assert [default_dtype(d) for d in ("cpu", "cuda", "cuda:1")] == ["fp32", "bf16", "bf16"]
    assert planned(device="cuda:1", variant=("flash",))[0].case.dtype == "bf16"


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_missing_back_end_is_refused_with_its_own_words() -> None:
    assert the_reason(variant=("absent",)) == "needs the package flash-attn; pip install flash-attn"


def test_a_dtype_that_the_back_end_does_not_take() -> None:
    assert the_reason(variant=("flash",), dtype=("fp16",)) == "flash takes fp32, bf16 on cpu, not fp16"
    assert (
        the_reason(variant=("flash",), device="cuda:1", dtype=("fp32",)) == "flash takes bf16, fp16 on cuda, not fp32"
    )
    assert the_reason(variant=("cudnn",)) == "cudnn takes nothing on cpu, not fp32"
    assert planned(variant=("vanilla",), dtype=("fp16",))[0].refused is None


def test_a_head_dim_that_the_back_end_does_not_take() -> None:
    wide, odd, unknown = (replace(FACTS, head_dim=d) for d in (264, 72, None))
    assert the_reason(facts=wide, variant=("flash",)) == "flash takes head dims up to 256, vit_b has 264"
    assert planned(replace(FACTS, head_dim=256), variant=("flash",))[0].refused is None
    assert the_reason(facts=odd, variant=("stepped",)) == "stepped takes head dims in steps of 16, not 72"
    assert planned(unknown, variant=("flash", "stepped"))[0].refused is None


def test_graphs_are_refused_on_a_cpu_and_only_they() -> None:
    found = planned(variant=("vanilla", "flash+random"), cuda_graph=True)
    assert [p.refused for p in found] == [None, "CUDA graphs exist on CUDA only"] * 2


def test_a_layer_beyond_the_depth_of_any_model() -> None:
    models = {"a": FACTS, "b": replace(FACTS, depth=4)}
    with pytest.raises(UsageError, match=r"^--layers 5 is beyond the depth of b, which has 4 blocks$"):
        planned(models, model=("a", "b"), layers=((4,), (1, 5, 7)))
    assert planned(models, model=("a", "b"), layers=((4,),))


def test_your_own_inputs_have_their_batch_where_none_is_asked_for() -> None:
    own = replace(FACTS, weights="own", batch=4)
    assert {p.case.batch for p in planned(own)} == {4}
    assert {p.case.batch for p in planned(own, batch=(4, 8))} == {4, 8}
    assert {p.case.input for p in planned(own)} == {"own"} and {p.case.input for p in planned(own, data="a")} == {"a"}


# --- measured together ------------------------------------------------------------------------------------------------


def test_the_unpruned_come_back_with_every_schedule() -> None:
    found = planned(
        variant=("vanilla", "flash", "flash+repshift", "flash+oracle"), keep=(0.5, 0.7), layers=((3,), (6,))
    )
    gathered = [[short(p) for p in block] for block in comparisons(found)]
    assert gathered == [
        ["vanilla", "flash", f"flash+repshift {s} mlp l2 paper", f"flash+oracle {s}"]
        for s in ("0.5@3", "0.5@6", "0.7@3", "0.7@6")
    ]


def test_both_executions_are_measured_together() -> None:
    found = planned(device="cuda", variant=("flash", "flash+random"), cuda_graph=True, keep=(0.5, 0.7))
    assert [[short(p) for p in block] for block in comparisons(found)] == [
        ["flash", "flash g", f"flash+random {keep}@3", f"flash+random {keep}@3 g"] for keep in (0.5, 0.7)
    ]


def test_groups_never_mix() -> None:
    found = planned(model=("a", "b"), batch=(1, 2), dtype=("fp32", "bf16"), variant=("flash", "flash+random"))
    gathered = comparisons(found)
    assert len(gathered) == 8
    assert all(len({p.case.group for p in block}) == 1 and len(block) == 2 for block in gathered)


def test_only_unpruned_cases_are_one_comparison_and_only_pruned_ones_need_none() -> None:
    assert [len(block) for block in comparisons(planned(variant=("vanilla", "flash"), keep=(0.5, 0.7)))] == [2]
    assert [len(block) for block in comparisons(planned(variant=("flash+random",), keep=(0.5, 0.7)))] == [1, 1]


def test_a_refused_case_belongs_to_no_comparison() -> None:
    found = planned(variant=("absent", "flash", "absent+random", "flash+random"))
    assert [[short(p) for p in block] for block in comparisons(found)] == [["flash", "flash+random 0.6@3"]]
    assert comparisons(planned(variant=("absent", "absent+random"))) == []


def test_protect_takes_from_what_can_go_and_needs_a_row() -> None:
    (case,) = planned(variant=("flash+random",), keep=(0.5,), layers=((3,),), protect="first:5,last:1")
    assert case.tokens == (197, 7 + 95) and case.case.protect == "first:5,last:1"
    with pytest.raises(UsageError, match="not a row from first to last"):
        planned(replace(FACTS, row=False), variant=("flash+random",), protect="last:1")
    with pytest.raises(UsageError, match="leaves none of the 196 tokens"):
        planned(variant=("flash+random",), protect="first:196")
