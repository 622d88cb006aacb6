"""What the pages say of the stored runs, worked out once more from the runs themselves."""

from __future__ import annotations

import io
import re
from statistics import fmean

import operator_tables
import own_scores
import pytest
from accuracies import Told
from operator_tables import speedup
from pages import PAGES
from results import compared, evaluated, method
from rival_tables import rival
from stored import pruned, run_of, value

from repshift_cli.records import Record
from repshift_cli.renderers import document_of, markdown

README = PAGES["README.md"]
RESULTS = PAGES["profiles/baselines/README.md"]
REDUCTION = PAGES["repshift_cli/reduction/README.md"]


def says(page: str, sentence: str) -> bool:
    """Whether a page says it, however its lines are broken."""
    return sentence in " ".join(page.replace("**", "").replace("*", "").split())


Schedules = dict[str, dict[tuple[tuple[int, ...], float], float]]


@pytest.fixture(scope="module")
def photos() -> Schedules:
    """The cosine of every schedule, by method."""
    found: Schedules = {}
    for r in pruned("cpu/dinov2-s-photos"):
        found.setdefault(method(r.case), {})[r.case.layers, r.case.keep] = value(r, "fidelity_cosine")
    return found


def test_random_dropping_wins_on_the_photos(photos: Schedules) -> None:
    shift, update, random = photos["repshift, paper"], photos["repshift, update"], photos["random"]
    assert len(shift) == 21 and sum(random[s] > shift[s] for s in shift) == 16
    means = [round(fmean(m.values()), 3) for m in (random, shift, update)]
    assert means == [0.975, 0.946, 0.929]
    assert sum(shift[s] > update[s] for s in shift) == 15
    assert says(
        README.text,
        "in 16 of 21 schedules it keeps more of the output than representation shift (mean cosine 0.975 against 0.946)",
    )
    assert says(
        RESULTS.text, "in 16 of the 21 schedules (mean cosine 0.975 against 0.946 for `paper` and 0.929 for `update`)"
    )
    assert says(
        REDUCTION.text,
        "mean cosine over the 21 schedules is 0.946, that of `update` 0.929, and it is the better one in 15",
    )


def test_the_sign_is_inverted_after_block_9_and_right_after_block_3(photos: Schedules) -> None:
    shift, lowest, random = photos["repshift, paper"], photos["lowest, paper"], photos["random"]
    assert all(lowest[s] > shift[s] for s in shift if s[0] == (9,))
    late = [s for s in shift if s[0] == (3,) and s[1] >= 0.6]
    assert len(late) == 4 and all(round(shift[s], 3) >= round(random[s], 3) for s in late)


def test_choosing_the_tokens_is_cheap_on_the_photos() -> None:
    rows = [r for r in pruned("cpu/dinov2-s-photos") if r.case.pruning == "repshift"]
    ratios = [value(r, "time_vs_oracle") for r in rows]
    assert [round(f(ratios), 2) for f in (min, max, fmean)] == [0.97, 1.07, 1.01]
    assert says(RESULTS.text, "takes 0.97 to 1.07 times the oracle's time here, 1.01 on average")


def test_the_sign_is_inverted_on_the_sentences() -> None:
    found = {(r.case.pruning, r.case.keep): value(r, "fidelity_cosine") for r in pruned("cpu/minilm-sentences")}
    assert all(found["lowest", k] > max(found[m, k] for m in ("repshift", "random", "stride")) for k in (0.5, 0.7))
    assert (round(found["lowest", 0.7], 3), round(found["repshift", 0.7], 3)) == (0.971, 0.778)
    assert says(README.text, "MiniLM at keep 0.7: cosine 0.971 against 0.778")


def test_the_shift_is_ahead_on_the_prompts() -> None:
    found = {r.case.pruning: value(r, "fidelity_kl") for r in pruned("cpu/smollm2-prompts") if r.case.keep == 0.5}
    assert [round(found[m], 2) for m in ("repshift", "random", "norm")] == [1.29, 1.52, 1.43]
    assert says(README.text, "(KL 1.29 against 1.52 at keep 0.5), but a token's plain norm does nearly as well (1.43)")


