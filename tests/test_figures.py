"""What is drawn, as data: the figures of a run, an evaluation, an inspection and a profile, and numbers in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from html_page import SCRIPT
from synthetic import CUDA, ON_CUDA, exact, ran, small_run, sweep_run, times

from repshift_cli.analysis.pareto import front
from repshift_cli.analysis.roofline import ceilings, working
from repshift_cli.records import Measurement, Metric, Record, Run, store
from repshift_cli.records.inspection import Answer, Inspection, Quantity
from repshift_cli.records.inspection import Axis as Places
from repshift_cli.records.profile import ProfileRun
from repshift_cli.renderers.figures import of_inspection, of_profile, of_run
from repshift_cli.renderers.figures.measured import Measured
from repshift_cli.renderers.figures.shapes import Bars, Heat, Plane, Samples, Stacks, drift, number
from repshift_cli.renderers.page import charts, drawing, scales
from repshift_cli.renderers.page.drawing import Palette
from repshift_cli.renderers.page.markup import Markup, tag
from repshift_cli.renderers.sheets.evaluation import answer

PROFILE = Path(__file__).parent / "data" / "profile-schema-2.json"


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
    assert [figure.title for figure in of_run.speed(Measured(busy))] == ["Latency"]


def test_tokens_fall_behind_the_blocks_that_cut() -> None:
    plane = next(of_run.tokens(Measured(small_run())))
    assert isinstance(plane, Plane)
    assert plane.curves[0].points == ((0.0, 197.0), (3.0, 119.0), (4.0, 119.0))


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


def test_a_part_has_one_colour_in_all_charts_of_a_page(tmp_path: Path) -> None:
    """Pruning adds parts, and the others keep their colours."""
    run = store.load_any(PROFILE)
    assert isinstance(run, ProfileRun)
    _, flash, pruned = (f for f in of_profile.figures(run) if isinstance(f, Stacks))
    assert set(pruned.names) - set(flash.names) == {"score", "select", "cut"}
    palette = charts.palette_of([flash, pruned])
    drawings = [charts.drawn(figure, palette) for figure in (flash, pruned)]
    look = re.compile(r'class="bar (c\d)"[^>]* data-tip="1, other')
    assert look.search(drawings[0])[1] == look.search(drawings[1])[1]  # type: ignore[index]


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


def test_the_best_of_an_evaluation_is_the_fastest_without_a_loss_that_was_shown() -> None:
    """The row of keep 0.3 is faster, and loses; where every row loses, the answer is the least loss."""
    right, kinds = Metric("top1", "top-1", "%", "higher", "wilson", "labelled", ""), ("higher", "tango", "labelled", "")
    lost, speed = (
        Metric("top1_vs_unpruned", "", "points", *kinds),
        small_run().records[2].measurement("speedup_vs_flash"),
    )
    assert speed is not None

    def row(keep: float, wrong: int, times: float) -> Record:
        hits = (0.0,) * wrong + (100.0,) * (100 - wrong)
        case = replace(small_run().records[2].case, keep=keep)
        faster = replace(speed, samples=tuple(times * s for s in speed.samples))
        return Record(case, "ok", measurements=(right.of(*hits), lost.of(*(h - 100 for h in hits)), faster))

    rows = [row(0.3, 40, 3.0), row(0.5, 1, 2.0), row(0.7, 0, 1.0)]
    assert "shown in 2 of 3 pruned variants; the fastest of them: flash+repshift keep 0.5, top-1 99.0%" in answer(
        rows, ["top1"]
    )
    assert "shown in 0 of 1 pruned variants; of least loss: flash+repshift" in answer(rows[:1], ["top1"])
    assert answer(rows, ["another"]) == ""


def test_a_long_map_shows_each_nth_column_and_ratios_turn_at_1() -> None:
    wide = Places("distance", tuple(map(str, range(4000))))
    q = Quantity("a", "a", "x", "", (Places("block", ("1", "2")), wide), (0.5,) * 4000 + (2.0,) * 4000, "map")
    q = replace(q, axes=(Places("input", ("first",)), *q.axes))
    inspection = Inspection(None, {}, small_run().planned[0], 4, 1, (Answer("q", "Q", quantities=(q,)),))
    (heat,) = of_inspection.figures(inspection)
    assert isinstance(heat, Heat) and len(heat.columns) == 2000 and heat.title == "Q: a, input first"
    assert heat.zero == 1.0 and [row[0].value for row in heat.cells if row[0]] == [0.5, 2.0]
    drawing = charts.drawn(heat, charts.palette_of([heat]))
    assert drawing.count('class="cell lost"') == drawing.count('class="cell won"') == 2000


def test_what_random_draws_stands_in_one_plane_whatever_its_seed() -> None:
    run = small_run()
    quality = exact("fidelity_cosine", "cosine", "", "higher", "compared", 0.9)
    row = replace(run.records[2], measurements=(*run.records[2].measurements[:3], quality))
    again = replace(row, case=replace(row.case, pruning="random", options=(), seed=1))
    planes = list(of_run.trade(Measured(replace(run, planned=(), records=(row, again)))))
    assert [len(plane.points) for plane in planes if isinstance(plane, Plane)] == [2]


def test_groups_are_told_apart_by_colour_and_shape() -> None:
    palette = Palette.of(map(str, range(32)))
    assert len({(palette.colour(str(i)), drawing.shape(palette.shape(str(i)))) for i in range(32)}) == 32
