"""Charts in the terminal: in its width, without colour when asked, in ASCII where the locale has no more."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from synthetic import small_run, sweep_run
from test_report import outcome, search

from repshift_cli.analysis.history import Point, Series, Step
from repshift_cli.cli import run as repshift
from repshift_cli.records import Run, store
from repshift_cli.records.json_codec import to_json
from repshift_cli.renderers import Document, document_of, plot
from repshift_cli.renderers.figures.shapes import Axis, Heat, Mark
from repshift_cli.renderers.sheets.gate import document_of as document_of_gate

BASELINES = Path(__file__).parent.parent / "profiles" / "baselines" / "cpu"
INSPECTION = store.load_any(BASELINES / "inspection" / "minilm.json")
PROFILE = store.load_any(Path(__file__).parent / "data" / "profile-schema-2.json")


def history() -> Document:
    run = small_run()
    latency = run.records[0].measurement("latency")
    assert latency is not None
    points = tuple(Point(f"2026-11-0{day}T00:00:00+00:00", None, 10.0 + (day > 4)) for day in range(1, 9))
    return Document("history", [Series(run.records[0].case, latency, "CPU", points, (Step(points[4], 4, 1.1),))])


DOCUMENTS = {
    "run": document_of(small_run()),
    "sweep": document_of(sweep_run()),
    "profile": document_of(PROFILE),
    "history": history(),
    "gate": document_of_gate(replace(outcome(), findings=outcome().findings * 7)),
    "search": document_of(search()),
    "inspection": document_of(INSPECTION),
    "evaluation": document_of(store.load(BASELINES / "accuracy" / "minilm-spam.json")),
}


def drawn(document: Document, width: int = 80, **console: object) -> str:
    out = io.StringIO()
    plot.render(document, out, Console(file=out, width=width, highlight=False, **console))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    lines = drawn(DOCUMENTS[name], width).splitlines()
    assert len(lines) > 5 and all(cell_len(line) <= width for line in lines)


def test_a_bar_is_as_long_as_its_value_and_shows_its_interval() -> None:
    lines = drawn(DOCUMENTS["run"], 100).splitlines()
    flash = next(line for line in lines if re.match(r" +vanilla █.* ms \(", line))
    pruned = next(line for line in lines if line.startswith("flash+repshift █") and " ms (" in line)
    lengths = [sum(line.count(sign) for sign in "█▓") for line in (flash, pruned)]
    assert lengths[1] / lengths[0] == pytest.approx(104.6 / 141.2, abs=0.03)
    speed = next(line for line in lines if "1.349x (1.346–1.352)" in line)
    assert "▓" in speed or "░" in speed


def test_a_profile_names_its_parts_by_letters() -> None:
    text = drawn(DOCUMENTS["profile"])
    assert re.search(r"^  a attention \d+%$", text, re.MULTILINE)
    rows = re.findall(r"^ *(\d+) ([a-z]+) +[\d.]+ ms$", text, re.MULTILINE)
    assert [int(row[0]) for row in rows[:12]] == list(range(1, 13))


def test_a_history_has_its_points_and_its_step() -> None:
    text = drawn(DOCUMENTS["history"])
    assert text.count("●") == 8 + 1 and text.count("┊") >= plot.ROWS - 2


def test_a_sweep_has_a_scatter_plot_with_a_legend() -> None:
    text = drawn(DOCUMENTS["sweep"])
    assert "vs flash against cosine" in text and "● flash+repshift" in text


def test_without_utf_8_everything_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    text = drawn(DOCUMENTS["run"]) + drawn(DOCUMENTS["profile"]) + drawn(DOCUMENTS["history"])
    assert text.isascii() and "###" in text and "o vanilla" in text
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert "███" in drawn(DOCUMENTS["run"])


def test_an_output_of_another_encoding_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LC_ALL", raising=False)
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="latin-1")
    plot.render(DOCUMENTS["run"], out)
    out.flush()
    assert raw.getvalue().isascii() and b"###" in raw.getvalue()


def test_colour_is_left_out_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal: dict[str, object] = {"force_terminal": True, "color_system": "standard"}
    assert "\x1b[3" in drawn(DOCUMENTS["run"], **terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", drawn(DOCUMENTS["run"], **terminal))


def test_names_from_a_file_stay_names() -> None:
    run = small_run()
    cases = {case: replace(case, attention="[red]a\x1b[31m") for case in run.planned[:1]}
    records = tuple(replace(r, case=cases.get(r.case, r.case)) for r in run.records)
    text = drawn(document_of(Run(run.machine, {}, (), records)), 120)
    assert "\x1b" not in text and "[red]a" in text


def test_show_draws_below_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(to_json(small_run()))
    assert repshift(["show", str(tmp_path / "run.json"), "--plot"], debug=True) == 0
    out = capsys.readouterr().out
    assert out.index("Speed-up: vs flash") > out.index("flash+repshift")
    assert repshift(["show", str(tmp_path / "run.json"), "--plot", "--json"], debug=False) == 2
    assert "--plot draws on stdout" in capsys.readouterr().err


def test_a_map_has_its_figures_where_there_is_room_and_shades_where_not() -> None:
    cells = tuple(tuple(Mark("", 10.0 ** (-row - column)) for column in range(4)) for row in range(2))
    ticks = ("a", "b", "c", "d")
    heat = Heat("Map", "", Axis("size", log=True), "block", "head", ("1", "2"), ticks, cells)
    lines = [line.plain.rstrip() for line in plot.drawn(heat, plot.Paper(50, plot.UNICODE))]
    assert lines[:2] == ["block head", "      a        b        c        d"]
    assert lines[2:4] == ["    1 █1       ▓0.1     ▒0.01    ░0.001", "    2 ▓0.1     ▒0.01    ░0.001   ·1.0e-04"]
    assert lines[4] == "      · 1.0e-04 to █ 1, by logarithms"
    narrow = [line.plain for line in plot.drawn(heat, plot.Paper(20, plot.ASCII))]
    assert narrow[2] == "    1 ###***===:::" and all(len(line) <= 20 for line in narrow[:4])
    text = drawn(DOCUMENTS["inspection"], 60)
    assert "Attention sinks: attention on the first token" in text and all(
        len(line) <= 60 for line in text.splitlines()
    )
