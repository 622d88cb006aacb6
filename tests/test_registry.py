"""Parts are found by file name and by entry point, and nothing is imported to list them."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

from repshift_cli import registry
from repshift_cli.records import RepshiftError, UsageError
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
    assert list(parts("reduction")["repshift"].constants["OPTIONS"]) == ["operation", "distance", "form"]
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


def test_load_gives_the_module_or_the_attribute() -> None:
    assert isinstance(load(Part("decoder", "models", "", "json.decoder")), ModuleType)
    assert load(Part("loads", "models", "", "json:loads.__name__")) == "loads"


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
