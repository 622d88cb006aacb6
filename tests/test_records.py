"""Records: to JSON and back without loss, errors that name the place, the arithmetic of keeping."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from synthetic import ON_CPU, REPSHIFT, small_run, sweep_run

from repshift_cli.records import Case, Facts, Measurement, Run, kept, tokens_along
from repshift_cli.records.json_codec import from_plain, json_schema, to_json, to_plain


@pytest.mark.parametrize("run", [small_run(), sweep_run()])
def test_a_run_comes_back_from_json_as_it_was(run: Run) -> None:
    assert from_plain(Run, json.loads(to_json(run))) == run


def test_numbers_of_a_list_stand_on_one_line_and_brackets_in_strings_stay() -> None:
    run = replace(small_run(), warnings=("odd [\n 1,\n 2 ] text",))
    text = to_json(run)
    assert '"layers": [ 3 ]' in text
    assert json.loads(text)["warnings"] == ["odd [\n 1,\n 2 ] text"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("records", 2, "case", "batch"), "1", "run.records[2].case.batch: expected int, found str"),
        (("records", 2, "case", "keep"), None, "run.records[2].case.keep: expected float, found NoneType"),
        (("records", 0, "case", "batch"), True, "run.records[0].case.batch: expected int, found bool"),
        (("machine", "cores"), 1.5, "run.machine.cores: expected int, found float"),
        (("machine", "colour"), "red", "run.machine.colour: not a field of Machine"),
        (("planned", 1, "layers"), 3, "run.planned[1].layers: expected list, found int"),
        (("machine", "packages", "torch"), 2, "run.machine.packages.torch: expected str, found int"),
        (("records", 0, "measurements", 0, "reason"), None, None),
        (
            ("records", 1, "measurements", 0, "reason"),
            None,
            "run.records[1].measurements[0]: speedup_vs_flash: no samples and no reason",
        ),
    ],
)
def test_an_error_names_the_place(path: tuple[str | int, ...], value: object, message: str | None) -> None:
    plain = to_plain(small_run())
    place = plain
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    if message is None:
        from_plain(Run, plain)
        return
    with pytest.raises(ValueError) as caught:
        from_plain(Run, plain)
    assert str(caught.value) == message


def test_a_missing_field_is_named() -> None:
    plain = to_plain(small_run())
    del plain["records"][0]["case"]["model"]
    with pytest.raises(ValueError, match=r"run\.records\[0\]\.case\.model: missing"):
        from_plain(Run, plain)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_never_written(number: float) -> None:
    with pytest.raises(ValueError):
        to_json(replace(small_run(), options={"budget": number}))


def test_variant_group_and_key() -> None:
    case = replace(ON_CPU, attention="flash", **REPSHIFT)
    assert (ON_CPU.variant, case.variant) == ("vanilla", "flash+repshift")
    assert case.group == ON_CPU.group
    assert replace(case, batch=2).group != case.group
    assert replace(case, length=16).group != case.group
    assert len({c.key for c in sweep_run().planned}) == len(sweep_run().planned)
    assert "layers=1,4,7" in replace(case, layers=(1, 4, 7)).key
    assert "frames" not in case.key


OLDER = (
    "model=vit_b input=random weights=random image_size=224 batch=1 dtype=fp32 device=cpu attention=flash "
    "pruning=repshift keep=0.6 layers=3 operation=mlp distance=l2 form=update execution=eager seed=0"
)
"""The key of a case as the first three schemas had it."""


def test_options_are_part_of_a_case_in_one_order() -> None:
    case = replace(ON_CPU, attention="flash", **REPSHIFT)
    assert case.key == OLDER
    turned = replace(case, options=tuple(reversed(case.options)))
    assert turned == case and hash(turned) == hash(case)
    more = case.with_options(zeal=1, distance="l1", fused=True, margin=0.5)
    assert [name for name, _ in more.options] == ["distance", "fused", "margin", "zeal"]
    assert " layers=3 distance=l1 fused=true margin=0.5 zeal=1 execution=eager " in more.key
    assert (more.option("margin"), more.option("operation")) == (0.5, None)
    assert to_plain(more)["options"] == {"distance": "l1", "fused": True, "margin": 0.5, "zeal": 1}
    assert from_plain(Case, json.loads(to_json(more))) == more


def test_cases_of_older_schemas_are_those_of_today() -> None:
    case = replace(ON_CPU, attention="flash", **REPSHIFT)
    older = {k: v for k, v in to_plain(case).items() if k != "options"}
    assert from_plain(Case, older | {"operation": "mlp", "distance": "l2", "form": "update"}) == case
    block = from_plain(Case, older | {"operation": "block", "distance": "l2", "form": None})
    assert block == case.with_options(operation="block", distance="l2")
    assert from_plain(Case, older) == replace(case, options=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([["a", 1]], "run.options: expected dict, found list"),
        ({"a": [1]}, "run.options.a: expected a text, a number, true or false, found list"),
        ({"a": None}, "run.options.a: expected a text, a number, true or false, found NoneType"),
    ],
)
def test_options_that_are_none_are_told(options: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_plain(Case, to_plain(ON_CPU) | {"options": options})
    assert str(caught.value) == message


def test_no_value_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="hbm: no samples and no reason"):
        Measurement("hbm", "HBM", "B", "lower", "value", "counter")


@pytest.mark.parametrize(
    ("tokens", "keep", "left"), [(10, 0.8, 8), (196, 0.8, 157), (1, 0.1, 1), (5, 0.01, 1), (7, 1.0, 7), (196, 0.6, 118)]
)
def test_kept_is_decimal_and_never_nothing(tokens: int, keep: float, left: int) -> None:
    assert kept(tokens, keep) == left


def test_tokens_along_the_papers_schedules() -> None:
    assert tokens_along(Facts(12, 196, 1), 0.8, (1, 4, 7)) == (197, 158, 127, 102)
    assert tokens_along(Facts(12, 2352, 0), 0.8, (1, 2, 3)) == (2352, 1882, 1506, 1205)
    assert tokens_along(Facts(12, 196, 1), 1.0, ()) == (197,)


def test_the_schema_covers_every_field_of_a_case() -> None:
    case = json_schema()["$defs"]["Case"]
    assert set(case["properties"]) == set(to_plain(ON_CPU))
    assert isinstance(from_plain(Case, to_plain(ON_CPU)), Case)
