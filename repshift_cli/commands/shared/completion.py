"""What the shell completes: names of models, variants and profiles, without importing any part."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from repshift_cli.records import Option, written
from repshift_cli.registry import aliases, parts
from repshift_cli.sweep.profiles import shipped_profiles


def model_names(incomplete: str) -> list[str]:
    """Model aliases, also after a comma."""
    return _in_list(incomplete, [*aliases(), "hf:", "timm:"])


def variant_names(incomplete: str) -> list[str]:
    """Back ends, and behind a `+` the methods; also after a comma."""
    backend, plus, _ = incomplete.rpartition(",")[2].partition("+")
    return _in_list(incomplete, [f"{backend}+{m}" for m in parts("reduction")] if plus else parts("attention"))


def profile_names(incomplete: str) -> list[str]:
    """Shipped profiles."""
    return _in_list(incomplete, shipped_profiles())


def values_of(option: Option) -> Callable[[str], list[str]]:
    """What completes the values of a reduction method's own option, also after a comma."""

    def values(incomplete: str) -> list[str]:
        return _in_list(incomplete, map(written, option.choices))

    return values


def _in_list(incomplete: str, names: Iterable[str]) -> list[str]:
    """The names that start like the last piece of a comma-separated list, with the pieces before it."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in names if name.startswith(last)]
