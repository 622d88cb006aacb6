"""Qwen2 decoders (arXiv 2407.10671), grouped queries, biased projections, in prefill up to the first token."""

from __future__ import annotations

from repshift_cli.models.base.decoder import Decoder, family

ALIASES = {
    "qwen2_0b5": {"width": 896, "inner": 4864, "depth": 24, "heads": 14, "kv": 2, "words": 151936, "tied": True},
    "qwen2_1b5": {"width": 1536, "inner": 8960, "depth": 28, "heads": 12, "kv": 2, "words": 151936, "tied": True},
    "qwen2_7b": {"width": 3584, "inner": 18944, "depth": 28, "heads": 28, "kv": 4, "words": 152064, "tied": False},
}


def _recipe(name: str) -> Decoder:
    from transformers import Qwen2Config

    size = ALIASES[name]
    config = Qwen2Config(
        hidden_size=size["width"],
        intermediate_size=size["inner"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv"],
        vocab_size=size["words"],
        tie_word_embeddings=size["tied"],
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        attn_implementation="sdpa",
    )
    return Decoder(config)


facts, build = family(_recipe)