@pytest.mark.parametrize(("name", "worse"), [("dinov2-s-fashion", 6), ("minilm-spam", 0)])
def test_no_probe_shows_the_shift_better_than_random(name: str, worse: int) -> None:
    shown = Told("probe_top1", 1, str).shown(evaluated(name))
    signs = [sign for case, sign in shown.items() if case.pruning == "repshift"]
    assert len(signs) == 12 and [s for s in signs if s] == [-1] * worse


def test_who_wins_over_all_runs() -> None:
    """Each method's mean difference to random dropping: -1, 0, 1 for shown worse, neither, better."""
    shown: dict[str, list[int]] = {}
    for told, rows in compared().values():
        for name, sign in told.overall(rows).items():
            shown.setdefault(name, []).append(sign)
    assert shown["repshift"] == [-1, -1, -1, -1, -1, 0]
    assert {m for m, signs in shown.items() if -1 not in signs} >= {"divprune", "pitome", "vid_tldr", "tome"}
    assert shown["divprune"] == [1, 0, 0, 0, 1, 0] and shown["fastv"] == [1]
    assert shown["dart"][:2] == [1, -1] and next(iter(shown)) == "dart"
    assert says(README.text, "the shift as published is worse than random dropping on three of four transformers")


def test_the_shift_is_worse_than_random_on_fashion_mnist() -> None:
    rows = [r for r in pruned("cpu/accuracy/dinov2-s-fashion") if r.status == "ok" and r.case.keep > 0.3]
    own = {m: [r for r in rows if r.case.pruning == m] for m in ("repshift", "lowest", "evit", "tome", "divprune")}
    probe, nearest = Told("probe_top1", 1, str), Told("knn_top1", 1, str)
    shift = probe.mean(own["repshift"])
    assert [round(v or 0.0, 1) for v in (shift.value, shift.low, shift.high)] == [-4.9, -6.4, -3.5]
    assert round(nearest.mean(own["repshift"]).value, 1) == -4.9
    assert all(not probe.mean(own[m]).spans(0) and probe.mean(own[m]).value < 0 for m in ("lowest", "evit"))
    assert all(probe.mean(own[m]).spans(0) for m in ("tome", "divprune"))
    assert says(RESULTS.text, "by 4.9 points (3.5 to 6.4) in the mean, by as many with nearest neighbours")


def test_the_shift_is_worse_than_random_on_the_mails() -> None:
    rows = [r for r in evaluated("minilm-spam") if r.case.pruning == "repshift"]
    found = [Told(metric, 1, str).mean(rows) for metric in ("probe_top1", "knn_top1")]
    assert [[round(v or 0.0, 1) for v in (f.value, f.low, f.high)] for f in found] == [
        [-1.8, -3.0, -0.7], [-1.6, -2.5, -0.6],
    ]  # fmt: skip
    assert says(RESULTS.text, "by 1.8 points (0.7 to 3.0), by 1.6 (0.6 to 2.5) with nearest neighbours")
    assert says(README.text, "by 4.9 on Fashion-MNIST (DINOv2-S, a probe), by 1.8 on spam (MiniLM, a probe)")


def test_the_shift_keeps_the_blank_patches_of_the_digits() -> None:
    shown, found = Told("top1", 1, str).shown(evaluated("digits")), dict[tuple[str, int], list[Record]]()
    for r in pruned("cpu/accuracy/digits"):
        found.setdefault((method(r.case), r.case.layers[0]), []).append(r)
    shift, random = (
        [value(r, "top1") for r in found[name, 1] if r.case.keep < 0.9] for name in ("repshift, paper", "random")
    )
    assert [round(f(shift)) for f in (min, max)] == [19, 38] and min(random) > 68
    assert says(RESULTS.text, "keeps 19 to 38% right up to keep 0.7, where random dropping keeps 70 to 86")
    signs = [shown[r.case] for block in (1, 3, 5) for r in found["repshift, paper", block]]
    assert signs == [-1] * 4 + [0] * 8


