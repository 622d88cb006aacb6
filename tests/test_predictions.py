"""What the page of `inspection/` says of the stored inspections, and the statistics under its tables."""

from __future__ import annotations

import re

import predictions
import pytest
import torch
from inspection_tables import answer
from pages import PAGES
from predictions import INSPECTED, Schedule, Trial

from repshift_cli.inspection.base.ranks import rank_correlation
from repshift_cli.inspection.heads import JUDGED

PAGE = " ".join(PAGES["repshift_cli/inspection/README.md"].text.replace("*", "").split())


def test_the_rank_correlation_is_the_inspections_own() -> None:
    one, other = [3.0, 1, 2, 2, 5, 9], [1.0, 1, 2, 7, 5, 6]
    expected = rank_correlation(torch.tensor(one), torch.tensor(other))
    assert predictions.spearman(one, other) == pytest.approx(expected)
    assert predictions.spearman(one, [1.0] * 6) is None


def test_an_interval_is_of_blocks_and_none_of_few() -> None:
    def schedules(blocks: int) -> list[Schedule]:
        return [Schedule(("run", (n,)), (float(n),), 1, n + 0.1 * k, 1.0) for n in range(blocks) for k in range(4)]

    def figure(some: object) -> float | None:
        assert isinstance(some, list)
        return predictions.spearman([s.said[0] for s in some], [s.over_random for s in some])

    assert predictions.interval(schedules(4), figure) is None
    low, high = predictions.interval(schedules(6), figure) or (0, 0)
    assert 0.5 < low < high <= 1
    assert predictions.signs_right(schedules(2)) == "8 of 8"


def test_a_schedule_is_told_by_its_own_block() -> None:
    (trial,) = (t for t in predictions.TRIALS if t.run == "dinov2-s-photos")
    found = predictions.schedules(trial)
    assert len(found) == 21 and {s.place[1] for s in found} == {(3,), (6,), (9,)}
    score = answer("dinov2-s", "score")
    rho = dict(score.quantity("correlation").items())["9", "importance"]
    assert {s.said[0] for s in found if s.place[1] == (9,)} == {rho} and {s.sign for s in found} == {1, -1}
    assert all(s.over_lowest < 0 for s in found if s.place[1] == (9,))
    lower = Trial("", trial.run, trial.metric, trial.inspection, better=-1)
    assert [s.over_random for s in predictions.schedules(lower)] == [-s.over_random for s in found]


def test_a_promise_is_that_the_lower_half_costs_less_than_a_random_one() -> None:
    def schedule(at_once: float, gain: float) -> Schedule:
        return Schedule(("run", (1,)), (0.0, 0.0, -at_once), 1, gain, 1.0)

    found = [schedule(0.9, 1), schedule(0.9, -1), schedule(0.9, 0), schedule(1.1, 1), schedule(1.0, -1)]
    assert predictions.better_where_told(found) == "1 of 3, else 1 of 2"


def test_the_page_says_what_became_of_the_sign_with_even_norms() -> None:
    turned = {name: [b for b, (was, even) in predictions.evened(name).items() if was * even < 0] for name in INSPECTED}
    assert "with even norms it turns in six of ten blocks" in PAGE and len(turned["smollm2"]) == 6
    assert "On DINOv2-S" in PAGE and not turned["dinov2-s"] and not turned["dinov2-s-fashion"]
    assert "(on mails it stays but after block 1)" in PAGE and turned["minilm-mails"] == ["1"]
    assert "({:+.2f} to {:+.2f})".format(*predictions.evened("minilm")["1"]) in PAGE


def test_the_page_says_what_was_predicted_of_smollm2() -> None:
    (trial,) = (t for t in predictions.TRIALS if t.inspection == "smollm2-topics")
    found, score = predictions.schedules(trial), answer("smollm2-topics", "score")
    assert "in five of six blocks no sign is told" in PAGE
    assert [v for v in score.quantity("sign").values if v is not None].count(0) == 5
    halves = dict(score.quantity("halves").items())
    asked = [b for b, half in halves if half == "lower half" and halves[b, half] is not None]
    assert "has the lower half cheaper than the higher one in all six, and so has the loss in all schedules" in PAGE
    assert len(asked) == 6 and all((halves[b, "lower half"] or 9) < (halves[b, "higher half"] or 0) for b in asked)
    assert all(s.over_lowest > 0 for s in found) and {s.place[1] for s in found} == {(int(b),) for b in asked}


def test_the_page_says_what_a_cache_costs_and_how_far_windows_see() -> None:
    cache = answer("smollm2-cache", "cache")
    times, held = dict(cache.quantity("times").items()), dict(cache.quantity("held").items())
    after, without = times["2048", "decode"] or 0, times["2048", "decode without cache"] or 0
    assert f"takes {after:.0f} ms behind its cache and {without / after / 10:.0f}0 times as long without" in PAGE
    assert f"the cache from {held['2048', 'whole']:.0f} to {held['2048', 'pruned']:.0f} MiB" in PAGE
    reach = answer("smollm2-sliding", "reach")
    window, last = reach.quantity("farthest").values[0] or 0, reach.quantity("reach").values[-1] or 0
    assert f"it advances by {window:.0f} tokens a block" in PAGE and f"within {last:.0f} tokens" in PAGE
    assert f"see {last / (window + 1):.1f} windows far" in PAGE


@pytest.mark.parametrize("name", ["dinov2-s-fashion", "smollm2-heads", "minilm-mails"])
def test_the_page_says_what_is_lost_without_dormant_heads(name: str) -> None:
    found = dict(answer(name, "heads").quantity("labelled_difference").items())
    for model in JUDGED[1:]:
        value, low, high = (found[model, end] or 0.0 for end in ("", "from", "to"))
        assert re.search(rf"{abs(value):.2f}( points| nats)? {re.escape(f'({low:+.2f} to {high:+.2f})')}", PAGE)


def test_the_page_says_what_the_inspections_hold() -> None:
    sinks = answer("smollm2-sinks", "sinks")
    by_length = {n: v for (n, of), v in sinks.quantity("rate_by_length").items() if of == "first token"}
    told = ", ".join(f"{by_length[n]:.0%} {words}" for n, words in (("64", "of them at 64 tokens"), ("256", "at 256")))
    assert f"{told}, {by_length['1024']:.0%} at 1024" in PAGE
    packed = dict(sinks.quantity("rate_by_packing").items())
    later = "later documents' first tokens"
    assert packed["packed", later] == packed["packed, start tokens", later] == 0
    apart = packed["packed, masked apart", later]
    assert f"masked apart, {apart:.0%} on each" in PAGE
    norms, places, shifts = (sinks.quantity(n).values for n in ("norm", "place", "shift_rank"))
    assert f"has up to {max(v for v in norms if v):.0f} times the median norm" in PAGE
    assert all(shift and shift > 0.99 for shift, place in zip(shifts, places, strict=True) if place == 0)
    early = [v for (b, of), v in answer("smollm2", "score").quantity("correlation").items() if of == "norm" and v]
    assert min(early[:16]) > 0.725 and max(early[:16]) == pytest.approx(1, abs=0.005)
    assert set(answer("digits", "heads").quantity("dormant").values) == {0}
    reach = answer("digits", "reach")
    assert set(reach.quantity("reach").values) == {7} and reach.settings["grid"] == [8, 8]
