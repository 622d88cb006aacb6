"""Tokens as a page: pictures with what they show in words, or sentences with what was dropped struck out."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from repshift_cli.records.places import Cut, Shown, Trace
from repshift_cli.renderers.page.markup import Markup, tag
from repshift_cli.renderers.page.page import whole
from repshift_cli.renderers.tokens import picture
from repshift_cli.renderers.tokens.gallery import Gallery, counted, spaced, strengths


def page(gallery: Gallery) -> Markup:
    """One self-contained page."""
    body = [tag("p", gallery.title, class_="header")]
    if gallery.shown.words:
        body += [_sentences(trace, gallery) for trace in gallery.traces]
    else:
        body.append(_pictures(gallery))
    return whole("repshift tokens", body)


def _sentences(trace: Trace, gallery: Gallery) -> Markup:
    lines = (
        (tag("h3", counted(cut, gallery.shown)), tag("p", *_words(cut, gallery.shown), class_="words"))
        for cut in trace.cuts
    )
    return tag("section", tag("h2", gallery.names[trace.case]), *lines)


def _words(cut: Cut, shown: Shown) -> Iterator[Markup]:
    """Each word, struck out where it was dropped; the higher its score, the deeper the line under it."""
    told = strengths(cut)
    for place, word in enumerate(spaced(shown.words)):
        strength = told.get(place)
        depth = None if strength is None else f"--score:{strength:.2f}"
        tip = None if strength is None else f"score {cut.scores[place]:.4g}"
        yield tag("span" if place in cut.kept else "del", word, style=depth, data_tip=tip)


def _pictures(gallery: Gallery) -> Markup:
    sheets = picture.sheets(gallery)
    moving = len(sheets) > 1
    data = base64.b64encode(picture.gif(sheets) if moving else picture.png(sheets[0])).decode()
    told = "; ".join(
        f"{gallery.names[trace.case]}: {', '.join(counted(cut, gallery.shown) for cut in trace.cuts)}"
        for trace in gallery.traces
    )
    image = tag("img", src=f"data:image/{'gif' if moving else 'png'};base64,{data}", alt=told)
    said = "grey: dropped; the heat maps show the scores by which it was cut, from low (violet) to high (yellow)"
    return tag("figure", tag("div", image, class_="drawing"), tag("figcaption", f"{told}. {said}"))
