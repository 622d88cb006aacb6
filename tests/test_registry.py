"""Parts are found by file name and by entry point, and nothing is imported to list them."""

import importlib
import itertools
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from repshift_cli import registry
from repshift_cli.records import OPERATIONS, Option, RepshiftError, UsageError
from repshift_cli.registry import Part, aliases, find, find_variant, load, parts, resolve_model


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with parts for the three open rooms; importing its package would fail."""
    folder = tmp_path / "strange_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "retnet.py").write_text('"""RetNet.\n\nMore."""\nALIASES: dict = {"retnet_t": 1}\nSIZE = len("abc")\n')
    points = [
        EntryPoint("retnet", "strange_parts.retnet", "repshift.models"),
        EntryPoint("ghost", "no_such_package.ghost:part", "repshift.models"),
        EntryPoint("vit", "strange_parts.retnet", "repshift.models"),
    ]
    monkeypatch.setattr(registry, "_entry_points", lambda room: points if room == "models" else ())
    monkeypatch.syspath_prepend(str(tmp_path))
    parts.cache_clear()
    yield folder
    parts.cache_clear()


def test_parts_are_named_like_their_files_and_described_by_them() -> None:
    flash = parts("attention")["flash"]
    assert flash.target == "repshift_cli.attention.flash"
    assert flash.help.startswith("FlashAttention")
    assert "\n" not in flash.help


def test_every_part_has_a_help_line_and_none_is_private() -> None:
    every = [part for room in registry.ROOMS for part in parts(room).values()]
    assert {"vanilla", "flash", "repshift", "vit"} <= {part.name for part in every}
    assert [part.name for part in every if not part.help or part.name.startswith("_")] == []


def test_literals_are_read_from_the_source() -> None:
    assert list(parts("reduction")["repshift"].constants["OPTIONS"]) == ["operation", "distance", "form", "sign"]
    assert "vit_b" in parts("models")["vit"].constants["ALIASES"]


def test_listing_imports_no_part() -> None:
    code = (
        "import sys; from repshift_cli.registry import *\n"
        "for room in ROOMS: parts(room)\n"
        "aliases(), find('models', 'vit')\n"
        "sys.exit(' '.join(m for m in sys.modules if m == 'torch' or m.startswith('repshift_cli.models')) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_entry_points_add_parts_without_being_imported(plugin: Path) -> None:
    found = parts("models")
    assert found["retnet"] == Part("retnet", "models", "RetNet.", "strange_parts.retnet", {"ALIASES": {"retnet_t": 1}})
    assert found["ghost"].help == "from no_such_package.ghost:part"
    assert {"retnet_t", "ghost"} <= set(aliases())
    assert resolve_model("retnet_t").name == "retnet"


def test_a_file_of_this_package_goes_before_an_entry_point(plugin: Path) -> None:
    assert parts("models")["vit"].target == "repshift_cli.models.vit"


def test_a_part_that_cannot_be_imported_is_one_sentence(plugin: Path) -> None:
    with pytest.raises(RepshiftError, match=r"model family 'ghost' cannot be imported from no_such_package.ghost:part"):
        load(parts("models")["ghost"])
    with pytest.raises(RepshiftError, match=r"'retnet' cannot be imported from strange_parts.retnet: imported"):
        load(parts("models")["retnet"])


def test_a_part_with_a_syntax_error_is_still_listed(plugin: Path) -> None:
    (plugin / "retnet.py").write_text("def (:\n")
    assert parts("models")["retnet"].help.startswith("cannot be read: ")


def test_load_gives_the_module_or_the_attribute(plugin: Path) -> None:
    write = (plugin / "__init__.py").write_text
    write("def facts(*a): ...\ndef build(case): ...\nclass Named:\n    facts, build = facts, build\n")
    assert isinstance(load(Part("p", "models", "", "strange_parts")), ModuleType)
    named = load(Part("p", "models", "", "strange_parts:Named"))
    assert named.__name__ == "Named" and named.ALIASES == {}, "what the contract has a default for is there"


# --- contracts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [name for name, room in registry.ROOMS.items() if room.contract])
def test_the_parts_here_keep_their_contract(room: str) -> None:
    assert parts(room)
    for part in parts(room).values():
        load(part)


GOOD = {
    "models": "ALIASES = {'a': 1}\ndef facts(*given): ...\ndef build(case): ...\n",
    "attention": "from contextlib import nullcontext as session\nfrom repshift_cli.records import Offers\n"
    "OFFERS, OPS, KERNELS, attend = Offers({}), (), '', None\ndef unavailable(device): ...\n",
    "reduction": "OPTIONS = {'border': {'type': 'float', 'help': 'Border.'}}\ndef score(seen, case): ...\n",
    "counters": "LABEL, RANK = 'counter', 9\ndef unavailable(d): ...\ndef identity(): ...\ndef command(w, f): ...\n"
    "def collect(c, f, r): ...\ndef counting(d): ...\n",
}


NUMBERS = itertools.count()
"""Every module has a name of its own: what is imported once is not imported again."""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Loads a part of a room from source text, as another package's."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load_source(room: str, source: str) -> Any:
        name = f"strange_{room}_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        point = EntryPoint(name, name, f"repshift.{room}")
        monkeypatch.setattr(registry, "_entry_points", lambda wanted: [point] if wanted == room else ())
        parts.cache_clear()
        return load(parts(room)[name])

    yield load_source
    parts.cache_clear()


@pytest.mark.parametrize("room", GOOD)
def test_a_part_with_all_of_its_contract_is_loaded(loaded: Any, room: str) -> None:
    loaded(room, GOOD[room])


@pytest.mark.parametrize(
    ("room", "source", "said"),
    [
        ("models", "", r"it lacks facts, build \(see Family in repshift_cli.models\)$"),
        ("attention", "", "it lacks OFFERS, OPS, KERNELS, attend, session, unavailable "),
        ("reduction", "", "it lacks score or choose or reduce "),
        ("counters", "", "it lacks LABEL, RANK, unavailable, identity, command, collect, counting "),
        ("models", "ALIASES = ['a']\ndef build(case): ...", "it lacks facts .*; its ALIASES is list, not Mapping$"),
        ("models", GOOD["models"] + "build = 3", "used: its build is int, not Callable$"),
        ("attention", GOOD["attention"] + "OFFERS = {}", "used: its OFFERS is dict, not Offers$"),
        ("attention", GOOD["attention"] + "attend = 1", "used: its attend is int, not Callable or None$"),
        ("reduction", "score = 'high'", "used: its score is str, not Callable or None$"),
        (
            "reduction",
            GOOD["reduction"] + "OPTIONS = OPTIONS | {'more': OPTIONS['border']}",
            "OPTIONS cannot be read from the source",
        ),
        ("models", "1 / 0", "cannot be imported from strange_models_[0-9]+: division by zero$"),
    ],
)
def test_a_part_that_lacks_something_is_refused_in_one_sentence(loaded: Any, room: str, source: str, said: str) -> None:
    with pytest.raises(RepshiftError, match=said) as caught:
        loaded(room, source)
    assert str(caught.value).startswith(f"the {registry.ROOMS[room].what} 'strange_{room}_")
    assert "\n" not in str(caught.value)


def test_a_method_may_leave_out_what_has_a_default(loaded: Any) -> None:
    method = loaded("reduction", "def choose(tokens, count): ...\n")
    assert (method.OPTIONS, method.score, method.needs(None)) == ({}, None, ())


# --- the options of methods -------------------------------------------------------------------------------------------


REST = ["ahead", "early", "map", "margin", "pivots", "proportional", "sign", "tau_info", "tau_sim", "tau_size"]
OURS = ["operation", "distance", "form", *REST]


def options(loaded: Any, declared: str) -> dict[str, Option]:
    loaded("reduction", f"OPTIONS = {declared}\ndef score(seen, case): ...\n")
    return registry.options_of(next(p for name, p in parts("reduction").items() if name.startswith("strange")))


def test_options_are_read_from_the_source_without_importing() -> None:
    code = (
        "import sys; from repshift_cli import registry\n"
        "print(*registry.method_options())\n"
        "sys.exit(' '.join(m for m in sys.modules if m == 'torch' or m.startswith('repshift_cli.reduction')) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()[:3]) == (0, ["operation", "distance", "form"]), run.stderr


def test_a_methods_options_are_its_own_and_what_it_shares(loaded: Any) -> None:
    border = {"type": "float", "default": 0.75, "least": 0, "most": 1, "help": "Border."}
    found = options(loaded, repr({"border": border, "distance": "repshift"}))
    assert found["border"] == Option("border", "float", "Border.", 0.75, least=0, most=1)
    assert found["border"].text == "Border. (default: 0.75)"
    assert found["distance"].methods[:2] == ("lowest", "repshift") and len(found["distance"].methods) == 3
    assert list(registry.method_options()) == [*OURS[:3], *sorted(("border", *REST))]


def test_the_older_tuple_of_names_means_those_of_repshift(loaded: Any) -> None:
    assert list(options(loaded, "('distance', 'form')")) == ["distance", "form"]


def test_the_choices_of_operation_are_those_of_the_sites() -> None:
    assert registry.method_options()["operation"].choices == OPERATIONS


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"keep": {"type": "int", "help": ""}}, "'keep' is what every case has; call the option otherwise"),
        ({"Border": {"type": "int", "help": ""}}, "'Border' is no name for an option; write it in small letters"),
        ({"border": {"type": "int"}}, "border is declared by a dict with type, help and, where needed, default"),
        ({"border": {"type": "int", "help": "", "colour": 1}}, "border is declared by a dict"),
        ({"border": {"type": "complex", "help": ""}}, "border: type is one of str, int, float, bool"),
        ({"border": {"type": "float", "help": "", "default": 1}}, "border: 1 is no float"),
        ({"border": {"type": "int", "help": "", "default": True}}, "border: True is no int"),
        ({"border": {"type": "str", "help": "", "choices": ("a",), "default": "b"}}, "unknown value 'b'"),
        ({"border": {"type": "int", "help": "", "default": 7, "most": 3}}, "7 is too large; it must be at most 3"),
        ({"border": {"type": "int", "help": "", "least": "a"}}, "border: least and most are numbers"),
        ({"border": {"type": "int", "help": "", "choices": 3}}, "'int' object is not iterable"),
        ({"border": "no_such_method"}, "border is declared by a dict"),
        ({"border": "repshift"}, "border is declared by a dict"),
        ({"distance": {"type": "str", "help": "Mine."}}, "--distance is declared otherwise by lowest, repshift"),
        (("border",), "border is declared by a dict"),
        (3, "its OPTIONS is int, not Mapping or tuple"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_method_and_left_out(loaded: Any, declared: Any, said: str) -> None:
    with pytest.raises(RepshiftError, match=said):
        options(loaded, repr(declared))
    assert list(registry.method_options()) == OURS
    (part,) = (p for name, p in parts("reduction").items() if name.startswith("strange"))
    if isinstance(declared, dict):
        with pytest.raises(RepshiftError, match=said):
            registry.options_of(part)


def test_hyphen_and_underscore_are_alike() -> None:
    assert find("attention", "flash-attn2") is parts("attention")["flash_attn2"]


def test_an_unknown_name_gets_the_nearest_and_the_command() -> None:
    with pytest.raises(UsageError, match=r"unknown attention back end 'flsh': did you mean flash.*repshift backends"):
        find("attention", "flsh")
    with pytest.raises(UsageError, match=r"unknown pruning method 'qqq': `repshift methods` lists all"):
        find("reduction", "qqq")


def test_a_variant_is_a_back_end_with_or_without_a_method() -> None:
    backend, method = find_variant("efficient+random")
    assert (backend.name, method.name if method else None) == ("efficient", "random")
    assert find_variant("vanilla") == (parts("attention")["vanilla"], None)
    with pytest.raises(UsageError, match="pruning method 'shift'"):
        find_variant("flash+shift")


@pytest.mark.parametrize(
    ("name", "family"),
    [("deit_s", "vit"), ("hf:org/name", "hf"), ("hf:/a/b", "hf"), ("pack.mod:make", "own"), ("mod:a.b", "own")],
)
def test_models_resolve_to_their_family(name: str, family: str) -> None:
    assert resolve_model(name).name == family


@pytest.mark.parametrize("name", ["vit-b", "vit_x", "hf:", "a:", ":b", "a:b:c", "a/b:c", ""])
def test_an_unknown_model_is_refused_with_the_way_on(name: str) -> None:
    with pytest.raises(UsageError, match="repshift models"):
        resolve_model(name)


def test_an_unknown_model_gets_the_nearest_aliases() -> None:
    with pytest.raises(UsageError, match=r"did you mean vit_b"):
        resolve_model("vit-b")


def test_no_alias_belongs_to_two_families() -> None:
    names = [alias for part in parts("models").values() for alias in registry.family_aliases(part)]
    assert len(names) == len(set(names))
