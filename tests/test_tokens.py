"""`repshift tokens`: the places shown are those that stayed in a forward, and they are shown where they were."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from tiny import case, one_thread, pixels, roughen, subject  # noqa: F401
from torch import Tensor

from repshift_cli.benchmark import builder, places
from repshift_cli.cli import run as repshift
from repshift_cli.records import Case, UsageError
from repshift_cli.records.places import Cut, Picture, Shown, Trace
from repshift_cli.renderers.tokens import page, picture, terminal
from repshift_cli.renderers.tokens.gallery import Gallery, group_of, spaced, strengths

VIT = case(model="vit_t", image_size=32, batch=1, attention="flash", pruning="repshift", keep=0.5, layers=(1, 2))


def vit() -> Any:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    module = roughen(ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8, hidden_act="gelu")).float())
    return subject(module, {"pixel_values": pixels(1, 3, 32, 32).float()})


def scoring(*told: list[float]) -> Any:
    """A method whose scores are given, cut by cut."""
    left = list(told)

    def score(seen: dict[str, Tensor], case: Case) -> Tensor:
        return torch.tensor([left.pop(0)])

    return SimpleNamespace(needs=lambda case: ("resid_mid", "mlp_out"), score=score, choose=None)


# --- what stayed ------------------------------------------------------------------------------------------------------


def test_places_and_scores_are_traced_back_through_two_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 patches behind a class token. The first cut keeps the 8 last, the second the 4 first of these."""
    rising, falling = [float(i) for i in range(16)], [float(-i) for i in range(8)]
    monkeypatch.setattr(builder, "_method", lambda name: scoring(rising, falling))
    trace, shown = places.traced(VIT, vit())
    first, second = trace.cuts
    assert (first.layer, first.there, first.kept) == (1, frozenset(range(17)), frozenset({0, *range(9, 17)}))
    assert first.scores == {place: float(place - 1) for place in range(1, 17)}
    assert (second.there, second.kept) == (first.kept, frozenset({0, 9, 10, 11, 12}))
    assert second.scores == {place: float(9 - place) for place in range(9, 17)}
    assert (shown.places, shown.grid, shown.cells) == (17, (1, 4, 4), tuple(range(1, 17)))


def test_merged_places_are_told_with_the_one_that_stands_for_them() -> None:
    """Two rows stay of five places and one is appended: 1 took 3, 4 was dropped, the appended one (of 0) is nowhere."""
    assert places.merged([2, 1, -1], [2, 1, 0, 1, -1]) == ((1, 3),)


def test_every_place_of_a_merging_method_is_in_a_token() -> None:
    trace, _ = places.traced(replace(VIT, pruning="tome", options=(("proportional", "off"),)), vit())
    for cut in trace.cuts:
        alone = cut.kept - {group[0] for group in cut.groups}
        told = [place for group in cut.groups for place in group]
        assert {group[0] for group in cut.groups} <= cut.kept and len(told) == len(set(told))
        assert alone | set(told) == set(range(17))
    assert len(trace.cuts[0].kept) == 9 and len(trace.cuts[1].kept) == 5


def test_what_chooses_without_looking_has_no_scores() -> None:
    trace, _ = places.traced(replace(VIT, pruning="oracle", options=()), vit())
    assert trace.cuts[1].kept == frozenset(range(5)) and all(cut.scores == {} for cut in trace.cuts)


def test_rows_and_columns_of_a_cnn_are_traced_back_to_its_first_stage() -> None:
    """The oracle keeps the first lines: 11 of 16, then 4 of the 6 into which the next stage's strides make 11."""
    cnn = case(model="resnet18", image_size=64, batch=1, attention="none", removal="line")
    cnn = replace(cnn, pruning="oracle", keep=0.5, layers=(1, 2))
    trace, shown = places.traced(cnn, builder.StepBuilder("cpu").subject(cnn))
    first, second = trace.cuts
    assert shown.grid == (1, 16, 16)
    assert first.kept == {16 * row + column for row in range(11) for column in range(11)}
    assert second.kept == {16 * row + column for row in range(8) for column in range(8)}
    assert second.there == first.kept


