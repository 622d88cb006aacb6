"""The tables of repshift_cli/inspection/README.md that are of one inspection: what a cache costs."""

from __future__ import annotations

from predictions import FOLDER, NOTHING

from repshift_cli.records import store
from repshift_cli.records.inspection import Answer, Inspection

ATTENTIONS = {"flash": "", "vanilla": "_vanilla"}
"""How the cache's arrays of each attention end."""
PROMPTS = ("128", "1024", "8192", "32768")


def answer(name: str, question: str) -> Answer:
    """What a stored inspection says of a question."""
    found = store.load_any(FOLDER / "inspection" / f"{name}.json")
    assert isinstance(found, Inspection)
    return found.answer(question)


def cache_measured() -> str:
    """SmolLM2 by length and attention: times, and the allocator's peaks."""
    steps = ("prefill", "decode", "decode without cache", "prefill, pruned", "decode, pruned")
    peaks = ("prefill", "prefill, pruned", "decode", "decode, pruned")
    named = [step.replace("decode", "next token") for step in steps], [peak.replace("decode", "next") for peak in peaks]
    heads = ("tokens", "attention", *(f"{name}, ms" for name in named[0]), *(f"peak of {n}, MiB" for n in named[1]))
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    found = {q.name: dict(q.items()) for q in answer("smollm2-cache", "cache").quantities}
    for tokens in dict.fromkeys(length for length, _ in found["times"]):
        for attention, end in ATTENTIONS.items():
            times = (_size(found[f"times{end}"][tokens, step]) for step in steps)
            above = (_size(found[f"peaks{end}"][tokens, peak]) for peak in peaks)
            lines.append(f"| {' | '.join((tokens, attention, *times, *above))} |")
    return "\n".join(lines)


def cache_by_kind() -> str:
    """Caches of every kind at four lengths: their bytes, and what one query of one block takes."""
    of = answer("smollm2-cache", "cache")
    held, times = (dict(of.quantity(name).items()) for name in ("bytes", "operator_times"))
    kinds = of.quantity("bytes").axes[1].ticks
    lines = [f"| tokens | {' | '.join(kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for prompt in PROMPTS:
        cells = (f"{_size(held[prompt, kind])} / {_size(times.get((prompt, kind)))}" for kind in kinds)
        lines.append(f"| {prompt} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
