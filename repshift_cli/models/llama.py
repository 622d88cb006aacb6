"""Llama decoders (arXiv 2302.13971) in prefill, to the first token; llava_7b drops only tokens in an image's place."""

from __future__ import annotations

from typing import Any

from repshift_cli.models.base.decoder import Decoder, family

ALIASES: dict[str, dict[str, Any]] = {
    "llama_160m": {"width": 768, "inner": 3072, "depth": 12, "heads": 12, "kv": 12, "words": 32000},
    "llama_1b": {
        "width": 2048,
        "inner": 8192,
        "depth": 16,
        "heads": 32,
        "kv": 8,
        "words": 128256,
        "positions": 131072,
        "theta": 500000.0,
    },
    "llama_7b": {"width": 4096, "inner": 11008, "depth": 32, "heads": 32, "kv": 32, "words": 32000, "positions": 4096},
    "llama_8b": {
        "width": 4096,
        "inner": 14336,
        "depth": 32,
        "heads": 32,
        "kv": 8,
        "words": 128256,
        "positions": 131072,
        "theta": 500000.0,
    },
    "llava_7b": {"width": 4096, "inner": 11008, "depth": 32, "heads": 32, "kv": 32, "words": 32064, "positions": 4096},
}
"""llava_7b stands for LLaVA-1.5 (arXiv 2310.03744) behind its vision tower: 35 tokens of system text, 576 of an image,
29 of a question. Token ids take the image's place: what a decoder does with them costs the same."""

SYSTEM, IMAGE, QUESTION = 35, 576, 29


def _recipe(name: str) -> Decoder:
    from transformers import LlamaConfig

    size = ALIASES[name]
    config = LlamaConfig(
        hidden_size=size["width"],
        intermediate_size=size["inner"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv"],
        vocab_size=size["words"],
        max_position_embeddings=size.get("positions", 2048),
        rope_parameters={"rope_type": "default", "rope_theta": size.get("theta", 10000.0)},
        tie_word_embeddings=name == "llama_1b",
        attn_implementation="sdpa",
    )
    if name == "llava_7b":
        return Decoder(config, length=SYSTEM + IMAGE + QUESTION, prefix=SYSTEM, suffix=QUESTION)
    return Decoder(config)


facts, build = family(_recipe)
