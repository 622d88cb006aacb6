"""Tokens as pictures, drawn with Pillow: dropped ones grey, scores as a heat map, merged ones in colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from repshift_cli.records import UsageError
from repshift_cli.records.places import Cut, Picture, Shown
from repshift_cli.renderers.tokens.gallery import Gallery, counted, group_of, strengths

TILE, GAP, LINE, TEXT = 224, 10, 20, 13
"""The height of a picture, the room between two, the height of a line of words and their size, in points."""
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Viridis (van der Walt and Smith, CC0), from the lowest score to the highest."""
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (106, 81, 163))
"""Okabe and Ito's, told apart by the colour-blind."""
PAPER, INK, GONE = (255, 255, 255), (27, 31, 36), (235, 235, 235)
MILLISECONDS = 400


def check(gallery: Gallery) -> None:
    """UsageError where there is no picture to draw on."""
    if gallery.shown.words:
        raise UsageError("the input is text: name the output like tokens.html, or leave out --out for the terminal")
    if gallery.shown.grid is None:
        raise UsageError(
            f"the {gallery.shown.places} tokens are no grid over the input, so there is no picture; leave out --out"
        )


def sheets(gallery: Gallery) -> list[Any]:
    """One PIL image for each picture of the input, all cases and cuts on it: a row for what stayed, one for scores."""
    check(gallery)
    return [_sheet(gallery, number) for number in range(len(gallery.shown.pictures))]


def png(image: Any) -> bytes:
    """The image as a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def gif(images: Sequence[Any]) -> bytes:
    """The images one after the other, again and again."""
    out = io.BytesIO()
    first, *rest = [image.convert("P", palette=1) for image in images]
    first.save(out, "GIF", save_all=True, append_images=rest, duration=MILLISECONDS, loop=0)
    return out.getvalue()


def _sheet(gallery: Gallery, number: int) -> Any:
    from PIL import Image, ImageDraw

    picture = _image(gallery.shown.pictures[number])
    width, height = picture.size
    most = max(len(trace.cuts) for trace in gallery.traces)
    lines = [(trace, heat) for trace in gallery.traces for heat in (False, True) if not heat or _has_scores(trace.cuts)]
    size = (GAP + (width + GAP) * (most + 1), LINE + GAP + (height + LINE + GAP) * len(lines))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, GAP // 2), gallery.title, size[0])
    for i, (trace, heat) in enumerate(lines):
        y = LINE + GAP + (height + LINE + GAP) * i
        _write(draw, (GAP, y), f"{gallery.names[trace.case]}{', score' if heat else ''}", width + GAP)
        sheet.paste(picture, (GAP, y + LINE))
        for j, cut in enumerate(trace.cuts, start=1):
            x = GAP + (width + GAP) * j
            _write(draw, (x, y), f"score after block {cut.layer}" if heat else counted(cut, gallery.shown), width)
            drawn = heat_map(picture, cut, gallery.shown, number) if heat else kept(picture, cut, gallery.shown, number)
            sheet.paste(drawn, (x, y + LINE))
    return sheet


def _has_scores(cuts: Sequence[Cut]) -> bool:
    return any(cut.scores for cut in cuts)


def _write(draw: Any, at: tuple[int, int], words: str, room: int) -> None:
    """Words at a place, cut off where they would leave their room."""
    from PIL import ImageFont

    font = ImageFont.load_default(TEXT)
    while words and draw.textlength(words, font) > room:
        words = words[:-1]
    draw.text(at, words, INK, font)


def _image(picture: Picture) -> Any:
    """The picture, as tall as a tile; small ones in whole steps, so that their pixels stay what they are."""
    from PIL import Image

    image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
    times = TILE / picture.height
    times = max(1, round(times)) if times > 1 else times
    return image.resize((round(picture.width * times), round(picture.height * times)), Image.Resampling.NEAREST)


def _boxes(image: Any, shown: Shown, number: int) -> dict[int, tuple[int, int, int, int]]:
    """The box of each place that this picture shows: a moment stands for as many pictures."""
    assert shown.grid is not None
    moments, rows, columns = shown.grid
    moment = number * moments // len(shown.pictures)
    own = shown.cells[moment * rows * columns : (moment + 1) * rows * columns]
    width, height = image.size
    return {
        place: (
            i % columns * width // columns,
            i // columns * height // rows,
            (i % columns + 1) * width // columns,
            (i // columns + 1) * height // rows,
        )
        for i, place in enumerate(own)
    }


def kept(image: Any, cut: Cut, shown: Shown, number: int = 0) -> Any:
    """The picture with the places that are gone in grey, and merged ones framed in the colour of their group."""
    from PIL import Image, ImageDraw

    grey = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, GONE), 0.8)
    out, groups = image.copy(), group_of(cut)
    draw = ImageDraw.Draw(out)
    for place, box in _boxes(image, shown, number).items():
        if place in groups:
            tint = Image.new("RGB", image.size, COLOURS[groups[place] % len(COLOURS)])
            out.paste(Image.blend(image.crop(box), tint.crop(box), 0.55), box)
            draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=COLOURS[groups[place] % len(COLOURS)])
        elif place not in cut.kept:
            out.paste(grey.crop(box), box)
    return out


def heat_map(image: Any, cut: Cut, shown: Shown, number: int = 0) -> Any:
    """The scores that the cut was made by over a pale picture; what was gone before is blank."""
    from PIL import Image

    pale, told = image.convert("L").convert("RGB"), strengths(cut)
    out = Image.new("RGB", image.size, GONE)
    for place, box in _boxes(image, shown, number).items():
        if place in told:
            size = (box[2] - box[0], box[3] - box[1])
            out.paste(Image.blend(pale.crop(box), Image.new("RGB", size, colour(told[place])), 0.75), box)
    return out


def colour(strength: float) -> tuple[int, int, int]:
    """The colour of a score from 0 to 1."""
    at = min(max(strength, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    red, green, blue = (round(a + (b - a) * (at - low)) for a, b in zip(SCALE[low], SCALE[low + 1], strict=True))
    return red, green, blue
