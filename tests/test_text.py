"""Text encoders: every padded sentence against a plain forward of that sentence alone, tokens dropped by a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli import cli, registry
from repshift_cli.attention import flash, vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.benchmark import builder
from repshift_cli.models import bert, hf
from repshift_cli.models.base.text import SentenceEncoder, sentence_subject
from repshift_cli.models.inputs.sentences import encoded, random_ids, roles, sentences
from repshift_cli.records import Case, Subject, UsageError, call, kept
from repshift_cli.reduction import lowest, oracle, random, repshift, stride
from repshift_cli.reduction.engine.hooks import pruned

WORDS, DEPTH, WIDTH, HEADS, WINDOW = 40, 3, 32, 4, 3
LENGTHS = (14, 3, 9, 2)
"""Tokens of the sentences, ends included: the last one has nothing to drop."""
SCHEDULES = [(0.7, (1, 2)), (0.5, (2,))]
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "attn_implementation": "sdpa",
}


# --- one sentence alone, written out ----------------------------------------------------------------------------------

Seen = dict[str, Tensor]
Choice = Callable[[int, int, Seen], list[int]]
"""(free tokens, how many stay, what a block showed of all tokens (n, C)) -> the free ones that stay."""


def heads(x: Tensor) -> Tensor:
    return x.view(len(x), HEADS, -1).transpose(0, 1)


def attended(q: Tensor, k: Tensor, v: Tensor, shown: Tensor) -> Tensor:
    scores = heads(q) @ heads(k).mT / (WIDTH // HEADS) ** 0.5
    return (scores.masked_fill(~shown, float("-inf")).softmax(-1) @ heads(v)).transpose(0, 1).reshape(len(q), -1)


def bert_block(m: Any, layer: int, x: Tensor, places: Tensor) -> tuple[Seen, Tensor]:
    b = m.encoder.layer[layer - 1]
    inner = b.attention.self
    everything = torch.ones(len(x), len(x), dtype=torch.bool)
    mixed = attended(inner.query(x), inner.key(x), inner.value(x), everything)
    attention = b.attention.output.dense(mixed)
    middle = b.attention.output.LayerNorm(x + attention)
    mlp = b.output.dense(F.gelu(b.intermediate.dense(middle)))
    out = b.output.LayerNorm(middle + mlp)
    return {"resid_pre": x, "attn_out": attention, "resid_mid": middle, "mlp_out": mlp, "resid_post": out}, out


def bert_start(m: Any, ids: Tensor, places: Tensor) -> Tensor:
    e = m.embeddings
    return e.LayerNorm(
        e.word_embeddings.weight[ids] + e.position_embeddings.weight[places] + e.token_type_embeddings.weight[0]
    )


def modern_block(m: Any, layer: int, x: Tensor, places: Tensor) -> tuple[Seen, Tensor]:
    b, slides = m.layers[layer - 1], layer % 3 != 1
    table = m.rotary_emb(x, places.unsqueeze(0), "sliding_attention" if slides else "full_attention")
    q, k, v = b.attn.Wqkv(x if layer == 1 else b.attn_norm(x)).chunk(3, -1)
    near = (places[:, None] - places[None]).abs() <= WINDOW
    mixed = attended(turned(q, *table), turned(k, *table), v, near if slides else torch.ones_like(near))
    attention = b.attn.Wo(mixed)
    middle = x + attention
    up, gate = b.mlp.Wi(b.mlp_norm(middle)).chunk(2, -1)
    mlp = b.mlp.Wo(F.gelu(up) * gate)
    return {
        "resid_pre": x,
        "attn_out": attention,
        "resid_mid": middle,
        "mlp_out": mlp,
        "resid_post": middle + mlp,
    }, middle + mlp


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of (n, C) by the library's own table, fp32 whatever the dtype: cos, sin (1, n, d)."""
    x = x.view(len(x), HEADS, -1)
    first, second = x.chunk(2, -1)
    return (x * cos[0, :, None] + torch.cat((-second, first), -1) * sin[0, :, None]).flatten(1)


