"""The page from a run, a profile, a gate and a history: what stands in it, what never does, and who is refused."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from generated import commands
from synthetic import CUDA, ON_CUDA, exact, ran, small_run, sweep_run, times

from repshift_cli.analysis.comparison import between
from repshift_cli.analysis.history import Point as At
from repshift_cli.analysis.history import Series, Step
from repshift_cli.analysis.pareto import front
from repshift_cli.analysis.roofline import ceilings, working
from repshift_cli.cli import run as repshift
from repshift_cli.gate.verdict import Outcome
from repshift_cli.records import Measurement, Run, store
from repshift_cli.records.json_codec import to_json, to_plain
from repshift_cli.renderers.figures import of_run
from repshift_cli.renderers.figures.measured import Measured
from repshift_cli.renderers.figures.shapes import Bars, Heat, Plane, Samples, drift, number
from repshift_cli.renderers.page import embedded, scales
from repshift_cli.renderers.page.command import command_of
from repshift_cli.renderers.page.markup import Markup, tag
from repshift_cli.renderers.sheets.gate import document_of as document_of_gate

ROOT = Path(__file__).parent.parent
BASELINES = ROOT / "profiles" / "baselines" / "cpu"
PROFILE = Path(__file__).parent / "data" / "profile-schema-2.json"
SCRIPT = "<script>window.stolen = 1</script>\"'&"


class Page(HTMLParser):
    """Every element's name and attributes, the text of scripts by their id, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.words: list[str] = []
        self._inside: str | None = None
        self.feed(text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        self._inside = name
        if name == "script":
            self.scripts.append((dict(attributes).get("id"), ""))

    def handle_endtag(self, name: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.words.append(data)

    def titles(self) -> list[str]:
        return [a["aria-label"] or "" for name, a in self.tags if name == "svg"]


def page_of(tmp_path: Path, *contents: Run | str, name: str = "run") -> tuple[str, Page]:
    files = []
    for i, content in enumerate(contents):
        files.append(tmp_path / f"{name}{i}.json")
        files[-1].write_text(content if isinstance(content, str) else to_json(content), encoding="utf-8")
    out = tmp_path / "report.html"
    assert repshift(["report", *map(str, files), "--out", str(out)], debug=True) == 0
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


def hostile(run: Run) -> Run:
    """The run with a model, a warning and a reason that would be code, were they not escaped."""
    cases = {case: replace(case, model=SCRIPT) for case in run.planned}
    records = tuple(replace(r, case=cases[r.case], warnings=(SCRIPT,)) for r in run.records)
    return replace(run, planned=tuple(cases.values()), records=records, warnings=(SCRIPT,), options={"model": [SCRIPT]})


# --- what stands in it ------------------------------------------------------------------------------------------------


def test_a_run_has_what_it_measured_and_nothing_else(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, small_run())
    assert page.titles() == [
        "Speed-up: vs flash",
        "Latency: latency",
        "Tokens along the depth",
        "HBM traffic of a forward",
        "Memory",
        "Roofline",
        "Raw samples: latency",
    ]
    assert "5 of 5 cases" in page.words
    assert "failed" in page.words and any("CUDA out of memory" in words for words in page.words)
    assert "repshift bench --models vit_b --keep 0.6 --budget 20.0" in page.words


def test_a_sweep_has_its_maps_and_its_trade_off(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, sweep_run())
    assert any(title.startswith("vs flash against cosine (umt_b") for title in page.titles())
    assert any("by keep and layers" in title for title in page.titles())


def test_a_profile_has_its_time_by_part_and_by_block(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, PROFILE.read_text(encoding="utf-8"))
    assert page.titles()[0] == "Time by part"
    assert sum(title.startswith("Time by block") for title in page.titles()) == 2


def outcome() -> Outcome:
    """A gate that fails by one latency."""
    run = small_run()
    latency = run.records[0].measurement("latency")
    assert latency is not None
    slower = replace(latency, samples=tuple(1.05 * s for s in latency.samples))
    found = replace(between(run.records[0].case, latency, slower, 0.01), verdict="fail", delta=0.01)
    return Outcome("main <b>", "head", (found,), (), ("a note",), 20)


def test_a_gate_has_its_sentence_and_its_changes(tmp_path: Path) -> None:
    plain = {**document_of_gate(outcome()).summary, **to_plain(outcome())}
    _, page = page_of(tmp_path, json.dumps(plain))
    assert page.titles() == ["Changes"]
    assert any(words.startswith("FAIL: vanilla latency changed by +5.0%") for words in page.words)
    assert "a note" in page.words and ("b", {}) not in page.tags


def test_a_history_has_its_course(tmp_path: Path) -> None:
    run = small_run()
    latency = run.records[0].measurement("latency")
    assert latency is not None
    points = tuple(At(f"2026-11-{day:02}T00:00:00+00:00", f"abc{day}", float(day)) for day in range(1, 9))
    series = [Series(run.records[0].case, latency, "CPU", points, (Step(points[4], 4, 1.5),))]
    _, page = page_of(tmp_path, to_json(series))
    assert page.titles() == ["latency over time"]
    assert sum(a.get("class", "").startswith("change ") for _, a in page.tags if a.get("class")) == 1


def test_several_files_have_contents_and_what_they_share_over_time(tmp_path: Path) -> None:
    later = replace(small_run(), created="2026-11-23T05:12:00+00:00")
    _, page = page_of(tmp_path, small_run(), later)
    assert [a["href"] for name, a in page.tags if name == "a"] == ["#source-0", "#source-1", "#source-2"]
    assert page.titles()[-1] == "latency over time"


def test_other_commands_write_the_page_too(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(to_json(small_run()))
    assert repshift(["show", str(tmp_path / "run.json"), "--html", str(tmp_path / "one.html")], debug=True) == 0
    assert "Speed-up: vs flash" in Page((tmp_path / "one.html").read_text()).titles()


# --- what never stands in it ------------------------------------------------------------------------------------------


def test_text_from_a_file_stays_text_everywhere(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, hostile(small_run()))
    assert sum(name == "script" for name, _ in page.tags) == 2, "the data and the page's own"
    data = dict(page.scripts)["data-0"]
    assert json.loads(data) == json.loads(to_json(hostile(small_run())))
    assert "<" not in data and SCRIPT in " ".join(page.words)
    policy = next(a["content"] for name, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_it_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, small_run())
    asked = [a for name, a in page.tags for key in ("src", "href") if (a.get(key) or "#")[0] != "#"]
    assert asked == [] and "@import" not in text and "url(" not in text


def test_every_chart_has_a_table_a_caption_and_two_downloads(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, sweep_run())
    charts = len(page.titles())
    counted = {name: sum(tag_ == name for tag_, _ in page.tags) for name in ("figure", "figcaption")}
    assert counted == {"figure": charts, "figcaption": charts}
    assert sum("data-download" in a for _, a in page.tags) == 2 * charts
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_the_largest_baseline_stays_far_below_6_mb_with_its_data_packed(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, (BASELINES / "operators.json").read_text(encoding="utf-8"))
    assert len(text.encode()) < 2_000_000
    packed = gzip.decompress(base64.b64decode(dict(page.scripts)["data-0"]))
    assert json.loads(packed) == json.loads(to_json(store.load(BASELINES / "operators.json")))


def test_data_without_room_are_named_instead_of_embedded() -> None:
    said = embedded.embedded({"a": "x" * 10_000}, "0", "run.json", room=20)
    assert "run.json is too large to be embedded" in said and "<script" not in said


# --- who is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a file"),
        (["none.json"], "does not exist"),
        (["text.json"], "is not JSON"),
        (["other.json"], "no repshift run file"),
        (["gate.json"], "gate.json is damaged: gate.findings"),
        (["empty"], "holds no file that repshift wrote"),
        (["run.json", "--out", "page.json"], "named as JSON"),
        (["run.json", "--out", "empty"], "it is a folder"),
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
    (tmp_path / "empty").mkdir()
    contents = {
        "text": "hello",
        "other": "[]",
        "gate": '{"findings": 3, "base": "", "head": ""}',
        "run": to_json(small_run()),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(content)
    assert repshift(["report", *arguments], debug=False) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_folder_gives_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(to_json(small_run()))
    (tmp_path / "b.json").write_text("{}")
    assert repshift(["report", str(tmp_path), "--out", "-"], debug=True) == 0
    assert "<title>repshift: a.json</title>" in capsys.readouterr().out


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_the_front_is_what_no_other_point_beats() -> None:
    assert front([(1, 5), (2, 4), (2, 3), (3, 1), (2, 4), (0, 5)]) == [True, True, False, True, True, False]
    assert front([]) == []


def test_bars_carry_the_tables_figures() -> None:
    measured = Measured(small_run())
    bars = next(of_run.speed(measured))
    assert isinstance(bars, Bars)
    by_label = {m.label: m for m in bars.marks}
    assert by_label["flash+repshift"].value == pytest.approx(141.0 / 104.6, rel=0.01)
    assert bars.table.rows[1][0] == "flash+repshift" and bars.table.rows[1][1] == "1.349"


def test_times_that_allow_no_verdict_draw_no_speed_up() -> None:
    run = small_run()
    busy = replace(run, records=tuple(replace(r, unfit="the machine was busy") for r in run.records))
    assert [figure.title for figure in of_run.speed(Measured(busy))] == ["Latency: latency"]


def test_tokens_fall_behind_the_blocks_that_cut() -> None:
    plane = next(of_run.tokens(Measured(small_run())))
    assert isinstance(plane, Plane)
    assert plane.curves[0].points == ((0.0, 197.0), (3.0, 119.0), (6.0, 119.0))


def test_modelled_bytes_are_told_from_measured_ones() -> None:
    record = small_run(ON_CUDA, CUDA).records[0]
    counted = exact("hbm", "HBM", "B", "lower", "counter", 3e8)
    run = Run(CUDA, {}, (record.case,), (replace(record, measurements=(*record.measurements[:8], counted)),))
    bars = next(of_run.moved(Measured(run)))
    assert isinstance(bars, Bars)
    assert {m.label.split(", ")[1]: m.modelled for m in bars.marks} == {"HBM": False, "HBM modelled": True}
    assert {row[-1] for row in bars.table.rows} == {"measured", "modelled"}


def test_a_map_has_a_cell_for_each_keep_and_schedule() -> None:
    heat = next(figure for figure in of_run.figures(sweep_run()) if isinstance(figure, Heat))
    assert (heat.rows, heat.columns) == (("0.7", "0.3"), ("1,4,7", "3"))
    assert [[cell is not None for cell in row] for row in heat.cells] == [[True, False], [False, True]]


def test_the_roofline_is_two_flops_for_each_mac_over_bytes_and_time() -> None:
    record = ran(ON_CUDA, 10.0, 10.0, 10.0)
    latency = Measurement("latency", "latency", "ms", "lower", "median", "timed", (10.0,) * 6)
    others = tuple(m for m in record.measurements if m.metric not in ("latency", "hbm"))
    counted = exact("hbm", "HBM", "B", "lower", "counter", 1e9)
    share = exact("hbm_share_of_peak", "peak bandwidth used", "%", "higher", "counter", 5.0)
    found = working(replace(record, measurements=(*others, latency, counted, share)))
    assert found is not None and not found.modelled
    assert found.intensity == pytest.approx(2 * 17.56e9 * 128 / 1e9)
    assert found.rate == pytest.approx(2 * 17.56e9 * 128 / 0.01)
    assert ceilings(replace(record, measurements=(latency, counted, share))).bandwidth == pytest.approx(
        1e9 / 0.01 / 0.05
    )
    assert working(replace(record, measurements=others)) is None


def test_drift_shows_in_the_samples() -> None:
    assert drift([1.0] * 10 + [1.1] * 10) == pytest.approx(1.1)
    assert drift([2.0]) == 1.0
    samples = next(of_run.raw(Measured(small_run())))
    assert isinstance(samples, Samples)
    assert samples.rows[0].values == times(141.2, seed=len("vanilla"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (141.234, "141.2"), (0.98765, "0.9877"), (1234567.0, "1,234,567"), (2.1e-5, "2.10e-05"), (2.0, "2")],
)
def test_numbers_in_words(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.0, 1.0, False), (-3.0, 12.5, False), (1e-3, 1e4, True), (3, 4, True)]
)
def test_an_axis_has_round_values_within_it(low: float, high: float, log: bool) -> None:
    ticks = scales.Scale(low, high, 0, 100, log).ticks()
    assert 2 <= len(ticks) <= 12 and all(low <= t <= high for t in ticks) and ticks == sorted(ticks)


def test_markup_escapes_what_is_not_markup() -> None:
    assert tag("p", SCRIPT, title=SCRIPT).count("<") == 2
    assert tag("p", Markup("<b>"), tag("br"), None, hidden=True, class_="x") == '<p hidden class="x"><b><br></p>'
    assert "\\x1b" in tag("p", "\x1b[31m")


@pytest.mark.parametrize("path", sorted(BASELINES.glob("*.json")), ids=lambda p: p.stem)
def test_the_command_that_measures_again_has_options_that_exist(path: Path) -> None:
    line = command_of(store.load(path))
    assert line is not None
    name = line.split()[1]
    known = {option for p in commands()[name].params for option in p.opts}
    assert set(re.findall(r"--[a-z-]+", line)) <= known
