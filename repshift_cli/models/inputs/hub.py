"""Whether the hub of checkpoints and data sets can be reached."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from functools import cache

PATIENCE = 4
"""Seconds to wait for the hub."""


@cache
def hub_answers() -> bool:
    """Whether the hub can be reached, asked once and for a few seconds: the library itself tries for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):
                answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)
        except (OSError, ValueError):
            pass

    # in a thread, for a name server that does not answer keeps the caller longer than any timeout
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    constants.HF_HUB_OFFLINE = not answered  # tokenizers and the like are looked for in the cache alone, too
    return bool(answered)
