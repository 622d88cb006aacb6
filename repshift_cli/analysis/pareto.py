"""Which points no other point beats: the front of two wishes at once."""

from __future__ import annotations

from collections.abc import Sequence

Place = tuple[float, float]


def front(points: Sequence[Place]) -> list[bool]:
    """Of points (x, y), more being better of both: whether none other is as good in both and better in one.

    Equal points stand on the front together.
    """
    on_it, last = [False] * len(points), None
    for i in sorted(range(len(points)), key=lambda i: points[i], reverse=True):
        if last is None or points[i][1] > last[1] or points[i] == last:
            on_it[i], last = True, points[i]
    return on_it
