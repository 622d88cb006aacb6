"""Where pruning pays: the map of a sweep over sizes and batches."""

from __future__ import annotations

import io
from dataclasses import replace

from synthetic import CPU, ON_CPU, REPSHIFT

from repshift_cli.records import Measurement, Record, Run
from repshift_cli.renderers import document_of, markdown, table
from repshift_cli.renderers.sheets.break_even import maps

FLASH = replace(ON_CPU, attention="flash")


def over(samples: tuple[float, ...]) -> Measurement:
    return Measurement("speedup_vs_flash", "vs flash", "x", "higher", "hodges-lehmann", "timed", samples)


def record(
    size: int, batch: int, keep: float, speedup: float, execution: str = "eager", spread: float = 0.01
) -> Record:
    case = replace(FLASH, **{**REPSHIFT, "keep": keep}, image_size=size, batch=batch, execution=execution)
    samples = tuple(speedup * (1 + 0.01 * (i - 3)) for i in range(7))
    tokens = (size // 16) ** 2 + 1
    return Record(case, "ok", tokens=(tokens, tokens // 2), measurements=(over(samples),))


def run(*records: Record) -> Run:
    return Run(CPU, {}, tuple(r.case for r in records), records)


SWEEP = run(
    record(112, 1, 0.5, 0.9),
    record(224, 1, 0.5, 1.3),
    record(384, 1, 0.5, 1.6),
    record(112, 8, 0.5, 1.2),
    record(224, 8, 0.5, 1.4),
    record(384, 8, 0.5, 1.7),
    record(112, 1, 0.9, 1.2),
    record(224, 1, 0.9, 1.0),
    record(384, 1, 0.9, 0.95),
)


def test_rows_are_workloads_and_columns_keep_ratios() -> None:
    (sheet,) = maps(SWEEP)
    tokens, size, batch, half, most = ([cell.text for cell in column.cells] for column in sheet.columns)
    assert (tokens, size) == (["50", "197", "577"] * 2, ["112 px", "224 px", "384 px"] * 2)
    assert batch == ["1", "1", "1", "8", "8", "8"]
    assert half == ["0.90x", "1.30x", "1.60x", "1.20x", "1.40x", "1.70x"]
    assert most == ["1.20x", "none shown", "0.95x", "–", "–", "–"]
    assert [column.title for column in sheet.columns[3:]] == ["keep 0.5", "keep 0.9"]


def test_a_keep_ratio_pays_from_where_all_larger_sizes_do() -> None:
    (sheet,) = maps(SWEEP)
    assert sheet.notes == (
        "keep 0.5 pays: from 197 tokens on at batch 1, from 50 tokens on at batch 8",
        "keep 0.9 pays: nowhere here at batch 1, not known at batch 8",
    )


def test_what_only_a_graph_shows_is_named() -> None:
    eager = [record(112, 1, 0.5, 0.99), record(224, 1, 0.5, 1.3)]
    graph = [record(112, 1, 0.5, 1.2, "graph"), record(224, 1, 0.5, 1.4, "graph")]
    first, second = maps(run(*eager, *graph))
    assert (first.header[-1], second.header[-1]) == ("eager", "graph")
    assert not any("hides" in note for note in first.notes)
    assert second.notes[-1].endswith("the host's dispatch hides the gain: 50 tokens, batch 1, keep 0.5")


def test_one_workload_or_no_pruning_makes_no_map() -> None:
    assert maps(run(record(224, 1, 0.5, 1.3), record(224, 1, 0.7, 1.2))) == []
    plain = replace(record(224, 1, 0.5, 1.3), case=replace(FLASH, image_size=224))
    assert maps(run(plain, replace(plain, case=replace(plain.case, batch=8)))) == []
    failed = [replace(r, status="failed", reason="out of memory", measurements=()) for r in SWEEP.records]
    assert maps(run(*failed)) == []


def test_the_table_and_markdown_end_with_it_and_the_answer() -> None:
    out = io.StringIO()
    table.render(document_of(SWEEP), out)
    header, _, _, code, _, answer = out.getvalue().rstrip("\n").split("\n\n")[-6:]
    assert header.strip("\n").startswith("where pruning pays: flash+repshift vs flash · vit_b")
    assert code == "    from repshift_cli import prune" and answer.startswith("Pruning pays in ")
    out = io.StringIO()
    markdown.render(document_of(SWEEP), out)
    header, answer = out.getvalue().split("**")[-4::2]
    assert header.startswith("where pruning pays") and answer.startswith("Pruning pays in ")
    assert "```python\nfrom repshift_cli import prune\n" in out.getvalue()


def test_without_an_interval_nothing_is_said_to_pay_or_not() -> None:
    few = [
        replace(r, measurements=(over(r.measurements[0].samples[:3]),))
        for r in (record(112, 1, 0.5, 1.3), record(224, 1, 0.5, 0.9))
    ]
    (sheet,) = maps(run(*few))
    assert sheet.notes == ("keep 0.5 pays: not known at batch 1",)
