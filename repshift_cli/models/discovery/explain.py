"""What was found of a model, in words and numbers: its blocks and branches by their paths, what stays and why."""

from __future__ import annotations

from typing import Any

from torch import nn

from repshift_cli.models.discovery.blocks import named_prefix, pattern
from repshift_cli.records import Subject

BIASES = "the biases that attention makes for every pair of places"
PARALLEL = "the block itself: its branches stand side by side"
TOLD = "named by the family or the adapter, or found"


def explained(subject: Subject, more: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """A subject as plain data; paths of branches are those within a block where they lie in it.

    `more` are the leading and trailing tokens that --protect added.
    """
    module, sites = subject.module, subject.sites
    names = paths_of(module) | paths_of(sites[0].block)
    parts = {part: getattr(sites[0], part) for part in ("attention", "middle", "mlp")}
    return {
        "class": type(module).__name__,
        "depth": len(sites),
        "blocks": pattern(module, [site.block for site in sites]),
        "branches": {part: None if m is None else names.get(id(m), type(m).__name__) for part, m in parts.items()}
        | ({"middle": PARALLEL} if sites[0].parallel else {}),
        "operations": list(sites[0].operations),
        "entering": subject.tokens + subject.protected,
        "free": subject.tokens,
        "protected": _protected(subject, *more),
        "companions": [*subject.companions, *[BIASES] * subject.biased],
        "readers": [names.get(id(m), type(m).__name__) for m in subject.readers],
        "warnings": list(subject.warnings),
    }


def paths_of(module: nn.Module) -> dict[int, str]:
    """The path of every module, by its id."""
    return {id(m): path for path, m in module.named_modules() if path}


def _protected(subject: Subject, first: int, last: int) -> dict[str, str]:
    """Which tokens always stay, and how that is known."""
    prefix, suffix = subject.prefix - first, subject.suffix - last
    by_name = named_prefix(subject.module)
    names = ", ".join(name if n == 1 else f"{name}: {n}" for name, n in by_name.items())
    counts = {
        "leading": (prefix, names if sum(by_name.values()) == prefix else TOLD),
        "more leading": (first, "--protect"),
        "trailing": (suffix, TOLD),
        "more trailing": (last, "--protect"),
        "in the middle": (subject.central, "put back there after a cut"),
        "marked in each sample": (subject.marked, "by the model's inputs; padding goes first"),
    }
    return {where: f"{count} ({how})" for where, (count, how) in counts.items() if count}
