"""What the renderers print: every width whole, every missing value a dash with its reason, no metric known by name."""

from __future__ import annotations

import ast
import csv as csv_module
import io
import json as json_module
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from synthetic import CPU, CUDA, ON_CPU, ON_CUDA, REPSHIFT, small_run, sweep_run

from repshift_cli import renderers
from repshift_cli.records import Measurement, Record, Run
from repshift_cli.records.json_codec import to_json
from repshift_cli.renderers import View, csv, document_of, json, markdown, table
from repshift_cli.renderers.sheets.cells import Column
from repshift_cli.renderers.sheets.row_columns import case_columns
from repshift_cli.renderers.sheets.run import sheets

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def drawn(run: Run, width: int | None = None, **console: object) -> str:
    out = io.StringIO()
    table.render(document_of(run), out, Console(file=out, width=width, highlight=False, **console) if width else None)  # type: ignore[arg-type]
    return out.getvalue()


def one(measurement: Measurement, **record: object) -> Run:
    case = replace(ON_CPU, attention="flash")
    return Run(CPU, {}, (case,), (Record(case, "ok", measurements=(measurement,), **record),))  # type: ignore[arg-type]


def ratio(*samples: float, better: str = "higher") -> Measurement:
    """Two or three values stand for six rounds, the fewest with an interval; one for itself."""
    samples = samples * (6 // len(samples)) if len(samples) > 1 else samples
    return Measurement(
        "pace", "pace", "x", better, "hodges-lehmann", "timed", samples, reason=None if samples else "off"
    )


def value(unit: str, number: float) -> Measurement:
    return Measurement("amount", "amount", unit, "lower", "value", "counted", (number,))


def column(run: Run, title: str) -> Column:
    return next(c for c in sheets(run)[0].columns if c.title.startswith(title))


def cell(measurement: Measurement) -> str:
    return column(one(measurement), measurement.label).cells[0].line


@pytest.mark.parametrize("run", [small_run(), sweep_run(), small_run(ON_CUDA, CUDA)], ids=["cpu", "sweep", "cuda"])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 160, 200])
def test_no_line_is_too_wide_and_nothing_is_cut(run: Run, width: int) -> None:
    text = drawn(run, width)
    assert all(cell_len(line) <= width for line in text.splitlines() if "CPU (" not in line or width >= 60)
    assert "…" not in text
    for sheet in sheets(run):
        whole = {c.text for column in sheet.columns if column.title == "variant" for c in column.cells}
        assert all(name in text for name in whole)


@pytest.mark.parametrize("width", [40, 80, 120, 160])
def test_what_is_not_shown_is_named(width: int) -> None:
    text = " ".join(drawn(small_run(), width).replace("·", " ").split())
    shown, _, left_out = text.partition(f"not shown at {width} columns:")
    for c in sheets(small_run())[0].columns:
        heading = shown.split("in brackets")[0]
        assert all(word in heading for word in c.title.split()) or c.title in left_out or c.title == "kernel"


def test_at_80_columns_the_headline_is_there() -> None:
    heading = next(line for line in drawn(small_run(), 80).splitlines() if line.startswith("variant"))
    assert re.split(r"\s{2,}", heading.strip()) == ["variant", "keep", "vs flash", "vs vanilla", "latency ms", "status"]


def test_at_160_columns_everything_but_the_kernel_has_a_column_and_intervals_stay_in_line() -> None:
    text = drawn(small_run(), 160)
    assert "not shown" not in text
    assert re.search(r"flash\+repshift +0\.6 +3 +197 → 119 +1\.349x \(1\.346–1\.352\)", text)
    assert "attention ran on matmul softmax matmul (vanilla), flash_attention_for_cpu (flash, flash+repshift" in text


def piped(run: Run, **view: Any) -> str:
    out = io.StringIO()
    table.render(replace(document_of(run), view=View(**view)), out)
    return out.getvalue()


def heading_of(text: str) -> list[str]:
    heading = next(line for line in text.splitlines() if line.startswith("variant"))
    return re.split(r"\s{2,}", heading.strip())


def test_piped_it_is_100_columns_wide_without_codes_and_names_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    text = drawn(small_run())
    assert "\x1b" not in text and "not shown at 100 columns: " in text and "; --wide has all" in text
    assert all(len(line) <= 100 for line in text.splitlines() if "  " in line), "the table; a note is one line"
    monkeypatch.setenv("COLUMNS", "80")
    assert "not shown at 80 columns" in drawn(small_run())
    wide = piped(small_run(), wide=True)
    assert "not shown" not in wide and "kernel" in heading_of(wide)


