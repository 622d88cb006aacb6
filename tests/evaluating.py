"""For tests of `repshift eval`: digits as files, the tests' own checkpoint, and a command that is run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repshift_cli import cli
from repshift_cli.records import Record, Run, store

CHECKPOINT = Path(__file__).parent / "data" / "digits-vit"
MODEL = f"hf:{CHECKPOINT}"
LEFT = 1297
"""The digits from here on were not trained on."""


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Those left: pixels (500, 8, 8) of 0 to 255, and labels."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits are scikit-learn's")
    found = datasets.load_digits()
    return np.round(found.images[LEFT:] / 16 * 255).astype(np.uint8), found.target[LEFT:]


def write_digits(folder: Path, places: Sequence[int]) -> Path:
    """These digits as a folder of PNGs for each class."""
    pixels, labels = digits()
    for place in places:
        file = folder / str(labels[place]) / f"{place:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[place]).save(file)
    return folder


def plain_logits(places: Sequence[int], batch: int) -> torch.Tensor:
    """The checkpoint's logits by a loop as anybody would write it: (M, 10)."""
    from transformers import ViTForImageClassification

    module = ViTForImageClassification.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    pixels = digits()[0][list(places)].repeat(2, 1).repeat(2, 2)
    inputs = (torch.tensor(pixels / np.float32(255)) - 0.5) / 0.5
    with torch.inference_mode():
        parts = [module(pixel_values=b[:, None].expand(-1, 3, -1, -1)).logits for b in inputs.split(batch)]
    return torch.cat(parts)


@dataclass
class Done:
    """A command that has run: its exit code, what it printed, and its run file where there is one."""

    code: int
    out: str
    err: str
    file: Path

    @property
    def run(self) -> Run:
        return store.load(self.file)

    def record(self, variant: str, **fields: Any) -> Record:
        found = [r for r in self.run.records if r.case.variant == variant]
        return next(r for r in found if all(getattr(r.case, n) == v for n, v in fields.items()))

    def samples(self, variant: str, metric: str = "top1") -> tuple[float, ...]:
        measurement = self.record(variant).measurement(metric)
        assert measurement is not None
        return measurement.samples


def evaluate(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> Done:
    """`repshift eval` in this process."""
    given = list(map(str, arguments))
    where = [] if "--resume" in given else ["--out", str(out)]
    code = cli.run(["eval", *given, *where], "--debug" in given)
    printed = capsys.readouterr()
    return Done(code, printed.out, printed.err, out)