def test_on_prose_the_shift_is_not_shown_unlike_random() -> None:
    told, rows = Told("next_token_loss", 2, str), pruned("cpu/accuracy/smollm2-topics")
    rows = [r for r in rows if (r.case.layers, r.case.keep) != ((20,), 0.8)]
    means = {m: told.mean([r for r in rows if r.case.pruning == m]) for m in ("repshift", "norm", "dash", "lowest")}
    assert [means[m].spans(0) for m in means] == [True, True, False, False]
    shift = means["repshift"]
    assert [round(v or 0.0, 2) for v in (shift.value, shift.low, shift.high)] == [-0.03, -0.33, 0.26]
    assert says(RESULTS.text, "(-0.03 nats, -0.33 to +0.26)")
    fastv = told.mean([r for r in pruned("cpu/accuracy/smollm2-topics-rivals") if r.case.pruning == "fastv"])
    assert [round(v or 0.0, 2) for v in (fastv.value, fastv.low, fastv.high)] == [-0.67, -0.96, -0.38]
    assert says(RESULTS.text, "(by 0.67 nats, 0.38 to 0.96)")
    assert says(README.text, "on 128 windows of prose neither shift nor norm is shown unlike it")
    told, rows = compared()["SmolLM2, nats (less is better)"]
    assert {m for m, sign in told.overall(rows).items() if sign == 1} == {"fastv"}
    assert {m for m, sign in told.overall(rows).items() if sign == -1} == {"column_attention", "lowest"}
    assert len({r.case.schedule for r in rows}) == 12 and value(rows[0], "samples") == 48
    means = {m: told.mean([r for r in rows if r.case.pruning == m]) for m in ("fastv", "repshift")}
    found = [[round(v or 0.0, 2) for v in (f.value, f.low, f.high)] for f in means.values()]
    assert found == [[-1.02, -1.28, -0.77], [-0.28, -0.78, 0.22]]
    assert says(RESULTS.text, "by 1.02 nats (0.77 to 1.28)") and says(RESULTS.text, "(-0.28 nats, -0.78 to +0.22)")
    shown = [sign for case, sign in told.shown(rows).items() if case.pruning == "fastv"]
    assert shown.count(1) == 6 and shown.count(0) == 6


def test_an_interval_without_0_is_never_called_no_loss() -> None:
    """Holm over 60 variants leaves some of them open: they may lose."""
    text = io.StringIO()
    markdown.render(document_of(run_of("cpu/accuracy/dinov2-s-fashion")), text)
    rows = [line for line in text.getvalue().splitlines() if line.startswith("| flash+")]
    told = re.findall(r"(no loss shown|may lose|loses)[^|(]*\((-?[\d.]+) to (-?[\d.]+)\)", " ".join(rows))
    assert {word for word, *_ in told} == {"no loss shown", "may lose", "loses"}
    sure = [(word, float(low)) for word, low, high in told if 0 not in (float(low), float(high))]  # rounded: either way
    assert all((low < 0) == (word == "no loss shown") for word, low in sure)


def test_merging_is_ahead_on_the_photos() -> None:
    found = {rival(r.case): value(r, "fidelity_cosine") for r in pruned("cpu/dinov2-s-rivals")}
    order = sorted(found, key=lambda m: -found[m])
    assert {*order[:3]} == {"mctf, reuse", "mctf, again", "mctf, off"}
    assert order[3:9] == ["tome", "vid_tldr", "pitome", "divprune", "repshift", "random"]
    assert order[-2] == "dart" and found["repshift"] - found["random"] < 0.002
    assert [round(found[m], 3) for m in ("mctf, reuse", "tome", "repshift", "random")] == [0.986, 0.98, 0.96, 0.958]
    assert says(README.text, "MCTF and ToMe keep cosine 0.986 and 0.980 against the shift's 0.960 and random's 0.958")
    assert says(RESULTS.text, "MCTF is ahead of all, at the block's end and before it alike, then ToMe and vid-TLDR")


