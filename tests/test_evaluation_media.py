"""`repshift eval` on two towers, clips and CNNs, each held against a loop as anybody would write it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluating import evaluate, write_digits
from PIL import Image
from test_evaluation import table

from repshift_cli.evaluation.tasks import similarity
from repshift_cli.models.base.torchvision import mend
from repshift_cli.records import UsageError

mend()
SHORT = ("--device", "cpu", "--threads", "1", "--keep", "0.5", "--layers", "1", "--batch", "8")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = ["<pad>", "<end>", *(f"w{i}" for i in range(20))]


def two_towers(kind: str, folder: Path) -> Any:
    """A tiny checkpoint of random weights with both towers, its tokenizer and its image processor."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", 1)])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    made.save_pretrained(folder)
    text = {**SIZES, "vocab_size": len(WORDS), "max_position_embeddings": 12, "eos_token_id": 1, "pad_token_id": 0}
    vision = {**SIZES, "image_size": 32, "patch_size": 8}
    torch.manual_seed(3)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        module = transformers.CLIPModel(config)
    else:
        config = transformers.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
        module = transformers.SiglipModel(config)
    module.save_pretrained(folder)
    told = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return module.eval(), made


def pixels(frames: list[Image.Image]) -> torch.Tensor:
    """(F, 3, 32, 32), as the processor of `two_towers` says."""
    arrays = [np.asarray(f.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)) for f in frames]
    return torch.from_numpy((np.stack(arrays) / np.float32(255) - 0.5) / 0.5).float().permute(0, 3, 1, 2)


