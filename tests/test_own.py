"""Your own model: found, or named by an adapter in Python or TOML; and what `repshift explain` says of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_reduction import SCHEDULES, pruning, reference, shift
from tiny import case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli import cli
from repshift_cli.benchmark import builder
from repshift_cli.models import own
from repshift_cli.models.discovery.adapter import COUNTING
from repshift_cli.records import Case, UsageError, call
from repshift_cli.reduction import repshift

NAME = "adapted_under_test"
SOURCE = """
import test_own

def model():
    return test_own.model()

def adapted():
    return *test_own.model(), test_own.ADAPTER

def found():
    return test_own.found()

def unseeded():
    return test_own.tiny.PlainTransformer(), test_own.model()[1]

def several():
    return *test_own.model(), "blocks"

for key, value in test_own.WRONG.items():
    exec(f"def {key}():\\n    return *test_own.model(), {value!r}")
"""


class Scaled(tiny.PreNorm):
    """A pre-norm block whose branches are scaled by bare parameters: no module puts out what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((tiny.WIDTH,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.mix(self.first(x))
        return x + self.gamma * self.feed(self.second(x))


class Counting(Scaled):
    """Tells its tokens' places by itself: the later, the louder."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(x.shape[1]).unsqueeze(1) * self.first(x)


def model(make: Callable[[], nn.Module] = Scaled) -> tuple[Any, tuple[Tensor]]:
    torch.manual_seed(0)
    return tiny.roughen(tiny.PlainTransformer(make)).double(), (tiny.pixels(tiny.BATCH, 12, tiny.WIDTH),)


def found() -> tuple[Any, tuple[Tensor]]:
    return model(tiny.PreNorm)


ADAPTER = {"blocks": "blocks", "attention": "mix", "middle": "second", "mlp": "feed", "prefix": 1}
WRONG: dict[str, dict[str, Any]] = {
    "no_blocks": {"attention": "mix"},
    "no_such_blocks": {"blocks": "block"},
    "one_module": {"blocks": "norm"},
    "no_such_branch": {**ADAPTER, "mlp": "feeed.2"},
    "nothing_inside": {**ADAPTER, "mlp": "first.inner"},
    "never_runs": {**ADAPTER, "attention": "mix.heads_never"},
    "runs_twice": {**ADAPTER, "attention": "shared"},
    "wide": {**ADAPTER, "mlp": "feed.0"},
    "no_middle": {"blocks": "blocks", "mlp": "feed"},
    "unknown": {**ADAPTER, "atention": "mix"},
    "no_number": {**ADAPTER, "prefix": "one"},
    "negative": {**ADAPTER, "suffix": -1},
    "no_path": {**ADAPTER, "blocks": 3},
    "too_many": {**ADAPTER, "prefix": 6, "suffix": 7},
}
SAID = {
    "no_blocks": "an adapter names at least the blocks",
    "no_such_blocks": r"blocks: there is no block: PlainTransformer has no 'block'; did you mean blocks\?",
    "one_module": r"blocks: norm \(LayerNorm\) has no modules inside it",
    "no_such_branch": r"mlp: there is no feeed.2: Scaled has no 'feeed'; did you mean feed\?",
    "nothing_inside": "mlp: there is no first.inner: first has no 'inner'; it has no modules inside it",
    "never_runs": "attention: there is no mix.heads_never: mix has no 'heads_never'",
    "runs_twice": "attention: shared does not run on them in the first block",
    "wide": r"mlp: feed.0 has \(3, 13, 64\) where the block has \(3, 13, 32\)",
    "no_middle": "the shift of mlp needs middle too",
    "unknown": r"unknown key 'atention'; did you mean attention",
    "no_number": "prefix must be a whole number of tokens, not 'one'",
    "negative": "suffix must be a whole number of tokens, not -1",
    "no_path": "blocks must be a module's path, like 'encoder.layers', not 3",
    "too_many": "13 of 13 tokens are protected",
    "several": "must return its adapter, behind .module, inputs., as a dict",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module to name, where the program runs."""
    (tmp_path / f"{NAME}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own._made.cache_clear()
    yield tmp_path
    own._made.cache_clear()
    sys.modules.pop(NAME, None)


def own_case(name: str, **changes: Any) -> Case:
    return case(model=name, input="own", weights="own", **changes)


def toml(folder: Path, **keys: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    (folder / "mine.toml").write_text("\n".join(lines), encoding="utf-8")
    return "mine.toml"


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_without_an_adapter_the_scaled_blocks_are_refused(here: Path) -> None:
    with pytest.raises(UsageError, match="no repeated block"):
        own.facts(f"{NAME}:model")


@pytest.mark.parametrize("place", ["python", "toml"])
@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
def test_an_adapter_names_what_is_scored_and_cut(
    here: Path, place: str, keep: float, layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{NAME}:adapted" if place == "python" else toml(here, model=f"{NAME}:model", **ADAPTER)
    facts = own.facts(name)
    assert (facts.depth, facts.tokens, facts.prefix, facts.operations[0]) == (tiny.DEPTH, 12, 1, "mlp")
    monkeypatch.setitem(own.TORCH_DTYPES, "fp32", torch.float64)
    subject = own.build(own_case(name))
    module, inputs = model()

    put_out: list[Tensor] = []

    def block(b: Any) -> tiny.Block:
        def mlp(x: Tensor) -> Tensor:
            put_out.append(b.feed(b.second(x)))
            return b.gamma * put_out[-1]

        return (lambda x: b.gamma * b.mix(b.first(x))), mlp

    plain = tiny.Plain(
        module,
        inputs,
        prefix=1,
        tokens=12,
        embed=lambda given: torch.cat((module.cls_token.expand(tiny.BATCH, -1, -1), given[0]), 1),
        blocks=[block(b) for b in module.blocks],
        finish=lambda x: module.head(module.norm(x[:, 0])),
        compared=lambda out: out,
    )

    def unscaled(seen: dict[str, Tensor]) -> list[list[float]]:
        return shift({**seen, "mlp_out": put_out[-1][:, 1:]}, "mlp", "l2", "paper")

    expected = reference(plain, keep, layers, unscaled)
    given = own_case(name, pruning="repshift", keep=keep, layers=layers, operation="mlp", distance="l2", form="paper")
    with pruning(subject, repshift, given):
        got = call(subject.module, subject.inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_what_is_not_added_as_it_stands_is_said(here: Path) -> None:
    warnings = own.build(own_case(f"{NAME}:adapted")).warnings
    assert [w.partition(" puts out")[0] for w in warnings] == ["what mix", "what feed"]
    exact = toml(here, model=f"{NAME}:found", **ADAPTER)
    assert own.build(own_case(exact)).warnings == ()


@pytest.mark.parametrize(
    ("keys", "operations"),
    [
        ({}, ("block",)),
        ({"attention": "mix"}, ("attention", "block")),
        ({"middle": "second", "mlp": "feed"}, ("mlp", "block")),
    ],
)
def test_parts_that_are_left_out_offer_no_operation(
    here: Path, keys: dict[str, str], operations: tuple[str, ...]
) -> None:
    name = toml(here, model=f"{NAME}:model", blocks="blocks", suffix=2, **keys)
    facts = own.facts(name)
    assert (facts.operations, facts.tokens, facts.prefix) == (operations, 10, 3)
    subject = own.build(own_case(name))
    assert (subject.prefix, subject.suffix, subject.tokens) == (1, 2, 10), "the prefix is found where it is not told"


def test_the_tomls_keys_go_before_the_functions(here: Path) -> None:
    assert own.facts(toml(here, model=f"{NAME}:adapted", prefix=3)).prefix == 3


def test_random_weights_do_not_depend_on_what_was_drawn_before(here: Path) -> None:
    """Else a change of one model would move the output of the next, and a gate would take it for another."""
    weights = []
    for count in (1, 3):
        torch.rand(count)
        weights.append(own.build(own_case(f"{NAME}:unseeded")).module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_blocks_that_count_their_tokens_are_the_users_word(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "Scaled", Counting)
    monkeypatch.setattr(model, "__defaults__", (Counting,))
    assert COUNTING in own.build(own_case(f"{NAME}:adapted")).warnings


@pytest.mark.parametrize("function", SAID)
def test_a_wrong_adapter_is_refused_in_words(here: Path, function: str) -> None:
    with pytest.raises(UsageError, match=SAID[function]):
        builder.facts_of(None, f"{NAME}:{function}", None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read mine.toml: No such file"),
        ("model = ", "mine.toml is no TOML"),
        ("blocks = 'blocks'", "must name your function: model = 'package.module:function'"),
        ("model = 'nowhere'", "must name your function"),
        ("model = 'nowhere_at_all:f'", "cannot import nowhere_at_all:f"),
    ],
)
def test_a_wrong_toml_is_refused_in_words(here: Path, text: str | None, said: str) -> None:
    if text is not None:
        (here / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=said):
        builder.facts_of(None, "mine.toml", None, None)


# --- explain ----------------------------------------------------------------------------------------------------------


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["explain", *arguments], False)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("columns", ["80", "120"])
def test_explain_says_what_was_found(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = explained(capsys, "--model", f"{NAME}:found", "--keep", "0.5", "--layers", "1,3")
    lines = [line.rstrip() for line in out.splitlines()]
    assert code == 0
    assert "\x1b" not in out
    assert max(map(len, lines)) <= int(columns)
    assert lines == [
        f"{NAME}:found (PlainTransformer)",
        "blocks      3: blocks.0 ... blocks.2 (PreNorm)",
        "attention   mix",
        "x' read by  second",
        "MLP         feed",
        "operations  mlp (default), attention, block",
        "back ends   any",
        "tokens      13 enter, 12 of them can go",
        "protected   1 leading (cls_token)",
        "cut along   nothing: the blocks are given no mask and no positions",
        "keep 0.5    13 → 7 after block 1 → 4 after block 3",
    ]


def test_explain_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = explained(
        capsys, "--model", f"{NAME}:adapted", "--keep", "0.25,0.5", "--protect", "first:1,last:2", "--json", "-"
    )
    told = json.loads(out)
    assert code == 0
    assert told["branches"] == {"attention": "mix", "middle": "second", "mlp": "feed"}
    assert told["schedules"] == [
        {"keep": 0.25, "layers": [1], "tokens": [13, 7]},
        {"keep": 0.5, "layers": [1], "tokens": [13, 9]},
    ]
    assert (told["entering"], told["free"]) == (13, 9)
    assert list(told["protected"].values()) == ["1 (cls_token)", "1 (--protect)", "2 (--protect)"]
    assert len(told["warnings"]) == 2


def test_explain_says_why_a_model_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = explained(capsys, "--model", f"{NAME}:model", "--json", "why.json")
    assert code == 2
    why = "no module's output A makes x + A the input of a later module"
    assert f"blocks.0 ... blocks.2 (Scaled)  {why}" in out
    assert "error: PlainTransformer has no repeated block" in err
    told = json.loads((here / "why.json").read_text())
    assert told["looked"] == [{"what": "blocks.0 ... blocks.2 (Scaled)", "why": why}]
    assert told["refused"] in err


def test_explain_takes_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = explained(capsys, "--model", "vit_t,deit_t")
    assert (code, err) == (2, "error: one model at one size is explained at a time; give --model, --image-size, "
                              "--frames, --tokens one value\n")  # fmt: skip


# --- what is done once ------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_built_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Case] = []

    def build(given: Case) -> None:
        tries.append(given)
        raise MemoryError("too big")

    monkeypatch.setattr(builder, "_built", build)
    step_builder = builder.StepBuilder("cpu")
    for keep in (0.5, 0.7):
        with pytest.raises(MemoryError, match="too big") as error:
            step_builder.subject(case(keep=keep, layers=(1,)))
    assert len(tries) == 1
    names = [frame.name for frame in error.traceback]
    assert "build" not in names, "what was built before it failed is not kept alive"
    with pytest.raises(MemoryError):
        step_builder.subject(case(batch=1))
    assert len(tries) == 2, "another group is tried"


def test_protected_tokens_do_not_shift_what_is_cut_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotations have no entry for the model's own prefix of four; --protect adds two leading tokens that have one."""
    plain = tiny.dinov3()
    built = tiny.subject(plain.module, plain.inputs)
    monkeypatch.setattr(builder.registry, "load", lambda part: type("Family", (), {"build": lambda case: built}))
    given = case(model="vit_t", pruning="repshift", keep=0.5, layers=(1, 2), protect="first:2,last:1")
    subject = builder._built(given)
    assert (subject.prefix, subject.suffix, subject.tokens) == (6, 1, 13)

    def first_and_last_stay(seen: dict[str, Tensor]) -> list[list[float]]:
        scores = shift(seen, "mlp", "l2", "paper")
        return [[1e9, 1e9, *row[2:-1], 1e9] for row in scores]

    def keeping(layer: int, seen: dict[str, Tensor]) -> Tensor:
        if layer > 2:
            return seen["resid_post"]
        behind = {name: t[:, plain.prefix :] for name, t in seen.items()}
        rows = []
        for hidden, scores in zip(seen["resid_post"], first_and_last_stay(behind), strict=True):
            free = len(scores) - 3
            best = sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[: 3 + free - free // 2])
            rows.append(hidden[[*range(plain.prefix), *(plain.prefix + i for i in best)]])
        return torch.stack(rows)

    with torch.no_grad():
        expected = plain.forward(keeping)
    with pruning(subject, repshift, given):
        got = plain.compared(call(plain.module, plain.inputs))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
