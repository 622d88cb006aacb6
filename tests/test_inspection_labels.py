"""Dormant heads judged on labelled data: what is put to zero sample by sample, and what the evaluation says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from evaluating import CHECKPOINT, LEFT, MODEL, digits, write_digits
from test_inspection import HEADS, SLEEPING, planted
from tiny import one_thread  # noqa: F401
from torch import Tensor
from typer.testing import CliRunner

from repshift_cli.cli import app
from repshift_cli.evaluation.order import Order
from repshift_cli.evaluation.within import Labelled
from repshift_cli.inspection import heads
from repshift_cli.kernels.sdpa import Answer as Attend
from repshift_cli.kernels.sdpa import AttentionCall, watched_by
from repshift_cli.records import Subject, UsageError, call, store
from repshift_cli.records.inspection import Inspection

PLACES = range(0, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), PLACES)


def test_on_each_sample_of_a_batch_its_own_dormant_heads_put_out_zero() -> None:
    plain = tiny.plain_torch()
    subject = tiny.subject(plain.module, plain.inputs)
    norms: list[Tensor] = []
    zeros: dict[bool, list[Tensor]] = {False: [], True: []}

    def note(one: AttentionCall, attend: Attend) -> Tensor:
        out = attend(one)
        norms.append(out.norm(dim=-1).mean(2))
        return out

    def last(one: AttentionCall, attend: Attend, found: list[Tensor]) -> Tensor:
        out = attend(one)
        found.append((out == 0).all(-1).all(-1))
        return out

    for others, found in zeros.items():
        watch = partial(last, found=found)
        with (
            torch.inference_mode(),
            watched_by(note),
            heads.silenced(subject, 1.0, others),
            watched_by(watch),
        ):
            call(subject.module, subject.inputs)
    expected = [n < n.mean(1, keepdim=True) for n in norms[: tiny.DEPTH]]
    assert all(a.equal(b) for a, b in zip(zeros[False], expected, strict=True))
    assert not expected[0][0].equal(expected[0][1]) or not expected[0][0].equal(expected[0][2]), "samples differ"
    counts = [n < n.mean(1, keepdim=True) for n in norms[tiny.DEPTH :]]
    for off, own in zip(zeros[True], counts, strict=True):
        assert off.sum(1).equal(own.sum(1)) and not (off & own)[own.sum(1) <= own.shape[1] // 2].any()


def test_padding_does_not_count_in_a_heads_norm() -> None:
    out = torch.ones(1, 2, 4, 3)
    out[:, 1, 2:] = 100
    real = torch.tensor([[True, True, False, False]])
    assert heads._mean_norms(out, real).tolist() == [[3**0.5] * 2] != heads._mean_norms(out, None).tolist()


def test_the_planted_dormant_head_costs_nothing_and_another_does() -> None:
    look = planted()
    untouched = call(look.subject.module, look.subject.inputs)
    with look.active(), heads.silenced(look.subject, 0.5):
        assert look.run(look.subject.inputs).equal(untouched), f"head {SLEEPING} of {HEADS} puts out nothing"
    with look.active(), heads.silenced(look.subject, 0.5, others=True):
        assert not torch.allclose(look.run(look.subject.inputs), untouched)


@contextmanager
def without_attention(subject: Subject) -> Iterator[None]:
    with watched_by(lambda one, attend: torch.zeros_like(attend(one))):
        yield


def test_accuracy_within_a_change_is_that_of_the_changed_model(folder: Path) -> None:
    from transformers import ViTForImageClassification

    ready = Labelled.of(Order.from_options({"model": MODEL, "data": str(folder), "variant": "flash", "workers": 0}))
    untouched, changed = ready.records({"without attention": without_attention})
    module = ViTForImageClassification.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    pixels = torch.tensor(digits()[0][list(PLACES)]).float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels, right = torch.tensor(digits()[1][list(PLACES)]), []
    for zeroed in (False, True):
        for name, p in module.named_parameters():
            if zeroed and ("o_proj.weight" in name or "attention.output.dense.weight" in name):
                p.data.zero_()
        with torch.inference_mode():
            logits = module(pixel_values=((pixels / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)).logits
        right.append(100 * float((logits.argmax(-1) == labels).float().mean()))
    found = [r.measurement("top1") for r in (untouched, changed)]
    assert [sum(m.samples) / len(m.samples) for m in found if m] == pytest.approx(right)
    assert right[0] > right[1]
    assert LEFT + len(PLACES) <= 1797


def test_the_command_says_how_right_the_model_is_without_its_dormant_heads(folder: Path, tmp_path: Path) -> None:
    asked = ["analyze", "--model", MODEL, "--question", "heads", "--inputs", "1", "--threads", "1"]
    done = CliRunner().invoke(app, [*asked, "--labelled", str(folder), "--limit", "20", "--out", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    found = store.load_any(tmp_path / "a")
    assert isinstance(found, Inspection)
    heads_of = found.answer("heads")
    assert heads_of.settings["samples"] == 20 and found.options["labelled"] == str(folder)
    score = dict(heads_of.quantity("labelled").items())
    difference = dict(heads_of.quantity("labelled_difference").items())
    untouched, without = heads.JUDGED[:2]
    assert difference[untouched, ""] is None
    assert difference[without, ""] == pytest.approx((score[without, ""] or 0) - (score[untouched, ""] or 0))
    for wrong, complaint in (
        (["--question", "sinks", "--labelled", "x"], "question heads"),
        (["--task", "x"], "name it"),
    ):
        refused = CliRunner().invoke(app, [*asked[:3], *wrong])
        assert isinstance(refused.exception, UsageError) and complaint in str(refused.exception)