def test_the_shift_is_last_on_the_sentences() -> None:
    rows = pruned("cpu/minilm-rivals")
    found = {r.case.pruning: value(r, "fidelity_cosine") for r in rows if r.status == "ok"}
    order = sorted(found, key=lambda m: -found[m])
    assert {*order[:2]} == {"norm", "lowest"} and order[-1] == "repshift" and len(order) == 10
    refused = {r.case.pruning: r.reason or "" for r in rows if r.status == "skipped"}
    assert {*refused} == {"tome", "pitome", "mctf", "vid_tldr", "evit"}
    assert all("have places of their own in each sample" in reason for reason in refused.values())
    assert says(RESULTS.text, "Here the shift is the worst of all")


def test_few_tokens_gain_nothing_that_could_be_shown() -> None:
    shown = {(r.tokens[0], r.case.keep): r for r in pruned("cpu/vit-t-sizes")}
    assert {tokens for tokens, _ in shown} == {5, 17, 50, 197}
    text = RESULTS.text.partition("<!-- generated: vit-t-sizes -->")[2].partition("<!-- end -->")[0]
    rows = {int(m[1]): m[2] for m in re.finditer(r"^\| (\d+) \|(.*)$", text, flags=re.MULTILINE)}
    assert all(rows[tokens].count("none shown") == 3 for tokens in (5, 17))
    assert "none shown" not in rows[50].split("|")[0]


def test_the_sentence_on_deit() -> None:
    text = RESULTS.text.partition("<!-- generated: deit-methods -->")[2]
    assert "| repshift | 1.69x (1.58–1.78) | 1.00 (0.97–1.07) |" in text
    assert says(README.text, "1.69x (1.58–1.78) over flash")
    assert says(README.text, "1.00 times the oracle's time, 0.97–1.07")


@pytest.mark.parametrize(
    "name",
    ["cpu/dinov2-s-photos", "cpu/minilm-sentences", "cpu/smollm2-prompts", "cpu/deit-s-methods", "cpu/vit-t-sizes"],
)
def test_the_command_beside_a_table_asks_for_what_the_run_has(name: str) -> None:
    run = run_of(name)
    benches = [c for c in RESULTS.shown() if c.startswith("repshift bench")]
    asked = (f"--model {run.options['model'][0]} ", f"--variant {','.join(run.options['variant'])} ")
    (command,) = [c for c in benches if all(words in c for words in asked)]
    given = dict(re.findall(r"--([a-z-]+) (\S+)", command))
    assert given["variant"].split(",") == run.options["variant"]
    assert ("rounds" in given and int(given["rounds"])) == (run.options.get("rounds") or False)
    assert int(given.get("batch", 1)) == run.options["batch"][0]


def test_what_the_operators_page_says_of_the_lengths() -> None:
    assert {r.status for r in operator_tables.run_of_operators().records} == {"ok"}
    both = [operator_tables.records_of(phase) for phase in ("Causal prefill", "Prefill without a mask")]
    ratios = [{key: f.value for key, r in rows.items() if not r.unfit and (f := speedup(r))} for rows in both]
    for rows in ratios:
        assert max(value for (name, _), value in rows.items() if name == "`xattention`") < 1
        assert all(value > 2 for (name, _), value in rows.items() if name == operator_tables.HALF)
        assert max(value for (name, n), value in rows.items() if name == "`sliding`" and n < 2048) < 1
    errors = {name: r.measurement("err_full") for (name, n), r in both[0].items() if n == 1024}
    told = {name: m.samples[0] for name, m in errors.items() if m and m.samples}
    assert min(told[f"`{name}`"] for name in ("sliding", "longformer", "streaming")) > 0.5
    assert round(told["`streaming_cache`"], 2) == 0.25
    decoding = operator_tables.records_of("Decoding")
    error = decoding["`lessismore`", 1024].measurement("err_full")
    assert error and round(error.samples[0], 3) == 0.018
    faster = {name for (name, _), r in decoding.items() if not r.unfit and (f := speedup(r)) and f.low and f.low > 1.15}
    assert faster == {"`dmc`"}
    lacking = [line for line in operator_tables.operator_lengths().splitlines() if line.startswith("- Not here")]
    assert "`cudnn`" in lacking[0] and "exists on CUDA only" in lacking[0]


