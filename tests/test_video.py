"""Video: tubelets against a plain forward, divided attention refused, clips read frame by frame."""

from __future__ import annotations

import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_reduction import SCHEDULES, reference, run, shift
from tiny import Plain, case, one_thread  # noqa: F401
from torch import Tensor, nn
from typer.testing import CliRunner

from repshift_cli import registry
from repshift_cli.benchmark import builder
from repshift_cli.cli import app
from repshift_cli.models import videomae, vivit
from repshift_cli.models.discovery.blocks import NoSites, find_sites
from repshift_cli.models.inputs import clips
from repshift_cli.models.inputs.clips import centres, clip_files, load_clips
from repshift_cli.probes.macs import count_flops
from repshift_cli.records import Step, UsageError, call, kept
from repshift_cli.reduction import repshift

# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tubelets() -> Plain:
    """VideoMAE's classifier: 6 frames in 3 tubelets, 16 positions each, no class token, a norm behind the mean."""
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    config = VideoMAEConfig(**tiny.SIZES, num_frames=6, tubelet_size=2, num_labels=7)
    module: Any = tiny.roughen(VideoMAEForVideoClassification(config)).double()
    body = module.videomae

    def block(b: Any) -> tiny.Block:
        def mlp(x: Tensor) -> Tensor:
            return b.output.dense(nn.functional.gelu(b.intermediate.dense(b.layernorm_after(x))))

        return (lambda x: tiny.first(b.attention(b.layernorm_before(x)))), mlp

    return Plain(
        module,
        {"pixel_values": tiny.pixels(tiny.BATCH, 6, 3, 32, 32)},
        prefix=0,
        tokens=48,
        embed=lambda inputs: cubes(inputs["pixel_values"], body.embeddings) + body.embeddings.position_embeddings,
        blocks=[block(b) for b in body.encoder.layer],
        finish=lambda x: module.classifier(module.fc_norm(x.mean(1))),
        compared=lambda out: out.logits,
    )


