"""Workload profiles: the shipped ones parse, and a broken one is told by file, line and key."""

from pathlib import Path

import pytest

from repshift_cli.records import UsageError
from repshift_cli.registry import find_variant, parts, resolve_model
from repshift_cli.sweep.axes import Axes, merge
from repshift_cli.sweep.operators import OperatorAxes
from repshift_cli.sweep.profiles import load_profile, shipped_profiles, sweep_of


def axes_of(name: str) -> Axes:
    return Axes.from_options(merge(load_profile(name), {}))


def test_the_promised_profiles_ship() -> None:
    papers = {"paper-deit", "paper-retrieval", "paper-qa", "paper-vim"}
    assert {"quick", "break-even", *papers, "keep-sweep", "layer-sweep", "ci"} <= set(shipped_profiles())


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_shipped_profile_names_only_what_is_here(name: str) -> None:
    axes = sweep_of(load_profile(name), {})
    if isinstance(axes, OperatorAxes):
        assert set(axes.operator) <= set(parts("operators"))
        return
    assert [resolve_model(model).name for model in axes.model]
    assert [find_variant(variant) for variant in axes.variant]


def test_paper_deit_is_table_5() -> None:
    axes = axes_of("paper-deit")
    assert (axes.model, axes.batch, axes.keep) == (("deit_t", "deit_s", "deit_b"), (512,), (0.8,))
    assert axes.layers == ((1, 4, 7),)


@pytest.mark.parametrize(("name", "keep"), [("paper-retrieval", 0.8), ("paper-qa", 0.9)])
def test_the_papers_video_tables_2_and_4(name: str, keep: float) -> None:
    axes = axes_of(name)
    assert (axes.model, axes.batch, axes.frames) == (("umt_b", "umt_l"), (20,), (12,))
    assert (axes.keep, axes.layers) == ((keep,), ((1, 2, 3),))


def test_paper_vim_is_table_7() -> None:
    axes = axes_of("paper-vim")
    assert (axes.model, axes.keep, axes.layers) == (("vim_t",), (0.8,), ((10, 20),))


@pytest.mark.parametrize(("name", "command"), [("operators", "bench"), ("ci", "operators")])
def test_a_profile_of_another_command_is_refused(name: str, command: str) -> None:
    with pytest.raises(UsageError, match=f"not of `repshift {command}`"):
        load_profile(name, command)


def test_a_profile_of_operators_is_read_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "x"\noperator = ["flash"]\nkeep = 0.5\n')
    with pytest.raises(UsageError, match=r"mine.toml:3: keep: unknown option; .*kv_heads"):
        load_profile(str(path))
    path.write_text('title = "x"\noperator = ["flash"]\ntokens = "1k:4k:x2"\n')
    assert sweep_of(load_profile(str(path)), {"batch": "2"}) == OperatorAxes(
        operator=("flash",), tokens=(1024, 2048, 4096), batch=(2,)
    )


def test_a_range_in_a_profile_is_the_command_lines() -> None:
    assert axes_of("keep-sweep").keep == (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def test_thresholds_are_kept_and_stay_out_of_the_options(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "x"\nimage-size = 64\n[thresholds]\nspeedup_vs_flash = 1.1\n')
    profile = load_profile(str(path))
    assert profile == {"title": "x", "image_size": 64, "thresholds": {"speedup_vs_flash": 1.1}}
    assert merge(profile, {}) == {"image_size": 64}


@pytest.mark.parametrize(
    ("text", "place", "sentence"),
    [
        ('title = "x"\nkeep = 0.5.5\n', ":2: keep", "malformed TOML"),
        ('title = "x"\nkeep = [0.5,\n  oops]\n', ":3: keep", "malformed TOML"),
        ('title = "x"\nkeep = [0.5,\n', ":2: keep", "malformed TOML"),
        ('title = "x"\nnonsense\n', ":2: nonsense", "malformed TOML"),
        ('title = "x"\ntitle = "y"\n', ":2: title", "malformed TOML"),
        ("[thresholds\na = 1\n", ":1: [thresholds", "malformed TOML"),
        ("nonsense\n", ":1: nonsense", "malformed TOML"),
        ('title = "x"\n\nkep = 0.5\n', ":3: kep", "did you mean keep"),
        ('title = "x"\n"keep" = 1.5\n', ":2: keep", "outside"),
        ('title = "x"\nlayers = [1, 4]\n', ":2: layers", "a list of schedules"),
        ('title = "x"\nimage-size = 32\nimage_size = 64\n', ":3: image_size", "is written twice"),
        ('title = "x"\n[keep]\na = 1\n', ":2: keep", "neither text nor a number"),
        ('title = "x"\nthresholds = 1\n', ":2: thresholds", r"write it as \[thresholds\]"),
        ("keep = 0.5\n", ":1: title", "missing"),
        ("title = 3\n", ":1: title", "is not a text"),
        ("", ":1: title", "missing"),
    ],
)
def test_a_bad_profile_is_told_by_file_line_and_key(tmp_path: Path, text: str, place: str, sentence: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=sentence) as caught:
        load_profile(str(path))
    assert str(caught.value).startswith(f"{path}{place}: ")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        load_profile(str(tmp_path / "binary.toml"))
    with pytest.raises(UsageError, match="No such file"):
        load_profile(str(tmp_path / "absent.toml"))


def test_an_unknown_profile_gets_the_nearest_names() -> None:
    with pytest.raises(UsageError, match=r"did you mean paper-deit.*repshift profiles"):
        load_profile("paper-diet")
