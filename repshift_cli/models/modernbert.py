"""ModernBERT encoders (arXiv 2412.13663), pre-norm, rotary positions, sliding windows in two layers of three."""

from __future__ import annotations

from repshift_cli.models.base.text import Encoder, family, transformers_recipe

ALIASES = {
    "modernbert_b": {"width": 768, "mlp": 1152, "depth": 22, "heads": 12},
    "modernbert_l": {"width": 1024, "mlp": 2624, "depth": 28, "heads": 16},
}
LENGTH = 1024
"""The tokens of a sequence where nothing else is said; 8192 are the most."""


def _encoder(name: str) -> Encoder:
    from transformers import ModernBertConfig, ModernBertModel

    size = ALIASES[name]
    config = ModernBertConfig(
        hidden_size=size["width"],
        intermediate_size=size["mlp"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        attn_implementation="sdpa",
    )
    return Encoder(
        transformers_recipe(ModernBertModel, config),
        length=LENGTH,
        positions=config.max_position_embeddings,
        window=config.sliding_window,
    )


facts, build = family(_encoder)
