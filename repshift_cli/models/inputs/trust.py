"""What a checkpoint may not do: run code of its own, or ask for more weights than this machine could hold."""

from __future__ import annotations

import os
from typing import Any

from repshift_cli.records import UsageError

BYTES = 4
"""Weights are made in fp32."""


def check_code(place: str, local: bool) -> None:
    """UsageError for a checkpoint that only code of its own can build (`auto_map`): that code is never run.

    A configuration that the installed transformers knows by itself is built from there, whatever else it names.
    """
    from transformers import CONFIG_MAPPING, PretrainedConfig

    plain = PretrainedConfig.get_config_dict(place, local_files_only=local)[0]
    if plain.get("auto_map") and plain.get("model_type") not in CONFIG_MAPPING:
        raise UsageError(
            f"{place} needs Python code that comes with it (auto_map in its config.json), and repshift runs none of a "
            "checkpoint's; read that code, and if you trust it, build the model in a function of your own "
            "(--model package.module:function)"
        )


def check_size(place: str, config: Any) -> None:
    """UsageError where a configuration asks for more weights than this machine has memory, before any is made.

    Counted: 4 C^2 of attention and 2 C M of the MLP in each block, the vocabulary's C V; heads and the rest are small.
    """
    needed = BYTES * sum(_weights(part) for part in (config, *_parts(config)))
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > here:
        raise UsageError(
            f"{place} asks for {_said(needed)} of weights in fp32, and this machine has {_said(here)}; "
            "check num_hidden_layers, hidden_size and vocab_size in its config.json"
        )


def _parts(config: Any) -> list[Any]:
    """The configurations of towers within one, such as a vision tower's."""
    return [part for name in ("vision_config", "text_config") if (part := getattr(config, name, None)) is not None]


def _weights(config: Any) -> int:
    layers, width, mlp, words = (
        value if isinstance(value := getattr(config, name, 0), int) and value > 0 else 0
        for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    )
    return layers * (4 * width**2 + 2 * width * mlp) + width * words


def _said(count: int) -> str:
    return f"{count / 2**30:,.0f} GiB" if count < 2**50 else f"{count / 2**50:,.0f} PiB"
