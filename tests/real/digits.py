"""Trains the tests' own checkpoint: a tiny ViT on scikit-learn's digits, written to tests/data/digits-vit.

python tests/real/digits.py tests/data/digits-vit [EPOCHS]

The digits are 8 x 8 images with labels (UCI, 1,797 of them); the first 1,297 train, the last 500 are what tests and
documentation evaluate. About four minutes on one core. Needs scikit-learn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from repshift_cli.models.base.torchvision import mend

SIZE, TRAINED = 16, 1297
MEAN = STD = 0.5


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 1, 8, 8) of 0 to 255, and the labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images / 16 * 255).round().unsqueeze(1), torch.tensor(found.target)


def enlarged(images: Tensor) -> Tensor:
    """What a model sees of images (B, 1, 8, 8): each pixel twice in both directions, three channels, normalised."""
    large = images.float().repeat_interleave(2, -1).repeat_interleave(2, -2).expand(-1, 3, -1, -1)
    return (large / 255 - MEAN) / STD


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by at most two pixels of sixteen, so that the model does not learn places by heart."""
    moves = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(images, moves, (-2, -1))


def model() -> nn.Module:
    """64 patches of 2 x 2, 6 blocks of width 32: about 55 thousand weights."""
    mend()
    from transformers import ViTConfig, ViTForImageClassification

    names = {i: str(i) for i in range(10)}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    config = ViTConfig(image_size=SIZE, patch_size=2, initializer_range=0.1, **labels, **sizes)
    return ViTForImageClassification(config)


def train(module: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW with a cosine schedule, batches of 64."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * -(-len(images) // 64))
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(64):
            logits = module(pixel_values=shifted(images[rows], generator)).logits
            loss = nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / -(-len(images) // 64):.3f}", file=sys.stderr)


def main() -> None:
    """Train, say how good it is on the digits that were not trained on, and write the folder in fp16."""
    folder, epochs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 70
    torch.manual_seed(0)
    images, labels = digits()
    seen, module = enlarged(images), model()
    train(module.train(), seen[:TRAINED], labels[:TRAINED], epochs)
    with torch.inference_mode():
        right = module.eval()(pixel_values=seen[TRAINED:]).logits.argmax(-1) == labels[TRAINED:]
    print(f"accuracy on the {len(right)} digits left: {right.float().mean():.3f}")
    module.half().save_pretrained(folder)
    told = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [MEAN] * 3, "image_std": [STD] * 3, "resample": 0}
    (folder / "preprocessor_config.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