def recalls(media: np.ndarray, texts: np.ndarray, owner: list[int], k: int) -> tuple[float, float]:
    """In percent, texts as queries and media as queries, by sorting."""
    cosine = similarity.directions(texts) @ similarity.directions(media).T
    found = [owner[t] in np.argsort(-row)[:k] for t, row in enumerate(cosine)]
    back = [m in {owner[t] for t in np.argsort(-column)[:k]} for m, column in enumerate(cosine.T)]
    return 100 * float(np.mean(found)), 100 * float(np.mean(back))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_find_their_images_by_two_towers(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, tokenizer = two_towers(kind, tmp_path)
    generator, rows = np.random.default_rng(0), []
    for i in range(14):
        Image.fromarray(generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        captions = [" ".join(f"w{n}" for n in generator.integers(0, 20, 3 + i % 4)) for _ in range(1 + i % 2)]
        rows += [{"image": f"{i}.png", "caption": caption} for caption in captions]
    data = table(tmp_path / "captions.csv", rows)
    run = evaluate(capsys, tmp_path / "r.json", "--model", f"hf:{tmp_path}", *SHORT, "--data", data, "--task",
                   "retrieval", "--variant", "flash,flash+random")  # fmt: skip
    assert run.code == 0, run.err
    assert "the vision tower is pruned, the text tower runs whole" in run.out
    images = pixels([Image.open(tmp_path / f"{i}.png") for i in range(14)])
    padding = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": 12}
    ids = tokenizer([row["caption"] for row in rows], return_tensors="pt", **padding)
    given = dict(ids) if kind == "clip" else {"input_ids": ids["input_ids"]}
    with torch.inference_mode():
        media = module.get_image_features(pixel_values=images).pooler_output.double().numpy()
        texts = module.get_text_features(**given).pooler_output.double().numpy()
    owner = [int(Path(row["image"]).stem) for row in rows]
    for k in (1, 5, 10):
        found = run.samples("flash", f"recall_at_{k}")[0], run.samples("flash", f"text_recall_at_{k}")[0]
        assert found == pytest.approx(recalls(media, texts, owner, k))
    assert run.samples("flash+random", "recall_at_5_vs_unpruned")


def test_texts_find_their_clips_by_the_mean_of_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av", reason="clips are decoded by PyAV")
    from repshift_cli.evaluation import assembly
    from repshift_cli.models.inputs.clips import frames_of

    module, tokenizer = two_towers("clip", tmp_path)
    generator, rows = np.random.default_rng(0), []
    for i in range(12):
        write_clip(av, tmp_path / f"{i:02}.mp4", generator.integers(0, 255, (6, 3), dtype=np.uint8))
        rows.append({"video": f"{i:02}.mp4", "caption": f"w{i} w{(7 * i) % 20}"})
    (tmp_path / "12.mp4").write_bytes(b"no clip")
    rows.append({"video": "12.mp4", "caption": "w1"})
    data = table(tmp_path / "clips.csv", rows)
    asked = (
        "--model",
        f"hf:{tmp_path}",
        *SHORT,
        "--data",
        data,
        "--variant",
        "flash,flash+stride",
        "--task",
        "retrieval",
    )
    run = evaluate(capsys, tmp_path / "r.json", *asked, "--frames", 3)
    assert run.code == 0, run.err
    assert "clips, each the mean of 3 frames" in " ".join(run.out.split())
    assert "1 of 13 samples could not be read" in run.out
    with torch.inference_mode():
        frames = [pixels(frames_of(tmp_path / row["video"], 3)) for row in rows[:12]]
        features = [module.get_image_features(pixel_values=f).pooler_output.double().numpy() for f in frames]
        ids = tokenizer([row["caption"] for row in rows[:12]], return_tensors="pt", padding=True)
        texts = module.get_text_features(**ids).pooler_output.double().numpy()
    media = np.stack([similarity.directions(f).mean(0) for f in features])
    for k in (1, 5, 10):
        found = run.samples("flash", f"recall_at_{k}")[0], run.samples("flash", f"text_recall_at_{k}")[0]
        assert found == pytest.approx(recalls(media, texts, list(range(12)), k))
    labelled = evaluate(capsys, tmp_path / "l.json", *asked[:-1], "probe", "--train", data, "--column", "label=caption")
    assert labelled.code == 2 and "takes images, and the data are clips" in labelled.err
    monkeypatch.setattr(assembly, "find_spec", lambda name: None)
    without = evaluate(capsys, tmp_path / "w.json", *asked)
    assert without.code == 2 and "decoding clips needs PyAV: pip install" in without.err


def test_two_towers_of_another_kind_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import XCLIPConfig, XCLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    video = {"image_size": 32, "patch_size": 16, "mit_hidden_size": 16, "mit_intermediate_size": 16}
    config = XCLIPConfig(text_config={**small, "vocab_size": 50}, vision_config={**small, **video}, projection_dim=16)
    XCLIPModel(config).save_pretrained(tmp_path)
    data = table(tmp_path / "rows.csv", [{"image": f"{i}.png", "text": "w"} for i in range(12)])
    run = evaluate(capsys, tmp_path / "x.json", "--model", f"hf:{tmp_path}", "--data", data, "--task", "retrieval")
    assert run.code == 2 and "towers of its own kind (xclip)" in run.err and "Traceback" not in run.err


def test_clips_are_classified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder for each class, and the same ones in a tar; a damaged one counts for nobody."""
    av = pytest.importorskip("av", reason="clips are decoded by PyAV")
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    from repshift_cli.models.inputs.clips import frames_of

    torch.manual_seed(1)
    names = {i: name for i, name in enumerate(("jump", "run", "sit"))}
    config = VideoMAEConfig(**SIZES, image_size=32, patch_size=8, num_frames=4, tubelet_size=2, id2label=names)
    module = VideoMAEForVideoClassification(config).eval()
    module.save_pretrained(tmp_path)
    told = {"size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(told))
    data, generator = tmp_path / "data", np.random.default_rng(0)
    for i in range(12):
        place = data / names[i % 3] / f"{i:02}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_clip(av, place, generator.integers(0, 255, (9, 3), dtype=np.uint8))
    clips = sorted(data.rglob("*.mp4"))
    (data / "run" / "99.mp4").write_bytes(b"no clip")
    with tarfile.open(tmp_path / "clips.tar", "w") as tar:
        for clip in clips:
            (tmp_path / "label").write_text(clip.parent.name)
            tar.add(clip, clip.name)
            tar.add(tmp_path / "label", f"{clip.stem}.cls")
    with torch.inference_mode():
        inputs = torch.stack([pixels(frames_of(clip, 4)) for clip in clips])
        answers = module(pixel_values=inputs).logits.argmax(-1).tolist()
    right = sum(names[answer] == clip.parent.name for answer, clip in zip(answers, clips, strict=True))
    asked = ("--model", f"hf:{tmp_path}", *SHORT, "--variant", "flash,flash+random", "--data")
    run = evaluate(capsys, tmp_path / "f.json", *asked, data)
    assert run.code == 0, run.err
    assert sum(run.samples("flash")) == 100.0 * right and len(run.samples("flash")) == 12
    assert "1 of 13 samples could not be read" in run.out and "99.mp4" in run.out
    packed = evaluate(capsys, tmp_path / "t.json", *asked, tmp_path / "clips.tar")
    assert packed.code == 0, packed.err
    assert sum(packed.samples("flash")) == 100.0 * right


def write_clip(av: Any, place: Path, colours: np.ndarray) -> None:
    """A clip of a frame of each colour (F, 3)."""
    with av.open(str(place), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for colour in colours:
            picture = np.broadcast_to(colour, (32, 32, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


# --- CNNs -------------------------------------------------------------------------------------------------------------


def small_cnn(kind: str) -> Any:
    """One whose stages are written down, or found."""
    from transformers import (
        MobileNetV2Config,
        MobileNetV2ForImageClassification,
        ResNetConfig,
        ResNetForImageClassification,
    )

    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    if kind == "resnet":
        return ResNetForImageClassification(ResNetConfig(num_labels=10, **sizes)).eval()
    narrow = MobileNetV2Config(num_labels=10, depth_multiplier=0.1, finegrained_output=False, image_size=64)
    return MobileNetV2ForImageClassification(narrow).eval()


@pytest.mark.parametrize("kind", ["resnet", "mobilenet_v2"])
def test_a_cnn_is_evaluated_and_its_rows_dropped(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = small_cnn(kind)
    module.save_pretrained(tmp_path)
    told = {"size": {"shortest_edge": 64}, "crop_pct": 1.0, "resample": 0}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    data = write_digits(tmp_path / "data", range(40))
    run = evaluate(capsys, tmp_path / "c.json", "--model", f"hf:{tmp_path}", *SHORT, "--image-size", 64, "--data", data,
                   "--variant", "none,none+repshift,none+random")  # fmt: skip
    assert run.code == 0, run.err
    assert run.record("none+repshift").tokens == (256, 121)
    files = sorted(data.rglob("*.png"))
    arrays = np.stack([np.asarray(Image.open(f).convert("RGB").resize((64, 64), 0)) for f in files]) / np.float32(255)
    inputs = (arrays - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    with torch.inference_mode():
        answers = module(torch.from_numpy(inputs).permute(0, 3, 1, 2)).logits.argmax(-1).tolist()
    right = [answer == int(f.parent.name) for answer, f in zip(answers, files, strict=True)]
    assert sum(run.samples("none")) == 100.0 * sum(right)


def test_weights_of_torchvisions_resnet_are_loaded(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="the weights are torchvision's")
    from safetensors.torch import save_file
    from transformers import ResNetConfig

    from repshift_cli.models import resnet
    from repshift_cli.models.base.transformers import load_weights

    torch.manual_seed(0)
    kinds = {"basic": models.resnet.BasicBlock, "bottleneck": models.resnet.Bottleneck}
    for kind, block in kinds.items():
        theirs = models.ResNet(block, [1, 2, 1, 1], num_classes=5).eval()
        save_file(theirs.state_dict(), tmp_path / "model.safetensors")
        widths = [64 * (4 if kind == "bottleneck" else 1) * 2**stage for stage in range(4)]
        config = ResNetConfig(layer_type=kind, depths=[1, 2, 1, 1], hidden_sizes=widths, num_labels=5)
        recipe = resnet.stages_of(config).recipe
        ours = recipe.model(config).eval()
        load_weights(ours, str(tmp_path), recipe.translated)
        x = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            assert torch.allclose(ours(x).logits, theirs(x), atol=1e-5)
    with pytest.raises(UsageError, match="does not fit"):
        load_weights(ours, str(tmp_path))