def test_cells_of_a_coarser_grid_cover_what_they_were_made_of() -> None:
    cells = [(i,) for i in range(12)]
    assert places.covering(cells, (4, 3), (2, 3)) == [(0, 3), (1, 4), (2, 5), (6, 9), (7, 10), (8, 11)]
    assert places.covering(cells[:3], (1, 3), (1, 2)) == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("cells", "frames", "size", "grid"),
    [
        (196, 1, (224, 224), (1, 14, 14)),
        (12 * 196, 12, (224, 224), (12, 14, 14)),
        (8 * 196, 16, (224, 224), (8, 14, 14)),
        (8, 1, (32, 64), (1, 2, 4)),
        (197, 1, (224, 224), None),
        (15, 1, (32, 32), None),
    ],
)
def test_the_grid_that_so_many_places_make(
    cells: int, frames: int, size: tuple[int, int], grid: tuple[int, int, int] | None
) -> None:
    assert places.grid_of(cells, frames, *size) == grid


def test_a_sentence_keeps_its_ends_and_names_its_tokens() -> None:
    text = case(model="minilm", length=12, batch=1, attention="flash", pruning="repshift", keep=0.5, layers=(1, 3))
    trace, shown = places.traced(text, builder.StepBuilder("cpu").subject(text))
    assert len(shown.words) == 12 and shown.words[0].startswith("#")
    assert [len(cut.kept) for cut in trace.cuts] == [7, 5] and all({0, 11} <= cut.kept for cut in trace.cuts)
    assert set(trace.cuts[1].scores) == trace.cuts[0].kept


# --- what is shown ----------------------------------------------------------------------------------------------------


def drawn_case(name: str = "repshift") -> Case:
    return replace(VIT, pruning=name)


CHECKERED = Picture(4, 4, bytes(v for i in range(16) for v in ((200, 30, 30) if i % 2 else (30, 30, 200))))
SHOWN = Shown(5, (1, 2, 2), (1, 2, 3, 4), (CHECKERED,))
CUT = Cut(1, frozenset(range(5)), frozenset({0, 1, 4}), {1: 2.0, 2: 0.0, 3: 1.0, 4: float("inf")})
GALLERY = Gallery("a <b>title</b>", SHOWN, (Trace(drawn_case(), (CUT,)), Trace(drawn_case("random"), (CUT,))))


def test_what_stays_keeps_its_colours_and_what_goes_turns_grey() -> None:
    image = Image.frombytes("RGB", (4, 4), CHECKERED.rgb)
    out = picture.kept(image, CUT, SHOWN)
    stays, goes = [(0, 0), (1, 1), (2, 2), (3, 3)], [(2, 0), (3, 1), (0, 2), (1, 3)]
    assert all(out.getpixel(at) == image.getpixel(at) for at in stays)
    assert all(len(set(out.getpixel(at))) == 1 for at in goes)


def test_the_highest_score_is_yellow_and_what_is_gone_is_blank() -> None:
    image = Image.new("RGB", (4, 4), (128, 128, 128))
    later = Cut(2, frozenset({0, 1, 4}), frozenset({0, 1}), {1: 5.0, 4: 1.0})
    out = picture.heat_map(image, later, SHOWN)
    high, low, gone = out.getpixel((0, 0)), out.getpixel((3, 3)), out.getpixel((3, 0))
    assert high[0] > 200 > high[2] and low[2] > low[1] and gone == picture.GONE
    assert strengths(CUT) == {1: 1.0, 2: 0.0, 3: 0.5, 4: 1.0}


def test_merged_places_have_the_colour_of_their_group() -> None:
    merged = replace(CUT, groups=((1, 2), (4, 3)))
    out = picture.kept(Image.new("RGB", (4, 4), (128, 128, 128)), merged, SHOWN)
    assert group_of(merged) == {1: 0, 2: 0, 4: 1, 3: 1}
    assert out.getpixel((0, 0)) == out.getpixel((3, 0)) != out.getpixel((0, 3))


