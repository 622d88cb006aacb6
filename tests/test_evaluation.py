"""`repshift eval`: the same samples for every variant, known accuracies, and data that is damaged or does not fit."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluating import CHECKPOINT, MODEL, Done, digits, evaluate, plain_logits, write_digits
from PIL import Image

from repshift_cli import registry
from repshift_cli.analysis import stats
from repshift_cli.evaluation import loop
from repshift_cli.evaluation.order import Order
from repshift_cli.evaluation.samples import stratified

COUNT = 60
SHORT = ("--model", MODEL, "--device", "cpu", "--threads", "1", "--keep", "0.5", "--layers", "2", "--batch", "16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), range(COUNT))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of few samples."""
    from repshift_cli.evaluation import engine

    monkeypatch.setattr(engine, "SHARD", 16)


@pytest.fixture
def done(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Done:
    return evaluate(capsys, tmp_path / "run.json", *SHORT, "--data", folder)


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# --- accuracies that are known ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_says_what_each_variant_loses(done: Done) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    assert done.code == 0, done.err
    labels, logits = digits()[1][:COUNT], plain_logits(range(COUNT), 16)
    assert stats.point(done.record("flash").measurement("top1")) == pytest.approx(  # type: ignore[arg-type]
        100 * metrics.accuracy_score(labels, logits.argmax(-1))
    )
    assert stats.point(done.record("flash").measurement("top5")) == pytest.approx(  # type: ignore[arg-type]
        100 * metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(10))
    )
    own, reference = done.samples("flash+repshift"), done.samples("flash")
    assert done.samples("flash+repshift", "top1_vs_unpruned") == tuple(np.subtract(own, reference))
    assert done.samples("flash+lowest", "top1_vs_random") == tuple(
        np.subtract(done.samples("flash+lowest"), done.samples("flash+random"))
    )
    assert done.record("flash+stride").tokens == (65, 33)
    assert all(word in done.out for word in ("no loss shown", "not shown better", "60 samples", "nearest, mean 0.5"))
    assert not (done.file.parent / "run.json.parts").exists(), "what the run file holds is kept nowhere else"