@pytest.fixture(autouse=True)
def exact_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """ModernBERT rotates in fp32 whatever the dtype: its rounding would hide everything below 1e-7."""
    from transformers.models.modernbert import modeling_modernbert

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, ...]:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return tuple(x * cos + modeling_modernbert.rotate_half(x) * sin for x in (q, k))

    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", rotated)


@dataclass(frozen=True)
class Family:
    model: Any
    start: Callable[[Any, Tensor, Tensor], Tensor]
    block: Callable[[Any, int, Tensor, Tensor], tuple[Seen, Tensor]]
    finish: Callable[[Any, Tensor], Tensor]

    def alone(self, ids: Tensor, places: Tensor, choose: Choice, keep: float, layers: tuple[int, ...]) -> Tensor:
        """(C,): the mean over what is left of one sentence without padding; its first and last token stay."""
        x = self.start(self.model, ids, places)
        for layer in range(1, DEPTH + 1):
            seen, x = self.block(self.model, layer, x, places)
            free = len(x) - 2
            if layer in layers and free:
                stay = [0, *(1 + i for i in choose(free, kept(free, keep), seen)), len(x) - 1]
                x, places = x[stay], places[stay]
        return self.finish(self.model, x).mean(0)


def tiny_bert() -> Family:
    from transformers import BertConfig, BertModel

    model: Any = tiny.roughen(BertModel(BertConfig(**SHAPE), add_pooling_layer=False)).double()
    return Family(model, bert_start, bert_block, lambda m, x: x)


def tiny_modernbert() -> Family:
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(
        **SHAPE,
        local_attention=2 * WINDOW,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    model: Any = tiny.roughen(ModernBertModel(config)).double()
    start: Any = lambda m, ids, places: m.embeddings.norm(m.embeddings.tok_embeddings.weight[ids])  # noqa: E731
    return Family(model, start, modern_block, lambda m, x: m.final_norm(x))


FAMILIES = {"bert": tiny_bert, "modernbert": tiny_modernbert}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]()


def batch(lengths: tuple[int, ...], side: str = "right") -> dict[str, Tensor]:
    """Random sentences of these lengths, padded to the longest with id 0."""
    ids, mask = torch.zeros(2, len(lengths), max(lengths), dtype=torch.long)
    for row, n in enumerate(lengths):
        where = slice(0, n) if side == "right" else slice(max(lengths) - n, None)
        ids[row, where], mask[row, where] = random_ids(1, n, WORDS, seed=row)[0], 1
    return {"input_ids": ids, "attention_mask": mask}


def text_subject(family: Family, inputs: dict[str, Tensor]) -> Subject:
    return sentence_subject(SentenceEncoder(family.model).eval(), (inputs,))


@contextmanager
def pruning(subject: Subject, method: Any, given: Case, attention: Any = vanilla) -> Iterator[None]:
    with torch.inference_mode(), attending(attention), pruned(subject, method, given):
        yield


def run(subject: Subject, method: Any, given: Case, attention: Any = vanilla) -> Tensor:
    with pruning(subject, method, given, attention):
        return call(subject.module, subject.inputs)


def scored(operation: str, form: str | None, sign: int = 1) -> Choice:
    before, branch = tiny.BRANCHES[operation]

    def choose(free: int, count: int, seen: Seen) -> list[int]:
        other = seen[branch] if form != "update" else seen[branch] + seen[before]
        shift = sign * (other - seen[before]).norm(dim=-1)[1:-1]
        return sorted(sorted(range(free), key=lambda i: -float(shift[i]))[:count])

    return choose