def test_a_clip_has_a_picture_for_each_frame_and_moves() -> None:
    clip = Shown(9, (2, 2, 2), tuple(range(1, 9)), (CHECKERED,) * 4)
    early = Cut(1, frozenset(range(9)), frozenset({0, 1, 2, 3, 4}))
    gallery = Gallery("clip", clip, (Trace(drawn_case(), (early,)),))
    sheets = picture.sheets(gallery)
    assert len(sheets) == 4 and sheets[0].tobytes() == sheets[1].tobytes() != sheets[2].tobytes()
    with Image.open(io.BytesIO(picture.gif(sheets))) as moving:
        assert moving.format == "GIF" and getattr(moving, "n_frames", 1) > 1


WORDS = Shown(5, words=("[CLS]", "play", "##ing", "<b>bold</b>", "[SEP]"))
SENTENCE = Gallery("text", WORDS, (Trace(drawn_case(), (Cut(3, frozenset(range(5)), frozenset({0, 1, 4})),)),))


def printed(gallery: Gallery, **console: Any) -> str:
    out = io.StringIO()
    terminal.render(gallery, out, Console(file=out, width=80, highlight=False, **console))
    return out.getvalue()


def test_dropped_words_are_struck_out_or_between_tildes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "[CLS] play~~ing~~ ~~<b>bold</b>~~ [SEP]" in printed(SENTENCE)
    assert re.search(r"\x1b\[2;9ming", printed(SENTENCE, force_terminal=True, color_system="standard"))
    assert "after block 3: 3 of 5" in printed(SENTENCE)


def test_words_are_put_together_as_their_tokenizer_says() -> None:
    assert "".join(spaced(("a", "##b", "c"))) == "ab c"
    assert "".join(spaced(("The", " cat", "s"))) == "The cats"
    assert spaced(()) == []


def test_a_grid_in_the_terminal_shows_what_stayed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "█·\n    ·█" in printed(GALLERY)
    monkeypatch.setenv("LC_ALL", "C")
    assert printed(GALLERY).isascii() and "#.\n    .#" in printed(GALLERY)


def test_the_page_of_a_sentence_strikes_out_and_escapes() -> None:
    html = page.page(SENTENCE)
    assert re.findall(r"<del[^>]*>(.*?)</del>", html) == ["ing", " &lt;b&gt;bold&lt;/b&gt;"]


def test_the_page_of_a_picture_holds_it_and_says_it_in_words() -> None:
    html = page.page(GALLERY)
    assert 'src="data:image/png;base64,' in html and "<b>" not in html
    assert 'alt="flash+repshift: after block 1: 3 of 5; flash+random: after block 1: 3 of 5"' in html


@pytest.mark.parametrize(("shown", "words"), [(WORDS, "the input is text"), (Shown(7), "no grid over the input")])
def test_no_picture_of_what_is_none(shown: Shown, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        picture.sheets(replace(GALLERY, shown=shown))


# --- the command ------------------------------------------------------------------------------------------------------

SMALL = ["tokens", "--model", "vit_t", "--image-size", "32", "--keep", "0.5", "--layers", "1", "--device", "cpu"]


def test_a_photo_becomes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (60, 40), (10, 120, 200)).save(tmp_path / "photo.png")
    out = tmp_path / "tokens.png"
    given = ["--data", str(tmp_path / "photo.png"), "--variant", "flash+repshift,flash+stride", "--out", str(out)]
    assert repshift([*SMALL, *given], debug=True) == 0
    assert "flash+stride\n  after block 1: 3 of 5" in capsys.readouterr().out
    with Image.open(out) as image:
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert (10, 120, 200) in colours and picture.INK in colours


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "tokens.jpg"], "is none of .png, .gif, .html"),
        (["--variant", "flash"], "no variant prunes"),
        (["--out", "tokens.gif"], "a still image does not move"),
        (["--layers", "99"], "layers 99 is beyond"),
        (["--image-size", "32,64"], "one model and one input at a time"),
        (["--data", "none.png"], "no such file or folder"),
    ],
)
def test_refused_in_a_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert repshift([*SMALL, *arguments], debug=False) == 2
    assert words in capsys.readouterr().err