def test_a_planted_accuracy_comes_out_exactly(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels are the model's own answers but for seven of them; rows in another order, and two workers."""
    answers = plain_logits(range(COUNT), COUNT).argmax(-1).tolist()
    wrong = {3, 11, 17, 29, 41, 53, 59}
    files = {int(f.stem): f for f in folder.rglob("*.png")}
    rows = [{"path": files[i], "label": (answers[i] + (i in wrong)) % 10} for i in reversed(range(COUNT))]
    data = table(tmp_path / "planted.csv", rows)
    one = evaluate(capsys, tmp_path / "one.json", *SHORT, "--data", data, "--variant", "flash,flash+lowest")
    assert one.code == 0, one.err
    assert sum(one.samples("flash")) == 100.0 * (COUNT - len(wrong))
    two = evaluate(
        capsys, tmp_path / "two.json", *SHORT, "--data", data, "--variant", "flash,flash+lowest", "--workers", 2,
        "--batch", 64,
    )  # fmt: skip
    assert two.samples("flash+lowest") == one.samples("flash+lowest"), "workers and padding change nothing"


def test_no_workers_are_none_when_an_evaluation_goes_on() -> None:
    order = Order.from_options({"data": "somewhere", "workers": 0})
    assert Order.from_options(order.as_options()).workers == 0


def test_logits_at_keep_1_are_those_of_a_plain_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in batches of the same samples; a last batch that is filled up changes nothing either."""
    from repshift_cli.evaluation import assembly
    from repshift_cli.evaluation.decoding import Decoder
    from repshift_cli.evaluation.order import Order
    from repshift_cli.evaluation.tasks import Judge

    class Logits(Judge):
        def items(self, sample: Any) -> Any:
            return (sample["image"],)

        def read(self, case: Any, output: Any, samples: Any) -> np.ndarray:
            return output.logits.numpy()

    class Nowhere:
        def load(self, *_: Any) -> None: ...
        def save(self, *_: Any) -> None: ...
        def damage(self, *_: Any) -> None: ...
        def save_damage(self, *_: Any) -> None: ...
        def deaths(self, *_: Any) -> list[str]:
            return []

        def begin(self, *_: Any) -> None: ...
        def end(self, *_: Any) -> None: ...

    asked = {"model": MODEL, "data": str(folder), "device": "cpu", "variant": "flash,flash+repshift", "keep": "1"}
    order = Order.from_options({**asked, "layers": "2", "batch": "16", "threads": "1"})
    ready = assembly.assemble(order)
    assert isinstance(ready.decoder, Decoder)
    shards: Any = Nowhere()
    loop.Loop(Logits(), ready.feed, ready.decoder, shards, 16, 32).run(ready.contenders, ready.data.samples)
    places = [int(Path(sample.name).stem) for sample in ready.data.samples]
    filled = places + places[48:][: -COUNT % 16]
    expected = plain_logits(filled, 16)[:COUNT].numpy()
    for contender in ready.contenders:
        assert np.array_equal(contender.whole[:, 0], expected), contender.case.variant


def test_a_last_batch_of_few_is_as_good(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        evaluate(capsys, tmp_path / f"{size}.json", *SHORT[:-2], "--batch", size, "--data", folder,
                 "--variant", "flash,flash+repshift", "--quiet")
        for size in (7, 60)
    ]  # fmt: skip
    assert all(run.err.startswith("run file:") and "60 samples" not in run.out for run in sizes)
    assert sizes[0].samples("flash+repshift") == sizes[1].samples("flash+repshift")


# --- while it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stop", "seen"), [(8, 5), (3, 2)])
def test_an_interrupted_run_is_kept_and_goes_on(
    stop: int,
    seen: int,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    done: Done,
) -> None:
    calls = [0]
    original = loop.Loop._batch

    def counted(self: Any, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == stop:
            raise KeyboardInterrupt
        return original(self, *given)

    monkeypatch.setattr(loop.Loop, "_batch", counted)
    file = tmp_path / "again.json"
    stopped = evaluate(capsys, file, *SHORT, "--data", folder)
    assert stopped.code == 130 and f"repshift eval --resume {file}" in stopped.err
    assert {r.stopped_by for r in stopped.run.records} == {"interrupted"}
    assert len(stopped.samples("flash")) == 16, "what all variants have seen"
    assert [r.status for r in stopped.run.records] == ["ok"] * seen, "what has seen nothing yet has not failed"
    resumed = evaluate(capsys, file, "--resume", file)
    assert resumed.code == 0, resumed.err
    assert calls[0] == 4 * 5 + 1, "no batch was run twice but the interrupted one"
    for variant in ("flash", "flash+repshift", "flash+random"):
        assert resumed.samples(variant) == done.samples(variant)
    assert not [f for f in tmp_path.iterdir() if f.name.endswith(".parts") and f.name.startswith("again")]


def test_what_ends_the_process_twice_fails_and_the_others_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from repshift_cli.evaluation.shards import Shards

    original, file = loop.Loop._batch, tmp_path / "died.json"

    def dies(self: Any, contender: Any, *given: Any) -> Any:
        if contender.case.pruning == "lowest":
            raise KeyboardInterrupt
        return original(self, contender, *given)

    asked: tuple[Any, ...] = (*SHORT, "--data", folder, "--variant", "flash,flash+lowest,flash+stride")
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_batch", dies)
        patch.setattr(Shards, "end", lambda *_: None)  # as where nothing more is done
        patch.setattr("repshift_cli.evaluation.shards.forgive", lambda *_: None)
        assert evaluate(capsys, file, *asked).code == evaluate(capsys, file, "--resume", file).code == 130
    run = evaluate(capsys, file, "--resume", file)
    assert run.code == 1 and "ended 2 times" in str(run.record("flash+lowest").reason)
    assert len(run.samples("flash")) == len(run.samples("flash+stride")) == COUNT


CRASHING = """
import ctypes
from transformers import ViTForImageClassification
import torch

def model():
    module = ViTForImageClassification.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()

    def look(block, args):
        if args[0].shape[1] == 33:
            ctypes.string_at(0)

    module.vit.layers[-1].register_forward_pre_hook(look)
    return module, {"pixel_values": torch.randn(2, 3, 16, 16)}
"""


@pytest.mark.slow
def test_a_variant_that_ends_its_process_fails_alone_in_the_same_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried twice, each time in a worker process that dies of it."""
    from repshift_cli import cli
    from repshift_cli.commands.shared import launching

    monkeypatch.setattr(launching, "DEFAULT", "process")
    (tmp_path / "crashing.py").write_text(CRASHING.replace("CHECKPOINT", repr(str(CHECKPOINT))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ["--model", "crashing:model", *SHORT[2:6], "--keep", "0.5,0.8", "--layers", "2", "--data", str(folder)]
    more = ["--preprocess", "mean=0.5,std=0.5", "--variant", "flash,flash+stride", "--out", "run.json"]
    assert cli.run(["eval", *asked, *more], False) == 1
    run = Done(1, *capsys.readouterr(), tmp_path / "run.json")
    assert run.err.count("segmentation fault); going on in another process") == 2
    assert "ended 2 times" in str(run.record("flash+stride", keep=0.5).reason) and "segmentation" in run.out
    assert len(run.samples("flash")) == COUNT
    kept = run.record("flash+stride", keep=0.8).measurement("top1_vs_unpruned")
    assert kept and len(kept.samples) == COUNT and not (tmp_path / "run.json.parts").exists()


def test_it_ends_when_the_difference_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_digits(tmp_path / "many", range(160))
    run = evaluate(capsys, tmp_path / "u.json", *SHORT, "--data", data, "--variant", "flash,flash+random",
                   "--seeds", 2, "--until", "±20", "--limit", 150)  # fmt: skip
    assert run.code == 0, run.err
    assert len(run.samples("flash")) == 112 and {r.stopped_by for r in run.run.records} == {"precision"}
    assert "112 samples of 160" in run.out and "stopped by: precision" in run.out
    seeds = {r.case.seed: r.measurement("top1") for r in run.run.records if r.case.pruning == "random"}
    assert set(seeds) == {0, 1} and seeds[0] != seeds[1]


def test_damage_is_named_and_counts_for_nobody(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_digits(tmp_path / "damaged", range(40))
    broken = sorted(data.rglob("*.png"))[:3]
    broken[0].write_bytes(b"no image")
    broken[1].write_bytes(broken[1].read_bytes()[:60])
    broken[2].write_bytes(b"")
    run = evaluate(capsys, tmp_path / "d.json", *SHORT, "--data", data, "--variant", "flash,flash+stride")
    assert run.code == 0, run.err
    assert len(run.samples("flash")) == len(run.samples("flash+stride")) == 37
    assert "3 of 40 samples could not be read" in run.out and broken[0].name in run.out
    for file in data.rglob("*.png"):
        file.write_bytes(b"no image")
    gone = evaluate(capsys, tmp_path / "g.json", *SHORT, "--data", data)
    assert gone.code == 2 and "none of the 40 samples could be read" in gone.err


def test_a_shard_of_which_nothing_could_be_read_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_digits(tmp_path / "data", range(40))
    files = sorted(data.rglob("*.png"))
    for place in stratified([f.parent.name for f in files], 0)[16:32]:
        files[place].write_bytes(b"no image")
    run = evaluate(capsys, tmp_path / "s.json", *SHORT, "--data", data, "--variant", "flash,flash+stride")
    assert run.code == 0, run.err
    assert len(run.samples("flash", "top5")) == 24 and "16 of 40 samples could not be read" in run.out


def test_nan_fails_a_variant_and_not_the_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.Loop._batch

    def poisoned(self: Any, contender: Any, *given: Any) -> Any:
        if contender.case.pruning == "repshift":
            step = contender.step
            contender = replace(contender, step=replace(step, run=lambda inputs: _nan(step.run(inputs))))
        return original(self, contender, *given)

    def _nan(output: Any) -> Any:
        output.logits[0, 0] = torch.nan
        return output

    monkeypatch.setattr(loop.Loop, "_batch", poisoned)
    run = evaluate(
        capsys, tmp_path / "n.json", *SHORT, "--data", folder, "--variant", "flash,flash+repshift,flash+random"
    )
    assert run.code == 1
    failed = run.record("flash+repshift")
    assert failed.status == "failed" and "NaN" in str(failed.reason) and not failed.measurements
    assert len(run.samples("flash+random", "top1_vs_unpruned")) == COUNT


def test_a_disk_that_is_full_ends_it_in_a_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from repshift_cli.evaluation import shards

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.store, "replacing", full)
    monkeypatch.setattr("repshift_cli.records.journal.Journal.create", lambda path, run, instead=None: _Kept(path, run))
    run = evaluate(capsys, tmp_path / "f.json", *SHORT, "--data", folder)
    assert (
        run.code == 1 and "No space left on device" in run.err and "--resume" in run.err and "Traceback" not in run.err
    )


class _Kept:
    """A journal that needs no disk."""

    def __init__(self, path: Path, run: Any) -> None:
        self.path, self.run = path, run
        path.touch()

    def close(self) -> None: ...


@pytest.mark.slow
def test_the_same_variants_are_timed_and_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from repshift_cli import cli
    from repshift_cli.evaluation.loop import DEATHS
    from repshift_cli.evaluation.shards import TIMING, Shards

    variants = ("--variant", "flash,flash+repshift,flash+random", "--bench", "--rounds", 6)
    with monkeypatch.context() as patch:
        died = ("stride", TIMING)
        patch.setattr(Shards, "deaths", lambda self, case, doing="": ["x"] * DEATHS * ((case.pruning, doing) == died))
        dying = (variants[0], variants[1] + ",flash+stride", *variants[2:])
        run = evaluate(capsys, tmp_path / "b.json", *SHORT, "--data", folder, *dying, "--seeds", 2)
    assert run.code == 0, run.err
    assert "flash+stride seed 0): not timed: the process ended 2 times" in " ".join(run.out.split()), run.out
    points = {}
    for record in run.run.records:
        latency, accuracy, front = (record.measurement(m) for m in ("latency", "top1", "pareto"))
        if record.case.seed or record.case.pruning == "stride":
            assert latency is None and front is None, "of random dropping one seed is timed"
            continue
        assert latency and accuracy and front and len(latency.samples) % 6 == 0 and record.rounds == 6
        points[-stats.point(latency), stats.point(accuracy)] = front.samples[0]  # type: ignore[operator]
    for place, on_front in points.items():
        beaten = [o for o in points if o != place and o[0] >= place[0] and o[1] >= place[1]]  # type: ignore[operator]
        assert on_front == float(not beaten)
    assert run.record("flash+repshift").measurement("speedup_vs_flash")
    other = evaluate(capsys, tmp_path / "o.json", *SHORT, "--data", folder, *variants[:2], "--seed", 1)
    assert other.code == 0
    assert cli.run(["compare", str(run.file), str(other.file), "--all", "--metric", "top1"], False) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "paired on the 60 samples" in told and "0.0 points (-6.0 to +6.0)" in told, told
    assert cli.run(["show", str(run.file), "--csv", "-"], False) == 0
    told = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {"top1_percent_low", "top1_vs_unpruned_points_high", "top1_p_holm", "latency_ms"} <= set(told[0])
    assert cli.run(["compare", str(run.file), str(run.file), "--all", "--metric", "top1"], False) == 0
    assert "same" in capsys.readouterr().out
    assert cli.run(["show", str(run.file), "--markdown", "-"], False) == 0
    assert "| top-1 vs unpruned |" in capsys.readouterr().out


CERTAINTY = '''"""How sure is the model of its answer?"""

import numpy as np

from repshift_cli.evaluation.tasks import Judge, finite
from repshift_cli.records import Metric

METRICS = (Metric("certainty", "certainty", "%", "higher", "mean", "computed", "Probability of the first class."),)


def begin(context):
    return Certainty(context)


class Certainty(Judge):
    def __init__(self, context):
        self._subject = context.subject

    def items(self, sample):
        return (sample["image"],)

    def read(self, case, output, samples):
        return finite(self._subject.logits(output)).softmax(-1).amax(-1, keepdim=True).cpu().numpy()

    def scores(self, outputs, samples):
        return {"certainty": 100.0 * outputs[:, 0, 0].astype(np.float64)}
'''


def test_another_package_adds_a_task_by_one_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "certainty_task.py").write_text(CERTAINTY)
    info = tmp_path / "certainty-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: certainty\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[repshift.evaluation.tasks]\ncertainty = certainty_task\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.parts.cache_clear()
    try:
        run = evaluate(capsys, tmp_path / "t.json", *SHORT, "--data", folder, "--variant", "flash,flash+random",
                       "--task", "certainty")  # fmt: skip
    finally:
        registry.parts.cache_clear()
    assert run.code == 0, run.err
    sure = plain_logits(range(COUNT), COUNT).softmax(-1).amax(-1)
    assert np.mean(run.samples("flash", "certainty")) == pytest.approx(100 * float(sure.mean()), abs=1e-3)
    assert "certainty vs unpruned" in run.out


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_with_what_to_do(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    lone = write_digits(tmp_path / "lone", [0])
    strange = tmp_path / "strange"
    for name in ("cat", "dog"):
        (strange / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(strange / name / "1.png")
    split = write_digits(tmp_path / "split" / "train", range(4)).parent
    write_digits(split / "val", range(4, 8))
    rows = table(tmp_path / "rows.csv", [{"path": "a.png", "kind": 1}])
    gaps = table(tmp_path / "gaps.csv", [{"path": "a.png", "label": 1}, {"path": "b.png", "label": ""}])
    cases: list[tuple[list[object], str]] = [
        (["--data", tmp_path / "empty"], "no images in"),
        (["--data", lone], "one class only"),
        (["--data", strange], "2 of 2 labels name no one class of the model, like 'cat', 'dog'; its classes are 0 '0'"),
        (["--data", split], "splits train, val; name one"),
        (["--data", split, "--split", "test"], "has no split 'test': it has train, val"),
        (["--data", split, "--split", "val", "--train", "x", "--task", "probe"], "has no split 'x'"),
        (["--data", folder, "--split", "val"], "has no split 'val': it has none"),
        (["--data", rows], "needs a column label"),
        (["--data", rows], "the data has kind, image"),
        (["--data", gaps], "1 of 2 samples have no label, like line 3"),
        (["--data", rows, "--column", "label=class"], "the data has the columns path, kind"),
        (["--data", tmp_path / "nowhere"], "there is no such file or folder"),
        (["--data", tmp_path / "lone" / "0" / "000.png"], "`repshift eval --list` says what can be read"),
        ([], "--data is missing"),
        (["--data", folder, "--until", "x"], "half-width"),
        (["--data", folder, "--preprocess", "crop=x"], "none of resize=256"),
        (["--data", folder, "--batch", "1,2"], "--batch takes one value"),
    ]
    for arguments, words in cases:
        run = evaluate(capsys, tmp_path / "bad.json", *SHORT[:6], *arguments)
        assert run.code == 2 and words in run.err and "Traceback" not in run.err, run.err
    headless = evaluate(capsys, tmp_path / "bad.json", "--model", "dinov2_s", "--image-size", 28, "--data", folder)
    assert headless.code == 2 and "--task probe" in headless.err