def test_the_columns_that_were_asked_for_stand_behind_those_that_tell_rows_apart() -> None:
    text = piped(sweep_run(), columns=("macs", "vs flash", "tokens"))
    assert heading_of(text)[:1] == ["variant"] and heading_of(text)[-3:] == ["MACs G", "vs flash", "tokens"]
    assert "latency" not in heading_of(text) and "not shown" not in text


def test_quiet_leaves_what_failed_and_verbose_gives_every_note() -> None:
    run = small_run()
    quiet, usual, verbose = (piped(run, **view) for view in ({"quiet": True}, {}, {"verbose": True}))
    assert "failed: flash+random" in quiet and "Pruning pays" in quiet and "in brackets" not in quiet
    assert "not measured: HBM" not in usual and "1 more note, on what was not measured and why: --verbose" in usual
    assert "not measured: HBM: no counter was read" in verbose


def test_of_many_warnings_the_first_are_shown() -> None:
    run = small_run()
    many = replace(run.records[0], warnings=tuple(f"number {i}" for i in range(9)))
    run = replace(run, records=(many, *run.records[1:]))
    assert "number 3" in piped(run) and "number 4" not in piped(run) and "number 8" in piped(run, verbose=True)


def test_too_narrow_for_the_first_metric_each_row_is_a_block() -> None:
    text = drawn(sweep_run(), 40)
    assert "  vs flash: 1.466x (1.462–1.470)" in text and "─" not in text


def test_colour_only_repeats_what_the_text_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal: dict[str, object] = {"force_terminal": True, "color_system": "standard"}
    coloured = drawn(small_run(), 160, **terminal)
    assert "\x1b[32m1.349x" in coloured and "\x1b[1;31mfailed" in coloured and "\x1b[33mskipped" in coloured
    assert ANSI.sub("", coloured) == drawn(small_run(), 160)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", drawn(small_run(), 160, **terminal))


@pytest.mark.parametrize(
    ("samples", "text"),
    [
        ((1.30, 1.34), "1.32x (1.30–1.34)"),
        ((0.9, 1.1), "none shown (0.90–1.10)"),
        ((0.5, 0.5), "0.500x (0.500–0.500)"),
        ((1.25,), "too few rounds"),
        ((1.0031, 1.0032, 1.0033), "1.003x (1.003–1.003)"),
        ((1.0001, 1.0001), "1.0001x (1.0001–1.0001)"),
        ((12.3, 12.6, 12.4), "12.4x (12.3–12.6)"),
    ],
)
def test_a_speed_up_and_its_interval(samples: tuple[float, ...], text: str) -> None:
    assert cell(ratio(*samples)) == text


def test_only_where_more_is_better_does_a_ratio_say_that_none_was_shown() -> None:
    assert cell(ratio(0.9, 1.1, better="lower")) == "0.99x (0.90–1.10)"


@pytest.mark.parametrize(
    ("samples", "tone"), [((1.3, 1.34), "good"), ((0.5, 0.51), "bad"), ((0.9, 1.1), "quiet"), ((1.2,), "quiet")]
)
def test_the_tone_of_a_speed_up(samples: tuple[float, ...], tone: str) -> None:
    assert column(one(ratio(*samples)), "pace").cells[0].tone == tone


@pytest.mark.parametrize(
    ("unit", "number", "title", "text"),
    [
        ("B", 3.0 * 2**30, "amount GiB", "3.000"),
        ("B", 412.0 * 2**20, "amount MiB", "412.0"),
        ("B", 12.0, "amount B", "12.00"),
        ("MAC", 17.563e9, "amount G", "17.56"),
        ("MAC", 984.04e9, "amount G", "984.0"),
        ("MAC", 2.5e6, "amount M", "2.500"),
        ("", 0.98765, "amount", "0.9877"),
        ("", 0.0, "amount", "0"),
        ("nat", 0.0000123, "amount nat", "1.23e-05"),
        ("%", 97.5, "amount %", "97.50"),
        ("MHz", 1980.0, "amount MHz", "1980"),
    ],
)
def test_numbers_in_units_that_people_read(unit: str, number: float, title: str, text: str) -> None:
    run = one(value(unit, number))
    assert column(run, "amount").title == title
    assert column(run, "amount").cells[0].line == text


