"""BERT encoders (arXiv 1810.04805) and MiniLM (arXiv 2002.10957), post-norm, the mean of the tokens as output."""

from __future__ import annotations

from repshift_cli.models.base.text import Encoder, family, transformers_recipe

ALIASES = {
    "bert_b": {"width": 768, "depth": 12, "heads": 12},
    "bert_l": {"width": 1024, "depth": 24, "heads": 16},
    "minilm": {"width": 384, "depth": 6, "heads": 12},
}
POSITIONS = 512


def _encoder(name: str) -> Encoder:
    from transformers import BertConfig, BertModel

    size = ALIASES[name]
    config = BertConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        max_position_embeddings=POSITIONS,
        attn_implementation="sdpa",
    )
    return Encoder(transformers_recipe(BertModel, config), length=POSITIONS, positions=POSITIONS)


facts, build = family(_encoder)
