"""What every instrument gives: the bytes of one range, or the reason why there are none."""

from __future__ import annotations

from dataclasses import dataclass


class CounterError(Exception):
    """An instrument could not count; the message is the reason for one cell, with the remedy where there is one."""


@dataclass(frozen=True)
class Traffic:
    """Bytes between the GPU and its memory in one range; `read` and `written` are None where only the sum is told."""

    total: float
    read: float | None = None
    written: float | None = None

    @classmethod
    def of(cls, read: float, written: float) -> Traffic:
        """The traffic of both directions, each told."""
        return cls(read + written, read, written)