def test_what_was_not_measured_is_a_dash_with_its_reason_and_never_0() -> None:
    run = small_run()
    vs_flash = column(run, "vs flash").cells
    assert [c.text for c in vs_flash] == ["none shown", "ref", "1.349x", "–", "–"]
    notes = sheets(run)[0].notes
    assert "not measured: HBM: no counter was read: no NVIDIA GPU" in notes
    assert not any("SM clock" in note for note in notes)
    hbm = Measurement("hbm", "HBM", "B", "lower", "value", "counter", reason="ncu was not found")
    other = replace(run.records[2], measurements=(*run.records[2].measurements[:-3], hbm))
    notes = sheets(replace(run, records=(*run.records[:2], other)))[0].notes
    assert "not measured: HBM (vanilla, flash): no counter was read: no NVIDIA GPU" in notes
    assert "not measured: HBM (flash+repshift): ncu was not found" in notes


def test_two_sources_of_one_metric_never_share_a_column() -> None:
    run = small_run()
    counter = Measurement("hbm", "HBM", "B", "lower", "value", "counter", (2.0**20,))
    sampled = replace(counter, source="sampled")
    records = tuple(replace(r, measurements=(m,)) for r, m in zip(run.records[:2], (counter, sampled), strict=True))
    run = replace(run, records=records)
    assert [c.line for c in column(run, "HBM (counter)").cells] == ["1.000", "–"]
    assert [c.line for c in column(run, "HBM (sampled)").cells] == ["–", "1.000"]
    rows = rows_of(run)
    assert [row["hbm_counter_bytes"] for row in rows] == ["1048576", ""]


def test_failures_and_warnings_stand_below_in_full() -> None:
    notes = sheets(small_run())[0].notes
    assert "failed: flash+random: CUDA out of memory. Tried to allocate 2.00 GiB; try a smaller --batch" in notes
    assert "skipped: cudnn+repshift: cudnn needs a CUDA device; this case runs on cpu" in notes
    assert sum("random weights" in note for note in notes) == 1
    assert any(note.startswith("warning (flash): 3 of 72") for note in notes)
    assert notes[2].startswith("warning (flash)") or "random weights" in notes[2], "warnings come behind what failed"
    assert notes[4] == "warning: the machine was busy: load 3.1 on 2 cores"


def test_rich_markup_in_a_reason_is_plain_text() -> None:
    run = small_run()
    bad = replace(run.records[3], reason="shape [/bold] [1, 2] does\nnot fit")
    assert "shape [/bold] [1, 2] does not fit" in drawn(replace(run, records=(bad,)), 160)


def test_a_failed_row_has_a_status_and_a_clean_run_no_status_column() -> None:
    assert [c.text for c in column(small_run(), "status").cells] == ["ok", "ok", "ok", "failed", "skipped"]
    assert all(c.title != "status" for c in sheets(sweep_run())[0].columns)


def test_rows_follow_the_plan_not_the_order_of_the_records() -> None:
    run = small_run()
    shuffled = replace(run, records=run.records[::-1])
    assert sheets(shuffled) and column(shuffled, "variant") == column(run, "variant")


def test_one_table_per_group_and_what_is_still_to_run() -> None:
    first, second = sheets(sweep_run())
    assert first.header[0] == "deit_s" and second.header[0] == "umt_b"
    assert "input random, 224 px, 12 frames" in second.header
    assert {"batch 128", "bf16", "NVIDIA H100 80GB HBM3", "driver 580.82.07", "torch 2.13.0"} <= set(first.header)
    assert "not run yet: flash+repshift keep 0.7 at 1,4,7 paper graph" in second.notes


def test_on_a_cpu_the_header_says_so() -> None:
    assert "CPU (AMD EPYC 7763 64-Core Processor, 2 threads)" in sheets(small_run())[0].header
    assert "CPU (name not read)" in sheets(replace(small_run(), machine=replace(CPU, cpu=None, threads=None)))[0].header


def test_what_is_alike_in_all_pruned_rows_is_said_once() -> None:
    titles = [c.title for c in sheets(sweep_run())[0].columns]
    assert "form" in titles and "execution" in titles and "operation" not in titles
    assert "repshift: operation mlp, distance l2" in sheets(sweep_run())[0].notes
    assert "repshift: operation mlp, distance l2, form update" in sheets(small_run())[0].notes


