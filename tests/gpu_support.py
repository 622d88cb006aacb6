"""What the tests on a GPU share; nothing here needs one, so that `test_gpu_support` can hold it to be right."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tiny import Plain
from torch import Tensor

NAMES = {
    "flash": r"flash_fwd\w*|Flash\w*Fwd\w*|FlashAttentionForward\w*",
    "efficient": r"fmha_cutlass\w*|mem_eff\w*",
    "cudnn": r"cudnn\w*",
    "math": "attention_math",
    "vanilla": "softmax",
    "eager": "softmax",
    "sdpa": r"[\w +]*attention\w*|cudnn\w*|flash_fwd\w*|fmha_cutlass\w*",
    "flash_attn2": r"flash_fwd\w*",
    "flash_attn3": r"FlashAttnFwd\w*",
    "flash_attn4": r"FlashAttentionForward\w*",
}
"""By back end, how what it ran on is named."""


def moved(plain: Plain, device: str, dtype: torch.dtype) -> Plain:
    """The model and its inputs on a device; only what is floating gets the dtype, masks and ids stay what they are."""

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    plain.module.to(device, dtype)
    for module in plain.module.modules():
        for name, value in vars(module).items():  # VideoMAE's table of positions is no buffer
            if isinstance(value, Tensor):
                setattr(module, name, there(value))
    given = plain.inputs
    inputs = {k: there(v) for k, v in given.items()} if isinstance(given, dict) else tuple(map(there, given))
    return dataclasses.replace(plain, inputs=inputs)