METHODS: dict[str, tuple[Any, dict[str, Any], Choice]] = {
    "mlp": (repshift, {"operation": "mlp", "form": "paper"}, scored("mlp", "paper")),
    "attention": (repshift, {"operation": "attention", "form": "update"}, scored("attention", "update")),
    "block": (repshift, {"operation": "block", "form": None}, scored("block", None)),
    "lowest": (lowest, {"operation": "mlp", "form": "paper"}, scored("mlp", "paper", -1)),
    "oracle": (oracle, {}, lambda free, count, seen: list(range(count))),
    "stride": (stride, {}, lambda free, count, seen: list(stride.choose(free, count))),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
def test_a_padded_sentence_gives_what_it_gives_alone(
    family: Family, method: str, keep: float, layers: tuple[int, ...], side: str
) -> None:
    inputs = batch(LENGTHS, side)
    module, options, choose = METHODS[method]
    found = run(text_subject(family, inputs), module, case(keep=keep, layers=layers, distance="l2", **options))
    for row, n in enumerate(LENGTHS):
        real = inputs["attention_mask"][row].bool()
        places = torch.arange(max(LENGTHS))[real]
        with torch.inference_mode():
            alone = family.alone(inputs["input_ids"][row][real], places, choose, keep, layers)
        torch.testing.assert_close(found[row], alone, rtol=1e-10, atol=1e-10, msg=f"sentence of {n} tokens")


@pytest.mark.parametrize("name", ["cls_attention", "column_attention", "dart", "divprune"])
def test_a_rival_keeps_of_a_padded_sentence_what_it_keeps_of_it_alone(family: Family, name: str) -> None:
    method, inputs = registry.load(registry.find("reduction", name)), batch(LENGTHS)
    asked = case(pruning=name, keep=0.6, layers=(1, 2)).with_options(**({"pivots": 2} if name == "dart" else {}))
    found = run(text_subject(family, inputs), method, asked)
    uncut = run(text_subject(family, inputs), method, case(pruning=name))
    for row, n in enumerate(LENGTHS):
        alone = {key: value[row : row + 1, :n] for key, value in inputs.items()}
        kept = run(text_subject(family, alone), method, asked)
        torch.testing.assert_close(found[row : row + 1], kept, rtol=1e-10, atol=1e-10, msg=f"{name} of {n} tokens")
    assert (found - uncut).abs().max() > 1e-3, "the cut must show in the output"


@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
def test_sentences_of_one_length_need_no_mask(family: Family, keep: float, layers: tuple[int, ...]) -> None:
    ids = random_ids(3, 12, WORDS, seed=5)
    subject = text_subject(family, {"input_ids": ids})
    found = run(subject, repshift, case(keep=keep, layers=layers, operation="mlp", form="paper"), flash)
    for row in range(3):
        with torch.inference_mode():
            alone = family.alone(ids[row], torch.arange(12), scored("mlp", "paper"), keep, layers)
        torch.testing.assert_close(found[row], alone, rtol=1e-10, atol=1e-10)


# --- what stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("keep", [0.6, 1e-9])
@pytest.mark.parametrize("method", [repshift, random, stride, oracle, lowest])
def test_the_ends_stay_and_padding_is_never_read(method: Any, keep: float, side: str) -> None:
    made, inputs = tiny_bert(), batch(LENGTHS, side)
    subject = text_subject(made, inputs)
    with torch.inference_mode():
        whole = made.model(**inputs).last_hidden_state
    read: list[tuple[Tensor, Tensor]] = []
    handle = subject.readers[0].register_forward_hook(lambda m, args, out: read.append(args))
    given = case(keep=keep, layers=(DEPTH,), operation="mlp", form="paper", distance="l2")
    run(subject, method, given, flash)
    handle.remove()
    (hidden, mask), real = read[0], inputs["attention_mask"].bool()
    assert hidden.shape[1] == mask.shape[1] == 2 + kept(max(LENGTHS) - 2, keep)
    for row, n in enumerate(LENGTHS):
        rows = whole[row, real[row]]
        distances = torch.cdist(hidden[row, mask[row].bool()], rows)
        places = distances.argmin(1).tolist()
        assert distances.min(1).values.max() < 1e-9, "a token that is none of the sentence's"
        assert len(places) == min(n, 2 + kept(max(n - 2, 1), keep)), "as many as the sentence alone would keep"
        assert places == sorted(set(places)) and {0, n - 1} <= set(places)


def test_keep_1_is_the_untouched_model_and_nothing_is_left_behind(family: Family) -> None:
    subject = text_subject(family, batch(LENGTHS))
    with torch.inference_mode():
        untouched = call(subject.module, subject.inputs)
        with pruned(subject, repshift, case(keep=1.0, layers=(1,), operation="mlp", form="paper")):
            assert torch.equal(call(subject.module, subject.inputs), untouched)
        with pruned(subject, repshift, case(keep=0.5, layers=(1,), operation="mlp", form="paper")):
            assert not torch.equal(call(subject.module, subject.inputs), untouched)
        assert torch.equal(call(subject.module, subject.inputs), untouched)


def test_roles_follow_the_mask() -> None:
    inf = float("inf")
    inputs = {
        "input_ids": torch.ones(2, 5, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]),
    }
    assert roles(inputs).tolist() == [[inf, 0, 0, inf, -inf], [-inf, -inf, inf, 0, inf]]
    assert roles({"input_ids": inputs["input_ids"]}).tolist() == [[inf, 0, 0, 0, inf]] * 2


