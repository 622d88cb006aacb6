"""Example family: a small vision transformer that is defined here."""

import torch
from torch import nn

from repshift_cli.models.discovery.blocks import find_sites
from repshift_cli.records import Case, Facts, Subject

ALIASES = {"example_vit": {"width": 32, "depth": 4}}
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patches(pixels).flatten(2).mT
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)
        return self.head(self.blocks(x)[:, 0])


def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
    size = image_size or 64
    return Facts(ALIASES[name]["depth"], tokens=(size // 8) ** 2, prefix=1, head_dim=8, image_size=size)


def build(case: Case) -> Subject:
    torch.manual_seed(case.seed)
    module = ViT(**ALIASES[case.model]).eval().to(case.device, TORCH_DTYPES[case.dtype])
    pixels = torch.randn(case.batch, 3, case.image_size or 64, case.image_size or 64)
    inputs = (pixels.to(case.device, TORCH_DTYPES[case.dtype]),)
    found = find_sites(module, inputs)
    return Subject(
        module=module,
        inputs=inputs,
        evaluation=(inputs,),
        sites=found.sites,
        prefix=1,
        tokens=found.entering - 1,
        units="img",
        logits=lambda output: output,
        pooled=lambda output: output,
    )
