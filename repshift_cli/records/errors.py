"""Errors with one sentence for the user, and the code that the process exits with."""

from __future__ import annotations


class RepshiftError(Exception):
    """An error with one clear sentence for the user; `exit_code` is what the process exits with."""

    exit_code = 1


class UsageError(RepshiftError):
    """What the user typed or pointed at cannot be used; the sentence says what to do next."""

    exit_code = 2


class Unbuildable(UsageError):
    """A model's own code failed while it was planned: a failed row where other models can be measured."""


class CaseBroken(Exception):
    """What was seen makes every figure of the case worthless, so that the case fails as a whole."""
