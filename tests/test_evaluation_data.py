"""Labels matched to classes, the order of samples, and images prepared as their model wants them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluating import CHECKPOINT
from PIL import Image

from repshift_cli.evaluation.labels import matched
from repshift_cli.evaluation.samples import stratified
from repshift_cli.models.base.torchvision import mend
from repshift_cli.models.inputs.preprocessing import Preprocessing, of_processor, of_timm
from repshift_cli.records import UsageError

mend()


def test_labels_are_matched_by_name_number_or_order() -> None:
    names = {0: "tench, Tinca tinca", 1: "Great white shark", 2: "crane", 3: "crane"}
    assert matched(["tench", "great_white_shark"], 4, names)[0] == {"tench": 0, "great_white_shark": 1}
    assert matched(["3", "0"], 4, names) == ({"0": 0, "3": 3}, "by number")
    assert matched(["b", "a", "c"], 3, None)[0] == {"a": 0, "b": 1, "c": 2}
    with pytest.raises(UsageError, match="like 'crane'"):
        matched(["tench", "crane"], 4, names)  # which of the two is not known
    with pytest.raises(UsageError, match="5 classes have no names"):
        matched(["a", "b"], 5, None)


def test_wordnet_folders_of_a_part_of_imagenet_are_not_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    from repshift_cli.evaluation import labels

    every = [f"n{i:08}" for i in range(1000)]
    assert matched(every, 1000, None)[0]["n00000007"] == 7
    part = [every[217], every[482]]
    monkeypatch.setattr(labels, "_imagenet", lambda: {name: i for i, name in enumerate(every)})
    assert matched(part, 1000, {0: "tench"})[0] == {every[217]: 217, every[482]: 482}
    monkeypatch.setattr(labels, "_imagenet", dict)
    with pytest.raises(UsageError, match="timm's list"):
        matched(part, 1000, {0: "tench"})


def test_every_beginning_is_stratified() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    order = stratified(labels, 0)
    assert sorted(order) == list(range(100))
    for length in (10, 20, 50):
        counts = [sum(labels[i] == name for i in order[:length]) for name in "abc"]
        assert counts == pytest.approx([length * 0.6, length * 0.3, length * 0.1], abs=1.01)
    assert order == stratified(labels, 0) != stratified(labels, 1)


@pytest.mark.parametrize("form", ["stretched", "cropped", "convnext", "siglip", "scaled"])
def test_images_are_prepared_as_by_the_checkpoints_processor(form: str) -> None:
    import transformers

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 131, 3), dtype=np.uint8))
    kind, given = {
        "stretched": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "resample": 2}),
        "cropped": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}),
        "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_pct": 0.875, "resample": 3}),
        "siglip": ("SiglipImageProcessorPil", {"size": {"height": 32, "width": 32}}),
        "scaled": ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5}),
    }[form]
    processor = getattr(transformers, kind, None)
    if processor is None:
        pytest.skip(f"this transformers has no {kind}")
    expected = processor(**given)(image, return_tensors="np")["pixel_values"][0]
    how = of_processor(json.loads(processor(**given).to_json_string()), 32)
    found = (how.pixels(image) / 255 - np.array(how.mean)) / np.array(how.std)
    assert np.abs(found.transpose(2, 0, 1) - expected).max() < 0.02


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("share", [1.0, 0.9])
def test_images_are_prepared_as_timms_data_configuration_says(mode: str, share: float) -> None:
    data = pytest.importorskip("timm.data", reason="timm makes the images to compare with")
    told = {"input_size": (3, 32, 32), "interpolation": "bilinear", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    told |= {"crop_pct": share, "crop_mode": mode}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 131, 3), dtype=np.uint8))
    expected = data.create_transform(**data.resolve_data_config(pretrained_cfg=told))(image)
    how = of_timm(told)
    found = (how.pixels(image) / 255 - np.array(how.mean)) / np.array(how.std)
    assert np.abs(found.transpose(2, 0, 1) - np.asarray(expected)).max() < 0.03


def test_who_wants_images_so_is_said(tmp_path: Path) -> None:
    from repshift_cli import registry
    from repshift_cli.evaluation.order import preprocessing_of

    def told(name: str) -> Any:
        return registry.load(registry.resolve_model(name)).preprocessing(name)

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {"image_size": 64}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert told(f"hf:{tmp_path}").words == (
        "short side 64, centre crop 64 px, bicubic, mean 0.4815 0.4578 0.4082, std 0.2686 0.2613 0.2758 (CLIP's own)"
    )
    inside = {"image_processor": {"size": {"height": 64, "width": 64}, "image_mean": [0.1] * 3}}
    (tmp_path / "processor_config.json").write_text(json.dumps(inside))
    assert "stretched 64 px" in told(f"hf:{tmp_path}").words and told(f"hf:{tmp_path}").mean == (0.1,) * 3
    assert told("siglip_b").mean == (0.5,) * 3 and told("vit_b") is None
    assert "assumed, for nobody says" in Preprocessing(32).words
    assert "(--preprocess)" in preprocessing_of("mean=0.5", Preprocessing(32)).words
    changed = preprocessing_of("resize=none", told("deit_s"))
    assert changed.words.startswith("stretched 224") and "DeiT's own, changed by --preprocess" in changed.words
    if importlib.util.find_spec("timm"):
        assert told("timm:vit_tiny_patch16_224").words.startswith(
            "short side 248, centre crop 224 px, bicubic, mean 0.5"
        )


def test_another_size_keeps_the_margin_in_proportion() -> None:
    assert Preprocessing(224, 256).at(112) == Preprocessing(112, 128)
    assert (CHECKPOINT / "model.safetensors").stat().st_size < 200_000
