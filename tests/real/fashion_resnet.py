"""Trains a ResNet-18 on Fashion-MNIST, since no package carries the weights of a CNN that the tool builds in.

    python tests/real/fashion_resnet.py FOLDER --fashion DIR

writes FOLDER/fashion_resnet, weights for `--model resnet18 --weights`: trained in one pass over the first 10,000
training images, at 56 pixels, each of theirs twice in both directions; of its 1000 classes ten are used. DIR holds the
files of Debian's package dataset-fashion-mnist. About two minutes on one core.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from repshift_cli.models.base.torchvision import mend

IMAGES, BATCH, RATE = 10_000, 50, 1e-3


def fashion(source: Path, name: str, count: int) -> tuple[Tensor, Tensor]:
    """(N, 28, 28) of 0 to 255, and the labels."""
    pixels, labels = (gzip.decompress((source / f"{name}-{kind}.gz").read_bytes()) for kind in (
        "images-idx3-ubyte", "labels-idx1-ubyte"
    ))  # fmt: skip
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)[:count]
    return torch.tensor(images), torch.tensor(np.frombuffer(labels, np.uint8, offset=8)[:count]).long()


def enlarged(images: Tensor) -> Tensor:
    """What the model sees (B, 3, 56, 56): as `repshift eval` prepares images where a model says nothing of them."""
    large = images.repeat_interleave(2, -1).repeat_interleave(2, -2)[:, None].expand(-1, 3, -1, -1)
    return ((large / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)


def train(module: nn.Module, images: Tensor, labels: Tensor) -> None:
    """AdamW with a one-cycle schedule, one pass, in bfloat16 where that is enough."""
    optimizer = torch.optim.AdamW(module.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=len(images) // BATCH)
    for step, rows in enumerate(torch.randperm(len(images)).split(BATCH), 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = module(enlarged(images[rows])).logits
        loss = nn.functional.cross_entropy(logits.float(), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"{step} of {len(images) // BATCH}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    """Train, say how good it is on images that it has not seen, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fashion", type=Path, required=True)
    given = parser.parse_args()
    mend()
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    shape = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "num_labels": 1000}
    module = ResNetForImageClassification(ResNetConfig(**shape)).to(memory_format=torch.channels_last)
    train(module.train(), *fashion(given.fashion, "train", IMAGES))
    images, labels = fashion(given.fashion, "t10k", 1000)
    with torch.inference_mode():
        answers = torch.cat([module.eval()(enlarged(part)).logits.argmax(-1) for part in images.split(100)])
    print(f"accuracy on 1,000 test images: {(answers == labels).float().mean():.3f}")
    module.save_pretrained(given.folder / "fashion_resnet")


if __name__ == "__main__":
    main()
