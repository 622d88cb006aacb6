"""Known bytes against counted ones, before any counter is believed; the outcome kept for this machine and versions.

`torch.neg(x, out=y)` on 1 GiB, 16 passes in one range, reads 16 GiB and writes 16 GiB (a copy would be a memcpy, which
some instruments do not see). A counter must give each within 5%, a range with nearly nothing in it near 0, and twice
the passes 2.00 +- 0.02 times as much. What is only sampled must give the sum within 10%. Nothing is ever rescaled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from repshift_cli import __version__
from repshift_cli.counters.base import instruments
from repshift_cli.counters.base.permission import permission
from repshift_cli.counters.base.traffic import CounterError, Traffic
from repshift_cli.machine.describe import describe
from repshift_cli.records import Calibration
from repshift_cli.records.json_codec import from_plain, to_plain

SIZE = 2**30
PASSES = 16
KNOWN = PASSES * SIZE
RANGES = 3
TOLERANCE = {"counter": (0.05, 0.02), "sampled": (0.10, 0.10)}
"""By label: how far counted / known may be from 1, and the doubling from 2."""
NEAR_ZERO = 2**26
"""Bytes that a range with one tiny kernel in it may count: 64 MiB, 0.2% of the known work."""


def known_work(torch: Any, device: str) -> list[Callable[[], Any]]:
    """The three ranges: the known work once, nearly nothing, the known work twice. 2 GiB of device memory."""
    x = torch.randn(SIZE // 4, device=device)
    y = torch.empty_like(x)
    tiny = torch.ones(1, device=device)

    def passes(count: int) -> None:
        for _ in range(count):
            torch.neg(x, out=y)

    passes(1)
    return [lambda: passes(PASSES), lambda: torch.neg(tiny), lambda: passes(2 * PASSES)]


def calibrate(name: str, device: str) -> Calibration:
    """The instrument's calibration on this device, now; one that cannot count fails with the reason."""
    instrument = instruments.load(name)
    found = Calibration(name, instrument.LABEL, False, key=key(name, device), created=_today())
    if reason := instrument.unavailable(device):
        return dataclasses.replace(found, reason=reason)
    try:
        return judge(found, instruments.run(instrument, device, None, RANGES))
    except CounterError as error:
        return dataclasses.replace(found, reason=str(error))


def judge(found: Calibration, ranges: list[Traffic]) -> Calibration:
    """The calibration with its ratios, passed or with what is wrong with it."""
    once, empty, twice = ranges
    found = dataclasses.replace(
        found,
        read=None if once.read is None else once.read / KNOWN,
        written=None if once.written is None else once.written / KNOWN,
        total=once.total / (2 * KNOWN),
        doubled=twice.total / once.total if once.total else None,
        empty=empty.total,
    )
    wrong = _wrong(found)
    return dataclasses.replace(found, passed=not wrong, reason="; ".join(wrong) or None)


def _wrong(found: Calibration) -> list[str]:
    near, doubling = TOLERANCE[found.label]
    ratios = {"read": found.read, "written": found.written}
    if found.read is None:
        ratios = {"read and written": found.total}
    wrong = [
        f"{name}: {ratio:.3f} of the known bytes (1 ± {near:g} is right)"
        for name, ratio in ratios.items()
        if ratio is None or not abs(ratio - 1) <= near
    ]
    if found.empty is None or found.empty > NEAR_ZERO:
        wrong.append(f"{(found.empty or 0) / 2**20:.0f} MiB where nearly nothing ran")
    if found.doubled is None or not abs(found.doubled - 2) <= doubling:
        wrong.append(f"twice the work gave {found.doubled or 0:.3f} times the bytes (2 ± {doubling:g} is right)")
    return wrong


# --- the cache --------------------------------------------------------------------------------------------------------


def known_or_new(name: str, device: str) -> Calibration:
    """The calibration from the cache where it was taken under the same circumstances, else a new one."""
    return cached(name, key(name, device)) or kept(calibrate(name, device))


def key(name: str, device: str) -> str:
    """The circumstances that a calibration holds for: device, driver, permission, versions, the instrument itself."""
    here = describe(device)
    allowed, _ = permission()
    torch = here.packages.get("torch")
    parts = (here.uuid or here.device_name, f"driver {here.driver}", f"torch {torch}", f"repshift {__version__}")
    closed = "counters closed" if allowed is False else "counters open"
    return ", ".join(filter(None, (*parts, closed, instruments.load(name).identity())))


def place() -> Path:
    """The cache's file, in the user's cache folder."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "repshift" / "calibration.json"


def cached(name: str, circumstances: str) -> Calibration | None:
    """The stored calibration of the instrument under these circumstances; None where there is none to be read."""
    return next((c for c in _stored() if (c.provider, c.key) == (name, circumstances)), None)


def kept(found: Calibration) -> Calibration:
    """The calibration, stored in place of an older one; a cache that cannot be written is done without."""
    others = [c for c in _stored() if (c.provider, c.key) != (found.provider, found.key)]
    with contextlib.suppress(OSError):
        place().parent.mkdir(parents=True, exist_ok=True)
        beside = place().with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(to_plain([*others, found]), indent=1), encoding="utf-8")
        beside.replace(place())
    return found


def _stored() -> list[Calibration]:
    """What the cache holds; nothing where it is missing, damaged or of another version."""
    try:
        found: tuple[Calibration, ...] = from_plain(
            tuple[Calibration, ...], json.loads(place().read_text(encoding="utf-8"))
        )
    except (OSError, ValueError):
        return []
    return list(found)


def _today() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
