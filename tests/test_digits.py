"""The tests' own trained checkpoint: what `repshift eval` says of it is what a loop written out here finds."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluating import CHECKPOINT, LEFT, MODEL, digits, evaluate, write_digits
from torch import Tensor

from repshift_cli.evaluation.samples import stratified

COUNT, BATCH, CUT, STAY = 1797 - LEFT, 125, 2, 32
RIGHT = 461
"""Of the 500 digits left: tests/real/digits.py says 0.922."""


@pytest.fixture(scope="module")
def order() -> list[int]:
    """The digits in the order in which they are evaluated: those of a folder by class, then drawn by the seed 0."""
    labels = digits()[1]
    by_class = sorted(range(COUNT), key=lambda i: (labels[i], i))
    return [by_class[i] for i in stratified([str(labels[i]) for i in by_class], 0)]


def right(order: list[int], score: Callable[[Tensor, Tensor], Tensor] | None) -> list[float]:
    """100 or 0 for each digit, by a plain forward: behind block CUT the STAY patches of the highest score stay."""
    from transformers import ViTForImageClassification

    module: Any = ViTForImageClassification.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    pixels = torch.tensor(digits()[0][order]).repeat_interleave(2, 1).repeat_interleave(2, 2)
    found = []
    for batch, images in enumerate(((pixels / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1).split(BATCH)):
        torch.manual_seed(zlib.crc32(f"0 {batch} 0".encode()))
        found.append(_answers(module.vit, module.classifier, images, score))
    answers = torch.cat(found)
    return (100.0 * (answers == torch.tensor(digits()[1][order]))).tolist()


@torch.inference_mode()
def _answers(vit: Any, head: Any, images: Tensor, score: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
    x = vit.embeddings(images)
    for number, layer in enumerate(vit.layers, 1):
        middle = x + layer.attention(layer.layernorm_before(x))[0]
        branch = layer.mlp(layer.layernorm_after(middle))
        x = middle + branch
        if score is not None and number == CUT:
            stay = score(middle, branch).topk(STAY).indices.sort().values + 1
            patches = x.gather(1, stay[..., None].expand(-1, -1, x.shape[-1]))
            x = torch.cat((x[:, :1], patches), 1)
    return head(vit.layernorm(x)[:, 0]).argmax(-1)


def test_accuracies_are_those_of_a_plain_loop(
    order: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_digits(tmp_path / "digits", range(COUNT))
    variants = ("--variant", "flash,flash+repshift,flash+random", "--keep", "0.5", "--layers", CUT, "--form", "paper")
    done = evaluate(
        capsys, tmp_path / "run.json", "--model", MODEL, "--data", data, *variants, "--batch", BATCH, "--threads", 1
    )
    assert done.code == 0, done.err
    assert sum(done.samples("flash")) == 100 * RIGHT
    assert list(done.samples("flash")) == right(order, None)
    assert list(done.samples("flash+repshift")) == right(order, lambda x, y: (y - x)[:, 1:].norm(dim=-1))
    assert list(done.samples("flash+random")) == right(order, lambda x, _: torch.rand(len(x), x.shape[1] - 1))


def test_the_progress_moves_with_every_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards, two variants: a word before each, beside those after each shard."""
    from repshift_cli.commands.shared.progress import Bar
    from repshift_cli.evaluation import engine

    shares: list[float] = []
    monkeypatch.setattr(engine, "SHARD", 8)
    monkeypatch.setattr(Bar, "update", lambda self, word: shares.append(word.share))
    data, variants = write_digits(tmp_path / "digits", range(16)), ("--variant", "flash,flash+stride", "--layers", "2")
    done = evaluate(
        capsys, tmp_path / "run.json", "--model", MODEL, "--data", data, *variants, "--keep", "0.5", "--batch", 8
    )
    assert done.code == 0, done.err
    assert shares == [0, 0.25, 0.5, 0.5, 0.75, 1]
