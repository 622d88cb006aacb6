"""The tasks of `repshift eval` beside classification, each held against somebody else's computation."""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluating import MODEL, digits, evaluate, plain_logits, write_digits
from test_evaluation import COUNT, table

from repshift_cli.analysis import stats
from repshift_cli.evaluation.datasets import read
from repshift_cli.evaluation.samples import IMAGE, LABEL, Sample, opened, renamed
from repshift_cli.evaluation.tasks import finite, multiple_choice, retrieval, similarity
from repshift_cli.evaluation.tasks.probe import Heads
from repshift_cli.records import UsageError

SHORT = ("--device", "cpu", "--threads", "1", "--keep", "0.5", "--layers", "1", "--batch", "8")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny BERT of random weights, with a tokenizer of letters."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama of random weights, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("decoder")
    words = ["<unk>", *"ABCDEFGH", ".", ":", "Answer", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=64, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return f"hf:{folder}"


# --- probe ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_heads_answer_as_scikit_learns_do() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    neighbors = pytest.importorskip("sklearn.neighbors")
    pixels, labels = digits()
    features = pixels.reshape(len(pixels), -1) / 255 + np.random.default_rng(0).normal(0, 0.3, (len(pixels), 64))
    heads = Heads(torch.from_numpy(features[:300]), torch.from_numpy(labels[:300]), 10, 7)
    mean, spread = features[:300].mean(0), features[:300].std(0, ddof=1)
    theirs = linear.LogisticRegression(max_iter=2000, tol=1e-8).fit((features[:300] - mean) / spread, labels[:300])
    assert np.array_equal(
        heads.linear(torch.from_numpy(features[300:])), theirs.predict((features[300:] - mean) / spread)
    )
    near = neighbors.KNeighborsClassifier(7, metric="cosine", weights=lambda d: np.exp(-d / 0.07))
    expected = near.fit(features[:300], labels[:300]).predict(features[300:])
    assert np.array_equal(heads.nearest(torch.from_numpy(features[300:])), expected)


@pytest.mark.slow
def test_a_probe_is_fitted_on_the_unpruned_model_or_on_each_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_digits(data / "train", range(100, 180))
    write_digits(data / "test", range(COUNT))
    asked = ("--model", MODEL, *SHORT, "--data", data, "--split", "test", "--train", "train", "--task", "probe")
    once = evaluate(capsys, tmp_path / "once.json", *asked, "--variant", "flash,flash+random")
    assert once.code == 0, once.err
    assert stats.point(once.record("flash").measurement("probe_top1")) > 50  # type: ignore[operator]
    assert "fitted on the features of the unpruned model, on 80 samples" in " ".join(once.out.split())
    again = evaluate(capsys, tmp_path / "again.json", *asked, "--variant", "flash,flash+random", "--refit")
    assert again.samples("flash", "probe_top1") == once.samples("flash", "probe_top1")
    assert again.samples("flash+random", "probe_top1") != once.samples("flash+random", "probe_top1")
    bare = evaluate(capsys, tmp_path / "bare.json", *asked[:-4], "--task", "probe")
    assert bare.code == 2 and "--train" in bare.err
    strange = evaluate(capsys, tmp_path / "s.json", *asked[:-3], write_digits(tmp_path / "part", range(4)), *asked[-2:])
    assert strange.code == 2 and "not in the training data" in strange.err


def test_what_a_probe_cannot_learn_from_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from repshift_cli.evaluation.tasks.probe import Probe

    data = tmp_path / "data"
    broken = sorted(write_digits(data / "train", range(30)).rglob("*.png"))
    write_digits(data / "test", range(16))
    broken[0].write_bytes(b"no image")
    asked = ("--model", MODEL, *SHORT, "--data", data, "--split", "test", "--train", "train", "--task", "probe",
             "--variant", "flash,flash+random")  # fmt: skip
    run = evaluate(capsys, tmp_path / "d.json", *asked)
    assert run.code == 0 and len(run.samples("flash", "probe_top1")) == 16
    assert "1 of 30 training samples could not be read" in run.out
    with monkeypatch.context() as patch:
        patch.setattr(Probe, "features", lambda *_: finite(torch.tensor([torch.nan])))
        failed = evaluate(capsys, tmp_path / "n.json", *asked)
    assert failed.code == 1 and "NaN" in str(failed.record("flash").reason)
    assert "nothing could be learnt from flash: the output holds NaN" in str(failed.record("flash+random").reason)
    for file in broken:
        file.write_bytes(b"no image")
    gone = evaluate(capsys, tmp_path / "g.json", *asked)
    assert gone.code == 2 and "none of the 30 training samples could be read" in gone.err


# --- texts ------------------------------------------------------------------------------------------------------------

SENTENCES = [
    "a b",
    "a b c",
    "d e f g",
    "h i j",
    "j j j a",
    "b d",
    "c f i",
    "e a d g h",
    "g g",
    "i b a c",
    "f f e",
    "h a",
]


def embeddings(model: str, texts: list[str]) -> np.ndarray:
    """Each text alone through the encoder, the mean of its tokens."""
    from transformers import AutoTokenizer, BertModel

    folder = model.removeprefix("hf:")
    tokenizer, module = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = [module(**tokenizer(t, return_tensors="pt")).last_hidden_state.mean(1) for t in texts]
    return torch.cat(found).double().numpy()


def test_similarity_is_spearmans_of_the_cosines(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scipy = pytest.importorskip("scipy.stats")
    pairs = list(zip(SENTENCES, SENTENCES[1:] + SENTENCES[:1], range(12), strict=True))
    data = table(tmp_path / "pairs.csv", [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in pairs])
    run = evaluate(capsys, tmp_path / "s.json", "--model", encoder, *SHORT, "--tokens", 16, "--data", data,
                   "--task", "similarity", "--variant", "vanilla,vanilla+random")  # fmt: skip
    assert run.code == 0, run.err
    one, two = (similarity.directions(embeddings(encoder, [p[i] for p in pairs])) for i in (0, 1))
    expected = scipy.spearmanr((one * two).sum(1), range(12)).statistic
    assert run.samples("vanilla", "spearman")[0] == pytest.approx(expected, abs=1e-6)
    measured = run.record("vanilla+random").measurement("spearman_vs_unpruned")
    assert measured is not None and measured.statistic == "bootstrap" and len(measured.samples) > 1000
    bad = table(tmp_path / "bad.csv", [{"text": "a", "pair": "b", "score": "much"}] * 3)
    refused = evaluate(capsys, tmp_path / "b.json", "--model", encoder, *SHORT, "--tokens", 16, "--data", bad,
                       "--task", "similarity")  # fmt: skip
    assert refused.code == 2 and "'much' is no number" in refused.err


def test_retrieval_counts_partners_among_the_nearest(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": a, "pair": b} for a, b in zip(SENTENCES, reversed(SENTENCES), strict=True)]
    data = table(tmp_path / "pairs.csv", rows)
    run = evaluate(capsys, tmp_path / "r.json", "--model", encoder, *SHORT, "--tokens", 16, "--data", data,
                   "--task", "retrieval", "--variant", "vanilla,vanilla+stride")  # fmt: skip
    assert run.code == 0, run.err
    found = similarity.directions(embeddings(encoder, SENTENCES))
    cosine = found @ found[::-1].T
    for k in retrieval.AT:
        hits = [i in np.argsort(-cosine[i])[:k] for i in range(12)]
        assert run.samples("vanilla", f"recall_at_{k}")[0] == pytest.approx(100 * np.mean(hits))


def test_next_token_loss_is_the_librarys(decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    words = [f"w{i}" for i in np.random.default_rng(0).integers(0, 40, 200)]
    (tmp_path / "text.txt").write_text(" ".join(words))
    run = evaluate(capsys, tmp_path / "n.json", "--model", decoder, *SHORT, "--tokens", 12, "--data",
                   tmp_path / "text.txt", "--task", "next-token", "--variant", "flash,flash+random")  # fmt: skip
    assert run.code == 0, run.err
    folder = decoder.removeprefix("hf:")
    ids = AutoTokenizer.from_pretrained(folder)(" ".join(words), return_tensors="pt")["input_ids"]
    windows = ids[0, : 15 * 13].view(15, 13)
    module = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        losses = [
            module(input_ids=w[None], labels=torch.where(torch.arange(13) == 12, w, -100)[None]).loss for w in windows
        ]
    assert sorted(run.samples("flash", "next_token_loss")) == pytest.approx(sorted(map(float, losses)), abs=1e-5)
    assert run.samples("flash", "perplexity")[0] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    short = evaluate(capsys, tmp_path / "x.json", "--model", decoder, *SHORT, "--tokens", 60, "--data",
                     table(tmp_path / "t.csv", [{"text": "w1"}]), "--task", "next-token")  # fmt: skip
    assert short.code == 2 and "use fewer --tokens" in short.err


def test_multiple_choice_reads_the_letters(decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"text": f"w{i} w{i + 1}" + " w3" * (i % 3), "choices": "w5|w6|w7"[: 5 + 3 * (i % 2)], "answer": "AB1"[i % 3]}
        for i in range(9)
    ]
    data = table(tmp_path / "mc.csv", rows)
    run = evaluate(capsys, tmp_path / "m.json", "--model", decoder, *SHORT, "--tokens", 40, "--data", data,
                   "--task", "multiple-choice", "--variant", "flash,flash+random")  # fmt: skip
    assert run.code == 0, run.err
    assert sum(run.samples("flash", "choice")) == 100 * sum(map(_right_letter(decoder), rows))
    wrong = table(tmp_path / "w.csv", [{"text": "w1", "choices": "w5|w6", "answer": "C"}])
    refused = evaluate(capsys, tmp_path / "w.json", "--model", decoder, *SHORT, "--tokens", 40, "--data", wrong,
                       "--task", "multiple-choice")  # fmt: skip
    assert refused.code == 2 and "the answer 'C' is none of its 2 choices" in refused.err


def _right_letter(decoder: str) -> Any:
    """Whether the right letter has the highest logit, by a loop over questions."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = decoder.removeprefix("hf:")
    tokenizer, module = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder).eval()

    def right(row: dict[str, str]) -> bool:
        sample = Sample("", {"text": row["text"], "choices": row["choices"], "label": row["answer"]})
        ids = tokenizer(multiple_choice.prompt(sample), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = module(input_ids=ids).logits[0, -1, 1 : 1 + len(row["choices"].split("|"))]
        return int(logits.argmax()) == {"A": 0, "B": 1, "1": 1}[row["answer"]]

    return right


def test_a_decoder_is_sent_to_its_tasks(decoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path / "t.csv", [{"text": "w1 w2", "label": "a"}, {"text": "w3", "label": "b"}])
    run = evaluate(capsys, tmp_path / "d.json", "--model", decoder, *SHORT, "--tokens", 8, "--data", data)
    assert run.code == 2 and "next_token and multiple_choice" in run.err


# --- formats ----------------------------------------------------------------------------------------------------------


def webdataset(place: Path, files: list[Path]) -> Path:
    with tarfile.open(place, "w") as tar:
        for number, file in enumerate(files):
            for name, data in (
                (f"{number:04}.png", file.read_bytes()),
                (f"{number:04}.cls", file.parent.name.encode()),
            ):
                member = tarfile.TarInfo(f"part/{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return place


def parquet(place: Path, files: list[Path]) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": f.read_bytes(), "path": None}, "label": f.parent.name} for f in files]
    writer.write_table(pyarrow.Table.from_pylist(rows), place)
    return place


def of_the_hub(place: Path, files: list[Path]) -> Path:
    """As the hub has a data set: Parquet in a folder, labels in numbers, whose names are in the file."""
    pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
    import pyarrow
    import pyarrow.parquet

    names = sorted({f.parent.name for f in files}, reverse=True)
    rows = [{"image": {"bytes": f.read_bytes()}, "label": names.index(f.parent.name)} for f in files]
    told = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    place.joinpath("data").mkdir(parents=True)
    for number, part in enumerate((rows[:5], rows[5:])):
        table = pyarrow.Table.from_pylist(part).replace_schema_metadata({"huggingface": json.dumps(told)})
        pyarrow.parquet.write_table(table, place / "data" / f"test-0000{number}-of-00002.parquet")
    return place


def saved(place: Path, files: list[Path]) -> Path:
    datasets = pytest.importorskip("datasets", reason="what datasets has saved is read by datasets")
    names = [str(i) for i in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [str(f) for f in files], "label": [int(f.parent.name) for f in files]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(rows, features)}).save_to_disk(place)
    return place


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (webdataset, "shard.tar", "webdataset"),
        (parquet, "d.parquet", "parquet"),
        (of_the_hub, "hub", "parquet"),
        (saved, "saved", "arrow"),
    ],
)
def test_every_format_gives_the_same_samples(make: Any, name: str, kind: str, tmp_path: Path) -> None:
    files = sorted(write_digits(tmp_path / "files", range(12)).rglob("*.png"))
    found, samples = read(str(make(tmp_path / name, files)), None)
    assert found == kind
    for file, sample in zip(files, renamed(samples, {}), strict=True):
        with opened(sample[IMAGE]) as picture:
            assert picture.read() == file.read_bytes()
        assert str(sample[LABEL]) == file.parent.name


def test_a_name_of_the_hub_is_asked_for_once_and_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the hub is asked by datasets")
    from repshift_cli.evaluation.datasets import arrow

    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    rows = rows.cast_column("label", datasets.ClassLabel(names=["ham", "spam"]))
    asked: list[Any] = []
    monkeypatch.setattr(arrow, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: asked.append((given, named)) or rows)
    found = read("hub:owner/mails:plain", "test")[1]
    assert asked == [(("owner/mails", "plain"), {"split": "test"})]
    assert [s["label"] for s in found] == ["ham", "spam"]
    monkeypatch.setattr(arrow, "hub_answers", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **named: 1 / 0)
    with pytest.raises(UsageError, match="the hub does not answer"):
        read("hub:owner/mails", None)


def test_a_tar_is_evaluated_by_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(write_digits(tmp_path / "files", range(COUNT)).rglob("*.png"))
    data = webdataset(tmp_path / "shard.tar", files)
    run = evaluate(capsys, tmp_path / "w.json", "--model", MODEL, *SHORT, "--data", data, "--workers", 1,
                   "--variant", "flash")  # fmt: skip
    assert run.code == 0, run.err
    right = plain_logits(range(COUNT), 16).argmax(-1).numpy() == digits()[1][:COUNT]
    assert sum(run.samples("flash")) == 100.0 * right.sum()


def test_a_damaged_file_of_any_format_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for name in ("a.tar", "a.parquet", "a.csv", "a.txt"):
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow", reason="Parquet is read by pyarrow")
        (tmp_path / name).write_bytes(b"\xff\xfe\x00 nothing of that kind")
        with pytest.raises(UsageError, match="cannot read"):
            read(str(tmp_path / name), None)
