"""TimeSformer (arXiv 2102.05095): refused, for its divided attention needs the whole grid of frames x positions."""

from __future__ import annotations

from typing import NoReturn

from repshift_cli.records import Case, UsageError

ALIASES: dict[str, object] = {"timesformer_b": {}}


def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> NoReturn:
    """UsageError with the reason: no single token can be dropped from divided space-time attention (its section 3)."""
    raise UsageError(
        f"{name} is refused: its divided attention mixes each position over all frames, then each frame over all "
        "positions, so single tokens cannot be dropped from its grid, and transformers computes it without an "
        "attention back end; for joint space-time attention take vivit_b, videomae_b or umt_b"
    )


def build(case: Case) -> NoReturn:
    """As `facts`."""
    facts(case.model)
