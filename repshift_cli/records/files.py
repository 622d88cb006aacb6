"""Files that a user names: refused with a sentence before anything waits for them or fills the memory with them."""

from __future__ import annotations

import stat
from pathlib import Path

from repshift_cli.records.errors import UsageError

LARGEST_FILE = 2**30
"""Bytes. A run of 2,000 cases takes about 20 MB."""


def check_regular(path: Path, largest: int | None = LARGEST_FILE) -> None:
    """UsageError for a pipe, a device or a folder, which could block for ever, and for more than `largest` bytes.

    A file that is not there passes: whoever opens it says what it should have been.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # too long a name, one with NUL in it, no permission
        raise UsageError(f"{str(path)[:80]} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise UsageError(f"{path} cannot be read: it is {kind}; name a regular file")
    if largest is not None and found.st_size > largest:
        raise UsageError(f"{path} has {found.st_size / 2**30:.1f} GiB; more than {largest / 2**30:g} GiB are not read")


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; a name that cannot be one is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