# --- planning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "length", "depth", "tokens", "head_dim", "needs"),
    [
        ("bert_b", None, 12, 512, 64, None),
        ("bert_l", 128, 24, 128, 64, None),
        ("minilm", 16, 6, 16, 32, None),
        ("modernbert_b", None, 22, 1024, 64, "sliding windows"),
        ("modernbert_l", 63, 28, 63, 64, None),
        ("modernbert_l", 64, 28, 64, 64, "sliding windows"),
    ],
)
def test_facts_of_the_aliases(
    name: str, length: int | None, depth: int, tokens: int, head_dim: int, needs: str | None
) -> None:
    facts = builder.facts_of(None, name, None, None, length)
    assert (facts.depth, facts.tokens + facts.prefix, facts.prefix, facts.length) == (depth, tokens, 2, tokens)
    assert (facts.head_dim, facts.mask, facts.weights) == (head_dim, needs, "random")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 513}, "--tokens 513 is beyond the 512 positions of bert_b"),
        ({"length": 2}, "--tokens 2 leaves bert_b none to drop"),
        ({"image_size": 224}, "--image-size does not apply to bert_b"),
        ({"frames": 4}, "--frames does not apply to bert_b"),
        ({"data": "notes.txt"}, "--data needs a tokenizer, and bert_b"),
        ({"weights": "weights.pt"}, "is a pickle"),
    ],
)
def test_what_a_text_encoder_does_not_take(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bert.facts("bert_b", **options)


# --- checkpoints, sentences and the command line ----------------------------------------------------------------------

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "cat",
    "dog",
    "sees",
    "hears",
    "and",
    "runs",
    ".",
]
SENTENCES = (
    "the cat sees a dog and runs .\n\n  a dog runs .\nthe dog\nthe cat hears the dog and the dog hears the cat .\n"
)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `words` with a tiny BERT and its tokenizer, and sentences beside it, in the current directory."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(**{**SHAPE, "max_position_embeddings": 16})).save_pretrained(tmp_path / "words")
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(VOCABULARY))
    (tmp_path / "words" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (tmp_path / "text.txt").write_text(SENTENCES)
    monkeypatch.chdir(tmp_path)
    encoded.cache_clear()
    return tmp_path


def test_sentences_become_full_batches_of_one_shape(checkpoint: Path) -> None:
    facts = builder.facts_of(None, "hf:words", None, None, None, "text.txt")
    assert (facts.length, facts.tokens, facts.prefix, facts.weights) == (14, 12, 2, "words")
    assert facts.mask is not None
    subject = hf.build(case(model="hf:words", weights="words", input="text.txt", batch=3, length=14))
    assert [e["input_ids"].shape for e in subject.evaluation] == [(3, 14)] * 2
    first, last = subject.evaluation
    assert first["attention_mask"].sum(1).tolist() == [10, 6, 4]
    words = [VOCABULARY[i] for i in first["input_ids"][1]]
    assert words == ["[CLS]", "a", "dog", "runs", ".", "[SEP]", *["[PAD]"] * 8]
    assert last["input_ids"][1].equal(first["input_ids"][0]), "the last batch is filled up from the start"
    assert subject.inputs is first and subject.warnings == ()


def test_the_embedding_is_the_mean_over_the_sentence(checkpoint: Path) -> None:
    from transformers import BertModel

    subject = hf.build(case(model="hf:words", weights="words", input="text.txt", batch=4, length=14))
    model: Any = BertModel.from_pretrained("words").eval()
    with torch.inference_mode():
        found = call(subject.module, subject.inputs)
        for row, n in enumerate((10, 6, 4, 14)):
            alone = model(subject.inputs["input_ids"][row : row + 1, :n]).last_hidden_state.mean(1)
            torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_long_sentences_are_cut_and_that_is_said(checkpoint: Path) -> None:
    (checkpoint / "text.txt").write_text("the cat\n" + "a dog " * 20)
    facts = builder.facts_of(None, "hf:words", None, None, None, "text.txt")
    assert facts.length == 16
    subject = hf.build(case(model="hf:words", weights="words", input="text.txt", batch=2, length=16))
    assert subject.warnings == ("1 of 2 sentences have more than 16 tokens and were cut",)
    ends = subject.inputs["input_ids"][1, [0, -1]].tolist()
    assert ends == [VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")]
    assert builder.facts_of(None, "hf:words", None, None, 5, "text.txt").length == 5


def test_sentences_of_equal_length_leave_no_mask(checkpoint: Path) -> None:
    (checkpoint / "text.txt").write_text("the cat runs\na dog runs\n")
    facts = builder.facts_of(None, "hf:words", None, None, None, "text.txt")
    assert (facts.length, facts.mask) == (5, None)
    subject = hf.build(case(model="hf:words", weights="words", input="text.txt", batch=2, length=5))
    assert list(subject.inputs) == ["input_ids"]


def test_a_folder_of_text_files_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("third\n")
    (tmp_path / "a.txt").write_text("first\n\n second \n")
    (tmp_path / "c.md").write_text("not this")
    assert sentences(str(tmp_path)) == ["first", "second", "third"]


def test_text_that_cannot_be_used(checkpoint: Path) -> None:
    (checkpoint / "empty.txt").write_text("\n \n")
    (checkpoint / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    for place, said in (("no.txt", "cannot read"), ("bytes.txt", "cannot read"), ("empty.txt", "no sentences in")):
        with pytest.raises(UsageError, match=said):
            builder.facts_of(None, "hf:words", None, None, None, place)
    (checkpoint / "words" / "tokenizer_config.json").write_text("{")
    with pytest.raises(UsageError, match="tokenizer of words"):
        builder.facts_of(None, "hf:words", None, None, None, "text.txt")


def test_a_mask_that_hides_every_token_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertTokenizer

    def pad(self: Any, rows: dict[str, Any], **options: Any) -> dict[str, Tensor]:
        return {
            "input_ids": torch.zeros(4, 14, dtype=torch.long),
            "attention_mask": torch.tensor([[1] * 14, [0] * 14] * 2),
        }

    monkeypatch.setattr(BertTokenizer, "pad", pad)
    with pytest.raises(UsageError, match="hides every token of sentence 2"):
        encoded("words", "text.txt", None, 16)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call_it(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(a) for a in arguments], debug=False)
        return code, *capsys.readouterr()

    return call_it


SWEEP = ("--model", "hf:words", "--data", "text.txt", "--batch", 2, "--keep", 0.5, "--layers", 1, "--device", "cpu")


@pytest.mark.slow
def test_bench_and_profile_on_sentences(checkpoint: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    variants = "vanilla,flash,vanilla+repshift,flash+repshift,vanilla+random"
    code, out, errors = command(
        "bench", *SWEEP, "--variant", variants, "--rounds", 2, "--out", "run.json", "--json", "-"
    )
    assert code == 0, errors
    records = {r["case"]["attention"] + "+" + r["case"]["pruning"]: r for r in json.loads(out)["records"]}
    assert [r["status"] for r in records.values()] == ["ok"] * 5
    assert all(r["case"]["length"] == 14 for r in records.values())
    assert records["vanilla+repshift"]["tokens"] == [14, 8]
    macs = {
        name: next(m["samples"][0] for m in r["measurements"] if m["metric"] == "macs") for name, r in records.items()
    }
    assert macs["vanilla+none"] == DEPTH * block_macs(14)
    assert macs["vanilla+repshift"] == block_macs(14) + (DEPTH - 1) * block_macs(8)
    code, out, errors = command(
        "profile", *SWEEP, "--variant", "vanilla,vanilla+repshift", "--steps", 1, "--summary", "profile.json"
    )
    assert code == 0, errors
    cases = [v["case"] for v in json.loads(Path("profile.json").read_text())["breakdowns"]]
    assert [(c["pruning"], c["length"]) for c in cases] == [("none", 14), ("repshift", 14)]
    assert "score" in out


def block_macs(tokens: int) -> int:
    """Projections and attention of one block of SHAPE, per sentence."""
    return tokens * (4 * WIDTH * WIDTH + 2 * WIDTH * 2 * WIDTH) + 2 * tokens * tokens * WIDTH


@pytest.mark.slow
def test_an_alias_takes_random_tokens(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, errors = command(
        "bench", "--model", "minilm", "--tokens", "9,16", "--keep", 0.5, "--layers", 2, "--device", "cpu",
        "--variant", "flash,flash+repshift", "--rounds", 1, "--out", tmp_path / "run.json", "--json", "-",
    )  # fmt: skip
    assert code == 0, errors
    found = [(r["case"]["length"], r["tokens"]) for r in json.loads(out)["records"]]
    assert sorted(found) == [(9, [9]), (9, [9, 6]), (16, [16]), (16, [16, 9])]


def test_a_back_end_without_masks_is_refused(checkpoint: Path) -> None:
    from repshift_cli.benchmark.planning import plan_cases
    from repshift_cli.sweep.axes import Axes

    sweep = Axes(model=("hf:words",), data="text.txt", variant=("flash", "vanilla", "flash+repshift"))
    reasons = {p.case.variant: p.refused for p in plan_cases(sweep, "cuda:0")}
    said = "flash takes no attention mask on cuda, and hf:words needs one for sentences of different lengths, which are"
    assert reasons["vanilla"] is None
    assert all(str(reasons[v]).startswith(said) for v in ("flash", "flash+repshift"))
    refused = [p.refused for p in plan_cases(replace(sweep, data=None), "cuda:0")]
    assert refused == [None] * 3, "without padding there is no mask"


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "electra"])
def test_other_encoders_of_this_shape(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    shape = {**SHAPE, "max_position_embeddings": 18} | ({"embedding_size": WIDTH} if name == "electra" else {})
    AutoModel.from_config(AutoConfig.for_model(name, **shape)).save_pretrained(tmp_path)
    facts = hf.facts(f"hf:{tmp_path}")
    assert facts.length == (16 if "roberta" in name else 18)
    subject = hf.build(case(model=f"hf:{tmp_path}", weights=str(tmp_path), length=facts.length))
    assert (len(subject.sites), subject.tokens, subject.marked) == (DEPTH, facts.tokens, 2)
    assert run(subject, repshift, case(keep=0.5, layers=(1,), operation="mlp", form="paper")).isfinite().all()


def test_planned_modernbert_module_is_pre_norm(family: Family) -> None:
    site = text_subject(family, batch(LENGTHS)).sites[0]
    assert site.operations == ("mlp", "attention", "block")
    assert isinstance(site.middle, nn.LayerNorm) == (family.block is modern_block)
