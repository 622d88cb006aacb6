"""KV cache: what prefill leaves behind for decoding, in every layer, per prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from repshift_cli.probes import Context, Measure
from repshift_cli.records import Measurement, Metric, Step

KV_CACHE = Metric(
    "kv_cache",
    "KV cache",
    "B",
    "lower",
    "value",
    "counted",
    "Bytes of keys and values that prefill leaves behind for decoding, per sample over all layers.",
)
KV_TOKENS = Metric(
    "kv_cache_tokens",
    "KV tokens",
    "",
    "lower",
    "value",
    "counted",
    "Tokens whose keys and values prefill leaves behind, summed over the layers.",
    detail=True,
)
METRICS = (KV_CACHE, KV_TOKENS)


def make(context: Context) -> Measure:
    """A forward whose output is looked into."""
    return KvCacheProbe().measure


class KvCacheProbe:
    """Counts the bytes and the tokens of `output.past_key_values` per sample, over all layers, and in each by `parts`.

    A model that keeps no such cache has no such figure.
    """

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """One forward, from whose output the tensors are read."""
        with step.active():
            layers = _keys_and_values(step.forward())
        if not layers:
            return ()
        held = {str(n): (k.nbytes + v.nbytes) / step.case.batch for n, (k, v) in enumerate(layers, start=1)}
        tokens = {str(n): float(k.shape[-2]) for n, (k, _) in enumerate(layers, start=1)}
        return _split(KV_CACHE, held), _split(KV_TOKENS, tokens)


def _split(metric: Metric, layers: dict[str, float]) -> Measurement:
    return replace(metric.of(sum(layers.values())), parts={"block": layers})


def _keys_and_values(output: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(keys, values), each (B, heads, tokens, d), of every layer of a transformers cache; else nothing."""
    layers = getattr(getattr(output, "past_key_values", None), "layers", ())
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    return [(k, v) for k, v in pairs if isinstance(k, torch.Tensor) and isinstance(v, torch.Tensor)]
