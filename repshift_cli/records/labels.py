"""How a case is called among others: the one place where the fields of a case become words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from repshift_cli.records.case import METHODS_WITHOUT_PRUNING, Case, names_of, written

WORDS = {
    "image_size": "{} px",
    "frames": "{} frames",
    "length": "{} tokens",
    "layers": "at {}",
    **dict.fromkeys(("dtype", "device", "removal", "execution"), "{}"),
}
"""What is said of a field where it is not `name value`: `224 px`, `keep 0.5 at 1,4,7`, and values that say what they
are, as the texts among a method's options do."""

SWITCHES = ("on", "off")
"""Texts among a method's options that say nothing without the option's name."""

PRUNING_FIELDS = ("keep", "layers", "removal")
"""Fields that say nothing of an unpruned case."""


def labels(cases: Iterable[Case]) -> dict[Case, str]:
    """How each case is called among the others: its variant and whatever tells them apart, the model first."""
    known = list(dict.fromkeys(cases))
    varying = [name for name in names_of(known) if _varies(name, known)]
    model = [] if "model" not in varying else ["model"]
    others = [name for name in varying if name not in ("model", "attention", "pruning")]
    return {case: " ".join([*(case.model for _ in model), case.variant, *words(case, others)]) for case in known}


def words(case: Case, names: Iterable[str]) -> list[str]:
    """What is said of these fields of a case: `224 px`, `batch 8`; nothing of those that are not set."""
    unpruned = case.pruning == METHODS_WITHOUT_PRUNING
    told = [name for name in names if not (unpruned and name in PRUNING_FIELDS)]
    return [_word(case, name) for name in told if case.values.get(name) is not None]


def _word(case: Case, name: str) -> str:
    value = case.option(name)
    speaks = isinstance(value, str) and value not in SWITCHES
    return WORDS.get(name, "{}" if speaks else f"{name.replace('_', ' ')} {{}}").format(written(case.values[name]))


def _varies(name: str, cases: Sequence[Case]) -> bool:
    """Whether cases are told apart by a field; one that a case does not have tells nothing, but for protect's."""
    concerned = [c for c in cases if name not in PRUNING_FIELDS or c.pruning != METHODS_WITHOUT_PRUNING]
    values = {c.values.get(name) for c in concerned}
    return len(values if name == "protect" else values - {None}) > 1