def cubes(video: Tensor, embeddings: Any) -> Tensor:
    """Tokens of 2 frames x 8 x 8 pixels in the order time, row, column: a linear layer on each, no convolution."""
    projection = embeddings.patch_embeddings.projection
    b, t, c, h, w = video.shape
    cut = video.view(b, t // 2, 2, c, h // 8, 8, w // 8, 8).permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(b, -1, c * 128)
    return nn.functional.linear(cut, projection.weight.flatten(1), projection.bias)


def test_the_plain_forward_in_tubelets_is_the_model(tubelets: Plain) -> None:
    with torch.no_grad():
        out = tubelets.compared(call(tubelets.module, tubelets.inputs))
        torch.testing.assert_close(out, tubelets.forward(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
def test_tubelets_are_pruned_as_written(tubelets: Plain, keep: float, layers: tuple[int, ...]) -> None:
    given = case(pruning="repshift", keep=keep, layers=layers, operation="mlp", distance="l2", form="paper")
    expected = reference(tubelets, keep, layers, lambda seen: shift(seen, "mlp", "l2", "paper"))
    torch.testing.assert_close(run(tubelets, repshift, given), expected, rtol=0, atol=1e-10)


def transformer_macs(tokens: Sequence[int], prefix: int, width: int = tiny.WIDTH) -> int:
    """MACs of blocks with an MLP twice as wide: 4 n C^2 + 2 n^2 C + 4 n C^2, where block i sees tokens[i] tokens."""
    return sum(8 * n * width**2 + 2 * n**2 * width for n in (t + prefix for t in tokens))


@pytest.mark.parametrize("family", ["tubelets", "vivit"])
@pytest.mark.parametrize(("keep", "layers"), [(1.0, ()), *SCHEDULES])
def test_macs_before_and_after(family: str, keep: float, layers: tuple[int, ...], tubelets: Plain) -> None:
    plain = tubelets if family == "tubelets" else tiny.FAMILIES[family]()
    counts = [plain.tokens]
    for layer in range(1, tiny.DEPTH):
        counts.append(kept(counts[-1], keep) if layer in layers else counts[-1])
    embedding, head = plain.tokens * 3 * 2 * 8 * 8 * tiny.WIDTH, tiny.WIDTH * 7
    expected = tiny.BATCH * (transformer_macs(counts, plain.prefix) + embedding + head)
    assert count_flops(ready(plain, keep, layers)) / 2 == expected


def ready(plain: Plain, keep: float, layers: tuple[int, ...]) -> Step:
    given = case(pruning="repshift" if layers else "none", keep=keep, layers=layers)
    shop = builder.StepBuilder("cpu")
    shop._subject, shop._group = tiny.subject(plain.module, plain.inputs), given.group
    return shop.prepare(given)


def test_the_fixed_positions_go_along_with_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(videomae.ALIASES, "videomae_b", {"width": 64, "depth": 2, "heads": 4})
    subject = videomae.build(case(model="videomae_b", image_size=32, frames=2, dtype="bf16", batch=1))
    assert subject.module.videomae.embeddings.position_embeddings.dtype == torch.bfloat16


def refusal(*options: str) -> str:
    """The one sentence with which `bench` refuses, before anything is built."""
    error = CliRunner().invoke(app, ["bench", "--image-size", "32", "--dry-run", *options]).exception
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    return str(error)


def test_divided_attention_is_refused_in_words() -> None:
    assert "timesformer_b is refused: its divided attention mixes" in refusal("--model", "timesformer_b")
    family = registry.load(registry.resolve_model("timesformer_b"))
    with pytest.raises(UsageError, match="cannot be dropped from its grid"):
        family.build(case(model="timesformer_b"))


@pytest.mark.parametrize("kind", ["divided_space_time", "joint_space_time"])
def test_a_model_that_folds_frames_into_the_batch_is_told_so(kind: str) -> None:
    """Joint attention in the same library is understood, so it is the fold that is seen and not the name."""
    from transformers import TimesformerConfig, TimesformerModel

    sizes = {n: v for n, v in tiny.SIZES.items() if n != "attn_implementation"}
    module = tiny.roughen(TimesformerModel(TimesformerConfig(**sizes, num_frames=2, attention_type=kind)))
    inputs = {"pixel_values": torch.randn(2, 2, 3, 32, 32)}
    if kind == "joint_space_time":
        assert find_sites(module, inputs).entering == 33
        return
    with pytest.raises(
        NoSites, match=r"TimesformerLayer \(which folds its tokens into the batch, as windows or frames"
    ):
        find_sites(module, inputs)


# --- clips ------------------------------------------------------------------------------------------------------------


def colour(place: int) -> tuple[int, int, int]:
    return 5 * place, 255 - 7 * place, 3 * place


def static(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def film(file: Path, frames: int, size: tuple[int, int] = (48, 32), codec: str = "ffv1", noise: bool = False) -> Path:
    """A lossless clip of one colour per frame, or of noise."""
    av = pytest.importorskip("av", reason="PyAV, which reads clips, is not installed")
    shape = (frames, size[1], size[0], 3)
    pictures = static(shape) if noise else np.stack([np.full(shape[1:], colour(i), np.uint8) for i in range(frames)])
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "bgr0" if codec == "ffv1" else "yuv420p"
        for rgb in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return file


@pytest.mark.parametrize(
    ("count", "frames", "places"),
    [(8, 4, [1, 3, 5, 7]), (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]), (10, 3, [1, 5, 8]), (5, 1, [2]), (1, 1, [0])],
)
def test_frames_are_the_centres_of_equal_segments(count: int, frames: int, places: list[int], tmp_path: Path) -> None:
    assert centres(count, frames) == places
    pixels = load_clips(str(film(tmp_path / "clip.mkv", count)), frames, 16, (0, 0, 0), (1, 1, 1))
    assert pixels.shape == (1, frames, 3, 16, 16)
    assert pixels.dtype == torch.float32
    expected = torch.tensor([colour(p) for p in places]).view(1, frames, 3, 1, 1).expand(-1, -1, -1, 16, 16) / 255
    torch.testing.assert_close(pixels, expected)


def test_frames_are_cut_in_the_middle_and_normalised(tmp_path: Path) -> None:
    from PIL import Image

    from repshift_cli.models.inputs.images import load_images

    file = film(tmp_path / "clip.mkv", 3, size=(60, 20), noise=True)
    for place, picture in enumerate(static((3, 20, 60, 3))):
        Image.fromarray(picture).save(tmp_path / f"{place}.png")
    assert torch.equal(load_clips(str(file), 3, 16)[0], load_images(str(tmp_path), 16)), "as photos are"


def test_a_folder_gives_its_clips_in_order(tmp_path: Path) -> None:
    film(tmp_path / "b.mkv", 4)
    film(tmp_path / "a.AVI", 6)
    (tmp_path / "notes.txt").write_text("no clip")
    assert [f.name for f in clip_files(str(tmp_path))] == ["a.AVI", "b.mkv"]
    pixels = load_clips(str(tmp_path), 2, 8, (0, 0, 0), (1, 1, 1))
    expected = [[colour(1), colour(4)], [colour(1), colour(3)]]
    torch.testing.assert_close(pixels[:, :, :, 0, 0], torch.tensor(expected) / 255)


def test_a_clip_is_the_input_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vivit.ALIASES, "vivit_b", {"width": 64, "depth": 2, "heads": 4})
    file = film(tmp_path / "clip.mkv", 8)
    subject = vivit.build(case(model="vivit_b", input=str(file), image_size=32, frames=4, batch=2))
    pixels = subject.inputs["pixel_values"]
    assert pixels.shape == (2, 4, 3, 32, 32)
    expected = torch.tensor([colour(p) for p in (1, 3, 5, 7)]) / 255 * 2 - 1
    torch.testing.assert_close(pixels[:, :, :, 0, 0], expected.expand(2, -1, -1), rtol=0, atol=1e-6)


def torn(folder: Path) -> Path:
    """Cut in the middle of a frame, so that what is left of that frame does not decode."""
    file = film(folder / "torn.avi", 4, noise=True)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 5 // 8])
    return file


def flipped(folder: Path) -> Path:
    """With eight wrong bytes in the middle, which a decoder by itself patches over."""
    file = film(folder / "flipped.mp4", 8, codec="mpeg4", noise=True)
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    data[len(data) // 2 :][:8] ^= 255
    file.write_bytes(data.tobytes())
    return file


def headless(folder: Path) -> Path:
    """An MP4 without its index, which stands at the end."""
    file = film(folder / "headless.mp4", 4, codec="mpeg4")
    file.write_bytes(file.read_bytes()[:-300])
    return file


def text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("no clip")
    return folder / "text.mp4"


def sound(folder: Path) -> Path:
    with wave.open(str(folder / "sound.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(8000))
    return folder / "sound.wav"


def short(folder: Path) -> Path:
    return film(folder / "short.mkv", 3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (torn, "cannot read the clip .*torn.avi"),
        (flipped, "cannot read the clip .*flipped.mp4"),
        (headless, "cannot read the clip .*headless.mp4"),
        (text, "cannot read the clip .*text.mp4: Invalid data"),
        (sound, "sound.wav has no pictures"),
        (short, "short.mkv has 3 frames, fewer than the 4 of the model; give a longer clip or fewer --frames"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_clips_that_cannot_be_used_are_one_sentence(make: Any, said: str, tmp_path: Path) -> None:
    pytest.importorskip("av")
    file = make(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        load_clips(str(file), 4, 16)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_model_is_told_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, photo = tmp_path / "clip.mp4", tmp_path / "photo.png"
    clip.touch()
    photo.touch()
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "photo.png").touch()
    assert "the model takes images, and" in refusal("--model", "vit_t", "--data", str(clip))
    assert "the model takes video, and" in refusal("--model", "umt_b", "--data", str(photo))
    assert "the model takes video; no clips in" in refusal("--model", "umt_b", "--data", str(photos))
    assert "no such file or folder" in refusal("--model", "umt_b", "--data", str(tmp_path / "absent.mp4"))
    assert "the model takes video, and" in refusal("--model", "vit_t,umt_b", "--data", str(photo))
    monkeypatch.setattr(clips, "find_spec", lambda name: None)
    assert "pip install 'av>=16'" in refusal("--model", "umt_b", "--data", str(clip))


@pytest.mark.parametrize(("name", "tokens"), [("paper-retrieval", "2352 → 1882 → 1506 → 1205"), ("paper-qa", "1716")])
def test_the_papers_schedules_are_planned(name: str, tokens: str) -> None:
    assert re.search(rf"^{name} ", CliRunner().invoke(app, ["profiles"]).output, flags=re.MULTILINE)
    options = ["--profile", name, "--model", "umt_b", "--dry-run"]
    done = CliRunner().invoke(app, ["bench", *options], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert tokens in done.output
    assert "5 cases to measure, 0 refused" in done.output
