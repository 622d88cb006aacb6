"""The page from a run, a profile, a gate and a history: what stands in it, what never does, and who is refused."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from generated import commands
from html_page import SCRIPT, Page, page_of, poisoned
from synthetic import CPU, small_run, sweep_run

from repshift_cli.analysis.comparison import between
from repshift_cli.analysis.history import Point as At
from repshift_cli.analysis.history import Series, Step
from repshift_cli.cli import run as repshift
from repshift_cli.commands.shared.stored import documents
from repshift_cli.gate.verdict import Outcome
from repshift_cli.records import Metric, store
from repshift_cli.records.inspection import Inspection
from repshift_cli.records.json_codec import to_json, to_plain
from repshift_cli.records.tuning import CHOSEN, FOUND, Confirmed, Single, Tuning
from repshift_cli.renderers import markdown
from repshift_cli.renderers.figures import of_evaluation, of_inspection, of_run, of_tuning
from repshift_cli.renderers.figures.shapes import Bars, Heat, Plane
from repshift_cli.renderers.page import page as whole_page
from repshift_cli.renderers.page import sections
from repshift_cli.renderers.page.command import command_of
from repshift_cli.renderers.sheets.gate import document_of as document_of_gate

ROOT = Path(__file__).parent.parent
BASELINES = ROOT / "profiles" / "baselines" / "cpu"
EVALUATION, INSPECTION = BASELINES / "accuracy" / "minilm-spam.json", BASELINES / "inspection" / "minilm.json"
PROFILE = Path(__file__).parent / "data" / "profile-schema-2.json"


# --- what stands in it ------------------------------------------------------------------------------------------------


def test_a_run_has_what_it_measured_and_nothing_else(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, small_run())
    assert page.titles() == [
        "Speed-up: vs flash",
        "Latency",
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
    assert any(words.startswith("flash+repshift: the selection costs 0.52 ms, paid for from") for words in page.words)


def outcome() -> Outcome:
    """A gate that fails by one latency."""
    run = small_run()
    latency = run.records[0].measurement("latency")
    assert latency is not None
    slower = replace(latency, samples=tuple(1.05 * s for s in latency.samples))
    found = replace(between(run.records[0].case, latency, slower, 0.01), verdict="fail", delta=0.01)
    return Outcome("main <b>", "head", (found,), (), ("a note",), 20)


def test_an_evaluation_has_its_answer_its_losses_and_its_course(tmp_path: Path) -> None:
    """Its figures are those of the run; nothing is said of a speed that nobody measured."""
    _, page = page_of(tmp_path, EVALUATION.read_text(encoding="utf-8"))
    run, titles = store.load(EVALUATION), page.titles()
    assert titles[:4] == ["linear probe", "linear probe vs unpruned", "k-NN", "k-NN vs unpruned"]
    assert "linear probe by keep, cut after block 1" in titles and not any("Latency" in title for title in titles)
    assert any("linear probe by keep and layers" in title for title in titles)
    assert any(words.startswith("By linear probe no loss is shown in ") for words in page.words)
    assert any(words.startswith("repshift eval --model hf:real/minilm") for words in page.words)
    assert any("the same for every variant" in words for words in page.words)
    lost = next(figure for figure in of_evaluation.figures(run) if figure.title == titles[1])
    assert isinstance(lost, Bars) and len(lost.marks) == of_run.MOST_BARS
    own = {r.case.variant: r for r in run.records if (r.case.keep, r.case.layers) == (0.9, (5,))}["vanilla+norm"]
    answers = [own.measurement("probe_top1"), run.records[0].measurement("probe_top1")]
    correct = [sum(m.samples) / len(m.samples) for m in answers if m]
    assert next(m.value for m in lost.marks if m.case == run.records.index(own)) == pytest.approx(
        correct[0] - correct[1]
    )


def test_an_inspection_has_its_maps_by_layer_and_head(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, INSPECTION.read_text(encoding="utf-8"))
    assert "Attention sinks: attention on the first token" in page.titles()
    assert any(words.startswith("repshift analyze --model hf:real/minilm") for words in page.words)
    run = store.load_any(INSPECTION)
    assert isinstance(run, Inspection)
    heat = next(f for f in of_inspection.figures(run) if isinstance(f, Heat) and "first token" in f.title)
    q = run.answer("sinks").quantity("attention_first")
    assert (heat.down, heat.across, len(heat.rows), len(heat.columns)) == ("block", "head", 6, 12)
    assert [mark and mark.value for row in heat.cells for mark in row] == list(q.values)
    plane = next(f for f in of_inspection.figures(run) if isinstance(f, Plane) and "shift ~" in f.title)
    assert [c.label for c in plane.curves][-1] == "0" and len(plane.curves) == 6


def search() -> Tuning:
    """A search that confirmed a schedule and a control; of the cuts at one block alone one was not tried."""
    row, kl = small_run().records[2], Metric("loss", "KL", "nats", "lower", "mean", "compared", "")
    tried = [(block, keep) for block in (1, 2, 3) for keep in (0.5, 0.7) if (block, keep) != (2, 0.5)]
    singles = tuple(Single("repshift", n, keep, (("scale", 2.0),), n / keep) for n, keep in tried)
    speed = row.measurement("speedup_vs_flash")
    found = Confirmed(CHOSEN, 1, row.case, row.tokens, kl.of(0.1, 0.2, 0.3), speedup=speed)
    worse = replace(found, role="random, same schedule", loss=kl.of(0.2, 0.4, 0.6))
    failed = replace(found, role="tome", loss=kl.missing("it ran out of memory"))
    told = ("vit_b", "flash", "photos", (8, 8), "KL", "nats", "1.3x", 12, 3.0, "2026-11-25T00:00:00+00:00", "repshift")
    return Tuning(FOUND, "repshift at 3 beats random", CPU, *told, singles, (found, worse, failed))


def test_a_search_has_its_sensitivity_and_what_it_found(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, search())
    assert "repshift at 3 beats random" in page.words
    bars, plane, heat = of_tuning.figures(search())
    assert page.titles() == [bars.title, plane.title, "Sensitivity by block"]
    assert isinstance(bars, Bars) and [round(m.value, 6) for m in bars.marks] == [0.2, 0.4]
    assert isinstance(plane, Plane) and [p.front for p in plane.points] == [True, False]
    assert isinstance(heat, Heat) and heat.columns == ("1", "2", "3") and len(heat.rows) == 2
    values = [[cell and round(cell.value, 3) for cell in row] for row in heat.cells]
    assert values == [[2.0, None, 6.0], [1.429, 2.857, 4.286]]


def test_a_gate_has_its_sentence_and_its_changes(tmp_path: Path) -> None:
    plain = {**document_of_gate(outcome()).summary, **to_plain(outcome())}
    _, page = page_of(tmp_path, json.dumps(plain))
    assert page.titles() == ["Changes"]
    assert any(words.startswith("FAIL: vanilla latency changed by +5.0%") for words in page.words)
    assert "a note" in page.words and ("b", {}) not in page.tags


def test_a_jobs_summary_shows_what_changed_most_as_bars_of_text() -> None:
    """In a fence that no name can end."""
    findings = tuple(replace(f, case=replace(f.case, attention="a ``` b")) for f in outcome().findings * 14)
    out = io.StringIO()
    markdown.render(document_of_gate(replace(outcome(), findings=findings)), out)
    fence = re.search(r"^(`{4,})text\n(.*?)\n\1$", out.getvalue(), re.MULTILINE | re.DOTALL)
    assert fence is not None and fence[2].count("█") > 12
    assert len(fence[2].splitlines()) == markdown.MOST_BARS and "the largest 12 of 14" in out.getvalue()


def course() -> list[Series]:
    """A latency that steps once."""
    record = small_run().records[0]
    latency = record.measurement("latency")
    assert latency is not None
    points = tuple(At(f"2026-11-{day:02}T00:00:00+00:00", f"abc{day}", float(day)) for day in range(1, 9))
    return [Series(record.case, latency, "CPU", points, (Step(points[4], 4, 1.5),))]


def test_a_history_has_its_course(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, course())
    assert page.titles() == ["latency over time"]
    assert "1 of 1 series step; the last: step at 2026-11-05 (abc5): vanilla +50.0%." in page.words
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


def everything_poisoned() -> list[str]:
    """A file of every kind, with code behind every text."""
    stored = [PROFILE, INSPECTION, EVALUATION]
    series = [replace(s, case=replace(s.case, model=SCRIPT)) for s in course()]
    return [poisoned(record) for record in (small_run(), outcome(), series, search(), *map(store.load_any, stored))]


def test_text_from_a_file_stays_text_everywhere(tmp_path: Path) -> None:
    files = everything_poisoned()
    _, page = page_of(tmp_path, *files)
    data = {name: text for name, text in page.scripts if name}
    assert len(page.scripts) == len(data) + 1, "the data and the page's own"
    assert json.loads(data["data-0"]) == json.loads(to_json(store.load_any(tmp_path / "run0.json")))
    assert not any("<" in text for text in data.values()) and "img" not in [name for name, _ in page.tags]
    assert "</script><script>" in " ".join(page.words) and "\u202e" not in " ".join(page.words)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
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


def test_what_makes_a_page_too_large_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the data of the last files, then their charts; no button promises what is not there."""
    _, both = page_of(tmp_path, small_run(), course())
    sizes = [
        len(sections.section(document, "0")) for document in documents([tmp_path / f"run{i}.json" for i in (0, 1)])
    ]
    monkeypatch.setattr(whole_page, "LARGEST", sum(sizes) + 100)
    _, page = page_of(tmp_path, small_run(), course())
    assert page.titles() == both.titles() and not any("data-save" in a for _, a in page.tags)
    assert sum("too large to be in this page" in words for words in page.words) == 2
    monkeypatch.setattr(whole_page, "LARGEST", sum(sizes) - 100)
    _, page = page_of(tmp_path, small_run(), course())
    assert page.titles() == both.titles()[:-1] and sections.NO_ROOM in page.words


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


@pytest.mark.parametrize("path", sorted([*BASELINES.glob("*.json"), EVALUATION, INSPECTION]), ids=lambda p: p.stem)
def test_the_command_that_measures_again_has_options_that_exist(path: Path) -> None:
    line = command_of(store.load_any(path))
    assert line is not None
    name = line.split()[1]
    known = {option for p in commands()[name].params for option in p.opts}
    assert set(re.findall(r"--[a-z-]+", line)) <= known