def test_of_the_calibrated_candidates_merging_alone_beats_random_and_the_shift_on_images() -> None:
    ahead = {m: [n for n in own_scores.tried(m) if own_scores.beats_both(m, n)] for m in ("dinov2", "minilm")}
    assert ahead["dinov2"] == ["merged into nearest kept"] and ahead["minilm"] == own_scores.tried("minilm")
    kept = [own_scores.result(m)["methods"][ahead["dinov2"][0]]["chosen"] for m in ahead]
    assert kept == [["merge greedy", "merge greedy", "merge stride"], ["merge greedy"] * 2 + ["merge +mean distance"]]


def test_on_the_decoder_no_candidate_beats_random() -> None:
    against = {n: own_scores.gain("smollm2", n, "random") for n in own_scores.tried("smollm2")}
    assert len(against) == 12 and all(figure.spans(0) or figure.value < 0 for figure in against.values())
    shift = [n for n in against if (own_scores.gain("smollm2", n, "repshift").low or 0.0) > 0]
    assert shift == ["learnt linear score", "farthest point and shift"]
    methods = own_scores.result("smollm2")["methods"]
    assert [round(fmean(methods[n]["kl"]["samples"]), 2) for n in ("fastv", "random")] == [0.31, 1.06]
    assert says(RESULTS.text, "(KL 0.31 against 1.06)")


def gained(study: str, control: str, measure: str | None = None, digits: int = 1) -> list[float]:
    """By farthest_merge over a control on fresh data, and the interval's ends."""
    found = own_scores.gain(study, "merge greedy", control, measure)
    assert found.low is not None and found.high is not None
    return [round(v, digits) for v in (found.value, found.low, found.high)]


def test_what_is_shipped_beats_random_and_the_shift_on_fresh_data_of_both_models() -> None:
    for study, (skipped, count) in zip(own_scores.FRESH, ((192, 400), (96, 400)), strict=True):
        assert own_scores.tried(study) == ["merge greedy", "peaks place"]
        assert all(own_scores.beats_both(study, name) for name in own_scores.tried(study))
        held = own_scores.result(study)
        assert held["skipped"] == skipped
        assert {len(m[own_scores.primary(study)]["samples"]) for m in held["methods"].values()} == {count}
    images, mails = own_scores.FRESH
    assert [gained(images, "random"), gained(images, "random", "knn")] == [[6.0, 2.5, 9.6], [1.5, -2.0, 5.0]]
    assert gained(images, "divprune") == [-0.2, -1.9, 1.4]
    assert gained(mails, "random", digits=3)[0] == 0.108 and gained(mails, "random", "probe") == [1.7, -0.8, 4.2]
    assert gained(mails, "divprune", digits=3) == [0.013, 0.01, 0.016]
    assert says(RESULTS.text, "6.0 points over random dropping (2.5 to 9.6) by the probe")
    assert says(README.text, "6.0 points over random, 2.5–9.6; on mails the output, no points shown")
    assert says(RESULTS.text, "1.5 (-2.0 to 5.0)") and says(RESULTS.text, "(1.7, -0.8 to 4.2)")
    assert says(RESULTS.text, "(-0.2 points, -1.9 to 1.4), on the mails 0.013 of cosine (0.010 to 0.016)")
