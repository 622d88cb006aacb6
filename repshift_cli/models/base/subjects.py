"""The one builder of a subject: a module and its inputs, the blocks found in it, and which tokens always stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from repshift_cli.models.discovery.blocks import Found
from repshift_cli.records import Subject, UsageError, protection

RANDOM_WEIGHTS = "random weights: fidelity says nothing of a trained model"


def subject_of(
    module: Any,
    evaluation: Sequence[Any],
    found: Found,
    units: str,
    logits: Callable[[Any], Any],
    pooled: Callable[[Any], Any],
    prefix: int = 0,
    suffix: int = 0,
    central: int = 0,
    marked: int = 0,
    warnings: Sequence[str] = (),
    **more: Any,
) -> Subject:
    """The subject whose first `evaluation` batch is what is timed; of the tokens found all but the protected may go.

    `more` are further fields of `Subject`. What `found` warns of (causal blocks that may count their tokens) is the
    caller's to pass on: a family that knows its blocks has no such doubt.
    """
    return Subject(
        module=module,
        inputs=evaluation[0],
        evaluation=tuple(evaluation),
        sites=found.sites,
        companions=found.companions,
        spread=found.spread,
        biased=found.biased,
        prefix=prefix,
        suffix=suffix,
        central=central,
        marked=marked,
        tokens=found.entering - prefix - suffix - central - marked,
        units=units,
        logits=logits,
        pooled=pooled,
        warnings=tuple(warnings),
        **more,
    )


def protecting(subject: Subject, more: str | None, name: str) -> Subject:
    """The subject with the tokens that `first:35,last:1` names protected too; UsageError where it has no such row."""
    first, last = protection(more)
    if not first + last:
        return subject
    if subject.marked or subject.central or subject.grid:
        raise UsageError(f"--protect does not apply to {name}: its tokens are not a row from first to last")
    prefix, suffix, rest = subject.prefix + first, subject.suffix + last, subject.tokens - first - last
    return replace(subject, prefix=prefix, suffix=suffix, tokens=rest, own_prefix=subject.prefix)