def test_the_options_of_different_methods_are_said_apart() -> None:
    base = replace(ON_CPU, **REPSHIFT)
    other = replace(base, pruning="other").with_options(margin=0.75, fused=True)
    run = Run(CPU, {}, (base, replace(base, pruning="lowest"), other))
    run = replace(run, records=tuple(Record(case, "skipped", "no time") for case in run.planned))
    notes = sheets(run)[0].notes[-2:]
    assert notes[0] == "repshift, lowest: operation mlp, distance l2, form update"
    assert notes[1] == "other: fused true, margin 0.75"
    assert not {"margin", "fused"} & {column.title for column in sheets(run)[0].columns}


def test_many_rows_in_a_note_are_counted() -> None:
    base = replace(ON_CPU, attention="cudnn")
    cases = [replace(base, **REPSHIFT | {"keep": k / 10}) for k in range(3, 9)]
    run = Run(CPU, {}, tuple(cases), tuple(Record(case, "skipped", "no CUDA") for case in cases))
    assert "skipped: cudnn+repshift (6 rows): no CUDA" in sheets(run)[0].notes


@pytest.mark.parametrize("run", [Run(CPU, {}), Run(CPU, {}, small_run().planned)], ids=["empty", "only planned"])
def test_a_run_without_records_is_shown(run: Run) -> None:
    assert drawn(run, 80).strip()
    for renderer in (csv, markdown):
        renderer.render(document_of(run), io.StringIO())


def test_details_have_no_column() -> None:
    assert not any("reserved" in c.title for c in sheets(small_run())[0].columns)


def rows_of(run: Run) -> list[dict[str, str]]:
    out = io.StringIO()
    csv.render(document_of(run), out)
    return list(csv_module.DictReader(io.StringIO(out.getvalue())))


def test_csv_has_units_intervals_and_empty_cells() -> None:
    rows = rows_of(small_run())
    pruned = rows[2]
    assert pruned["variant"] == "flash+repshift" and pruned["tokens"] == "197 119" and pruned["stopped_by"] == "budget"
    assert float(pruned["latency_ms_low"]) < float(pruned["latency_ms"]) < float(pruned["latency_ms_high"])
    assert float(pruned["speedup_vs_flash"]) == pytest.approx(1.349, abs=1e-3)
    assert pruned["macs"] == "11500000000" and pruned["memory_peak_reserved_bytes"] == str(600 * 2**20)
    assert {"throughput_per_s", "hbm_modelled_bytes", "fidelity_cosine", "sm_clock_mhz"} <= pruned.keys()
    assert pruned["hbm_bytes"] == "" and rows[1]["speedup_vs_flash"] == ""
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed", "skipped"]
    assert rows[3]["reason"].startswith("CUDA out of memory") and rows[3]["latency_ms"] == ""
    assert "fidelity_cosine_low" not in pruned


def test_json_is_the_run_file() -> None:
    out = io.StringIO()
    json.render(document_of(sweep_run()), out)
    assert out.getvalue() == to_json(sweep_run())
    assert json_module.loads(out.getvalue())["records"][0]["measurements"][2]["samples"]


def test_markdown_is_a_table_with_as_many_cells_in_each_row() -> None:
    run = replace(small_run(), warnings=("a | b",))
    out = io.StringIO()
    markdown.render(document_of(run), out)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(run.records)
    assert len({line.count(" |") for line in lines}) == 1
    assert "| flash+repshift | 0.6 | 3 | 197 → 119 | 1.349x (1.346–1.352) |" in out.getvalue()
    assert "- warning: a \\| b" in out.getvalue()


def test_renderers_know_no_metric_by_name() -> None:
    names = {m.metric for record in small_run().records for m in record.measurements}
    for file in Path(next(iter(renderers.__path__))).glob("*.py"):
        strings = {n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant)}
        assert not names & strings, file.name


def test_an_option_that_differs_between_methods_only_is_no_column() -> None:
    """Their names tell the rows apart; one that one method has in two values is needed."""
    shift = replace(ON_CPU, pruning="repshift", keep=0.5, layers=(3,), options=(("form", "paper"),))
    norm = replace(shift, pruning="norm", options=(("form", "update"),))
    other = replace(shift, options=(("form", "update"),))
    named = [
        {column.title for column in case_columns([Record(case, "ok") for case in cases])}
        for cases in ((shift, norm), (shift, norm, other))
    ]
    assert "form" not in named[0] and "form" in named[1]
