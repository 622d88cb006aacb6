"""The page in a real browser: headless Chromium, driven by Playwright; skipped with the reason where there is none.

`REPSHIFT_CHROMIUM` names the browser's program where it is not found by one of its usual names.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from html_page import SCRIPT, poisoned
from html_page import page_of as report_of
from PIL import Image
from synthetic import small_run, sweep_run
from test_report import everything_poisoned, outcome
from test_tokens import GALLERY

from repshift_cli.records import Run
from repshift_cli.records.json_codec import from_plain, to_json
from repshift_cli.renderers import document_of
from repshift_cli.renderers.page import embedded
from repshift_cli.renderers.page.page import page as page_of
from repshift_cli.renderers.sheets.gate import document_of as document_of_gate
from repshift_cli.renderers.tokens.page import page as tokens_page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
sync_api = pytest.importorskip("playwright.sync_api", reason="the package 'playwright' is not installed")
CHROMIUM = os.environ.get("REPSHIFT_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(PROGRAMS)} is installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page that is open, with whatever it complained of."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str) -> None:
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.asked: list[str] = []
        self.page.goto(file.as_uri())

    def all(self, query: str, attribute: str) -> list[str | None]:
        found: list[str | None] = self.page.eval_on_selector_all(
            query, "(found, name) => found.map(e => e.getAttribute(name))", attribute
        )
        return found

    def column(self, number: int) -> list[str]:
        """The texts of a column of the main table, of the rows that can be seen."""
        query = f"table.main tbody tr:not([hidden]) > :nth-child({number})"
        texts: list[str] = self.page.locator(query).all_inner_texts()
        return texts

    def download(self, query: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.page.locator(query).first.click()
        return Path(waiting.value.path()).read_bytes()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    pages = []

    def show(content: Run | str, width: int = 1280, scheme: str = "light") -> Opened:
        text = content if isinstance(content, str) else page_of([document_of(content)], "a report")
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        pages.append(Opened(browser, tmp_path / "page.html", width, scheme))
        return pages[-1]

    yield show
    for one in pages:
        one.page.close()
        assert one.complaints == [], "the console stays empty"
        assert all(url.startswith(("file:", "data:", "blob:")) for url in one.asked), "nothing is asked for outside"


def nameless(shown: Opened) -> int:
    """How many things a screen reader would have no name for."""
    named = "all => all.filter(e => !(e.getAttribute('aria-label') || e.textContent).trim()).length"
    count: int = shown.page.eval_on_selector_all("button, summary, svg, th", named)
    return count


def unlabelled(shown: Opened) -> int:
    """How many fields have no label."""
    count: int = shown.page.eval_on_selector_all("input, select", "all => all.filter(e => !e.labels.length).length")
    return count


def many(count: int) -> Run:
    """The small run again and again, batch by batch, each latency its own."""
    run = small_run()
    records = [replace(r, case=replace(r.case, batch=b)) for b in range(1, 1 + -(-count // 5)) for r in run.records]
    return replace(run, planned=(), records=tuple(records[:count]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_its_window_and_every_chart_is_drawn(opened: Any, width: int, scheme: str) -> None:
    shown = opened(sweep_run(), width, scheme)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = shown.page.eval_on_selector_all(
        "svg", "all => all.map(s => s.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert len(sizes) > 6 and all(wide > 300 and high > 50 for wide, high in sizes)
    ink, paper = shown.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert ("255, 255, 255" in paper) == (scheme == "light") and ink != paper


def test_bars_are_as_long_as_the_runs_figures(opened: Any) -> None:
    shown = opened(small_run())
    bars = "figure:has(svg[aria-label='Latency']) rect.bar"
    values = [float(v or 0) for v in shown.all(bars, "data-value")]
    widths = [float(v or 0) for v in shown.all(bars, "width")]
    assert [round(v, 1) for v in values] == pytest.approx([142.7, 142.4, 105.6], abs=0.6)
    assert [w / widths[0] for w in widths] == pytest.approx([v / values[0] for v in values], rel=1e-3)


def test_headings_sort_by_value_also_from_the_keyboard(opened: Any) -> None:
    shown = opened(small_run())
    heading = shown.page.locator("thead button", has_text="latency")
    heading.focus()
    shown.page.keyboard.press("Enter")
    assert shown.column(1)[:3] == ["flash+repshift", "flash", "vanilla"]
    assert shown.page.locator("th[aria-sort=ascending]").inner_text().startswith("latency")
    heading.click()
    assert shown.column(1)[:3] == ["vanilla", "flash", "flash+repshift"], "what has no figure stays last"
    shown.page.locator("thead button", has_text="variant").click()
    assert shown.column(1) == sorted(shown.column(1))


def test_filters_hide_rows_and_pale_their_marks(opened: Any) -> None:
    shown = opened(sweep_run())
    shown.page.get_by_label("model").select_option("umt_b")
    shown.page.get_by_label("filter by words").first.fill("graph REPSHIFT")
    assert set(shown.column(1)) == {"umt_b"} and len(shown.column(1)) == 2
    assert shown.page.locator("output").first.inner_text() == "2 of 19 cases"
    faded = shown.page.locator("svg [data-case].off").count()
    assert 0 < faded < shown.page.locator("svg [data-case]").count()
    shown.page.get_by_label("filter by words").first.fill("nothing like it")
    assert shown.column(1) == []
    shown.page.get_by_label("filter by words").first.fill("")
    shown.page.get_by_label("model").select_option("")
    assert shown.page.locator("svg [data-case].off").count() == 0 and len(shown.column(1)) == 19


def test_other_tables_of_many_rows_are_filtered_by_words_too(opened: Any) -> None:
    found = outcome()
    several = tuple(replace(f, label=f"latency {i}") for i in range(14) for f in found.findings)
    shown = opened(page_of([document_of_gate(replace(found, findings=several))], "a gate"))
    shown.page.get_by_label("filter by words").first.fill("latency 13")
    assert shown.page.locator("tbody tr:not([hidden])").first.inner_text().startswith("vanilla")
    assert shown.page.locator("output").first.inner_text() == "1 of 14 rows"


def test_of_many_rows_the_first_stand_open_until_all_are_asked_for(opened: Any) -> None:
    shown = opened(many(260))
    assert len(shown.column(1)) == 200
    shown.page.get_by_label("filter by words").first.fill("flash+random")
    assert len(shown.column(1)) == 52
    shown.page.get_by_label("filter by words").first.fill("")
    shown.page.get_by_role("button", name="show all 260 rows").click()
    assert len(shown.column(1)) == 260


def test_a_point_says_what_it_is(opened: Any) -> None:
    shown = opened(sweep_run())
    shown.page.locator("figure").nth(2).locator(".dot[data-case]").last.hover()
    assert "vs flash" in shown.page.locator("#tip").inner_text()
    shown.page.locator("h1").hover()
    assert not shown.page.locator("#tip").is_visible()


def test_charts_are_saved_as_files_of_their_own(opened: Any) -> None:
    shown = opened(small_run())
    drawing = ElementTree.fromstring(shown.download("[data-download=svg]"))
    bar = next(e for e in drawing.iter("{http://www.w3.org/2000/svg}rect") if "data-value" in e.attrib)
    assert "fill: rgb(" in bar.attrib["style"] and "class" not in bar.attrib
    with Image.open(io.BytesIO(shown.download("[data-download=png]"))) as image:
        assert image.width == 1280 and len(image.convert("RGB").getcolors(1 << 20) or []) > 5


@pytest.mark.parametrize("longest", [10**9, 0], ids=["plain", "packed"])
def test_the_data_are_saved_as_the_run_that_they_are(
    opened: Any, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    monkeypatch.setattr(embedded, "LONGEST_PLAIN", longest)
    run = from_plain(Run, json.loads(poisoned(small_run())))
    shown = opened(run)
    assert json.loads(shown.download("[data-save]")) == json.loads(to_json(run))


def test_texts_of_every_kind_of_file_stay_texts(opened: Any, tmp_path: Path) -> None:
    """Code stands behind every text of a file of each kind."""
    text, _ = report_of(tmp_path, *everything_poisoned())
    shown = opened(text, 400)
    assert shown.page.evaluate("window.stolen") is None and shown.page.locator("img").count() == 0
    assert shown.page.locator("svg").count() > 30
    assert SCRIPT.split("\u202e")[0] in shown.page.locator("body").inner_text()
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert nameless(shown) == 0 and unlabelled(shown) == 0
    shown.page.locator("#source-0").get_by_label("filter by words").fill("repshift")
    shown.page.locator("#source-6 thead button", has_text="vs unpruned").first.click()
    shown.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.stolen = 2'}))"
    )
    assert shown.page.evaluate("window.stolen") is None, "no script but the page's own runs"
    assert "Content Security Policy" in shown.complaints.pop()


def test_on_paper_there_are_no_controls_and_dark_becomes_light(opened: Any) -> None:
    shown = opened(small_run(), scheme="dark")
    shown.page.emulate_media(media="print", color_scheme="dark")
    assert not shown.page.locator("form.filters").is_visible() and not shown.page.locator(".tools").first.is_visible()
    assert shown.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.page.pdf()[:5] == b"%PDF-"


def test_a_screen_reader_finds_names_for_all_that_is_there(opened: Any) -> None:
    shown = opened(sweep_run())
    assert nameless(shown) == 0 and unlabelled(shown) == 0
    shown.page.locator("figure summary").first.click()
    assert shown.page.locator("figure details table").first.is_visible()


def test_the_page_of_tokens_shows_its_picture(opened: Any) -> None:
    shown = opened(str(tokens_page(GALLERY)))
    assert shown.page.evaluate("document.querySelector('img').naturalWidth") > 100
