"""Options become axes: lists, ranges, schedules, and one clear sentence for what cannot be."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repshift_cli import registry
from repshift_cli.records import Option, UsageError
from repshift_cli.sweep import parsing
from repshift_cli.sweep.axes import Axes, merge
from repshift_cli.sweep.parsing import PARSERS, integers, numbers, parse, schedules


def test_a_decimal_range_has_both_ends_and_no_dust() -> None:
    assert numbers("0.3:0.9:0.1") == (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def test_a_range_stops_before_an_end_it_does_not_hit() -> None:
    assert numbers("0.3:0.95:0.3") == (0.3, 0.6, 0.9)
    assert integers("1:9:4") == (1, 5, 9)
    assert integers("1:10:4") == (1, 5, 9)


def test_whole_numbers_step_by_one() -> None:
    assert integers("2:5") == (2, 3, 4, 5)


def test_lists_and_ranges_mix() -> None:
    assert numbers("0.1, 0.3:0.5:0.1") == (0.1, 0.3, 0.4, 0.5)


@given(st.integers(1, 99), st.integers(0, 50), st.integers(1, 30))
def test_a_range_holds_exactly_the_decimals_between_its_ends(first: int, more: int, step: int) -> None:
    text = ":".join(str(Decimal(n) / 100) for n in (first, first + more, step))
    assert numbers(text) == tuple(float(Decimal(n) / 100) for n in range(first, first + more + 1, step))


def test_layers_with_commas_are_one_schedule_and_a_range_sweeps_single_layers() -> None:
    assert schedules("1,4,7") == ((1, 4, 7),)
    assert schedules("1:7:3") == ((1,), (4,), (7,))
    assert parse("layers", ["3", "1,4,7"]) == ((3,), (1, 4, 7))
    assert parse("layers", [[3], [1, 4, 7]]) == ((3,), (1, 4, 7))
    assert parse("layers", 3) == ((3,),)


def test_defaults_are_those_of_the_main_command() -> None:
    axes = Axes.from_options({"model": None, "keep": [], "layers": ()})
    assert axes == Axes()
    assert (axes.model, axes.keep, axes.options) == (("vit_b",), (0.6,), ())


def test_options_of_every_kind() -> None:
    axes = Axes.from_options(
        {
            "model": ["vit_s,deit_s", "vit_s"],
            "batch": ["1", "8,1"],
            "dtype": ["fp32", "bf16"],
            "keep": ["0.5,0.7"],
            "variant": ["flash", "flash+repshift,pack.mod:attend+my-method"],
            "cuda_graph": True,
            "budget": "20",
            "precision": 0.01,
            "rounds": 12,
            "seed": 0,
            "data": "photos/a,b.jpg",
        }
    )
    assert axes.model == ("vit_s", "deit_s")
    assert axes.batch == (1, 8)
    assert axes.variant == ("flash", "flash+repshift", "pack.mod:attend+my-method")
    assert (axes.budget, axes.precision, axes.rounds, axes.seed) == (20.0, 0.01, 12, 0)
    assert axes.data == "photos/a,b.jpg"
    assert hash(axes) == hash(axes)


def test_every_axis_has_a_parser() -> None:
    assert {*PARSERS, "options"} == set(Axes.__dataclass_fields__)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("keep", "0", r"^--keep: 0 is outside \(0, 1\]"),
        ("keep", "1.1", r"^--keep: 1.1 is outside \(0, 1\]"),
        ("keep", "-0.5", r"outside"),
        ("keep", "0.5:0.9", r"first:last:step, like 0.3:0.9:0.1"),
        ("keep", "0.9:0.3:0.1", "a range goes up"),
        ("keep", "0.3:0.9:0", "a step above 0"),
        ("keep", "0.1:0.9:0.0000001", "a range may have 1000"),
        ("keep", "half", "'half' is not a number"),
        ("keep", "nan", "'nan' is not a number"),
        ("keep", "1e-999999999", "is not a number"),
        ("keep", "0.5,", "has an empty value"),
        ("keep", True, "neither text nor a number"),
        ("batch", "0", "^--batch: 0 is too small; it must be at least 1"),
        ("batch", "1.5", "'1.5' is not a whole number"),
        ("batch", "1e999999999", "is not a whole number"),
        ("image_size", "0", "^--image-size: 0 is too small"),
        ("frames", "-1", "too small"),
        ("tokens", "0", "^--tokens: 0 is too small"),
        ("layers", "0", "layers count blocks from 1"),
        ("layers", "4,1", "must go up without repeats"),
        ("layers", "4,4", "must go up without repeats"),
        ("layers", "1:4,7", "mixes a list and a range"),
        ("layers", [1, 4, 7], r"write \[\[1, 4, 7\]\] for one schedule or \[\[1\], \[4\], \[7\]\] for several"),
        ("layers", [[1], 4], "a list of schedules is needed"),
        ("layers", [[]], "at least one value"),
        ("dtype", "fp31", "unknown value 'fp31'; did you mean fp32.*choose from fp32, bf16, fp16"),
        ("operation", "mpl", "did you mean mlp"),
        ("distance", "l3", "choose from l2, l1, cosine"),
        ("form", "papers", "did you mean paper"),
        ("variant", "flash+", "neither a back end"),
        ("variant", "a+b+c", "neither a back end"),
        ("precision", "0", r"outside \(0, 1\)"),
        ("precision", "5", r"like 0.01 for 1%"),
        ("budget", "0", "not above 0"),
        ("rounds", "0", "at least 1"),
        ("seed", "-1", "at least 0"),
        ("seed", [1, 2], "takes one value"),
        ("cuda_graph", "yes", "neither true nor false"),
        ("device", "", "is not a text"),
        ("kep", 0.5, "unknown option; did you mean keep"),
    ],
)
def test_bad_values_get_one_sentence(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        parse(name, value)
    assert "\n" not in str(caught.value)


def test_options_of_methods_are_axes_like_the_others(own_options: None) -> None:
    given = {"power": "0.5:1.5:0.5", "steps": ["1:3", 7], "fused": [True, "false"], "word": "a,b", "distance": "l1"}
    axes = Axes.from_options({"keep": 0.5, **given})
    assert dict(axes.options) == {
        "power": (0.5, 1.0, 1.5),
        "steps": (1, 2, 3, 7),
        "fused": (True, False),
        "word": ("a", "b"),
        "distance": ("l1",),
    }
    stored = axes.as_options()
    assert stored["steps"] == [1, 2, 3, 7] and stored["keep"] == [0.5] and "options" not in stored
    assert Axes.from_options(stored) == axes
    assert hash(axes) == hash(axes)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("power", "3", "^--power: 3.0 is too large; it must be at most 2"),
        ("power", "true", "'true' is not a number"),
        ("steps", "0", "0 is too small; it must be at least 1"),
        ("steps", "1.5", "not a whole number"),
        ("fused", "yes", "'yes' is neither true nor false"),
        ("steps", True, "neither text nor a number"),
        ("powr", 1, "unknown option; did you mean power"),
    ],
)
def test_bad_values_of_methods_options_get_one_sentence(
    own_options: None, name: str, value: Any, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse(name, value)


@pytest.fixture
def own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of every type, as methods may declare them."""
    known = {
        "power": {"type": "float", "help": "", "least": 0, "most": 2},
        "steps": {"type": "int", "help": "", "least": 1},
        "fused": {"type": "bool", "help": ""},
        "word": {"type": "str", "help": ""},
        "keep": {"type": "int", "help": ""},
    }
    declared = {name: Option(name, **told) for name, told in known.items()}
    everything = {**registry.method_options(), **declared}
    monkeypatch.setattr(parsing, "method_options", lambda: everything)


def test_explicit_options_go_before_the_profile() -> None:
    profile = {"title": "t", "thresholds": {"x": 1}, "keep": 0.5, "batch": 8, "cuda_graph": True}
    given = {"keep": ["0.7"], "batch": None, "model": [], "cuda_graph": False}
    assert merge(profile, given) == {"keep": ["0.7"], "batch": 8, "cuda_graph": False}
