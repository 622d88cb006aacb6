"""repshift: does dropping tokens by representation shift make this model faster on this device, and at what loss?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repshift_cli.pruning import Pruned, prune
    from repshift_cli.records import UsageError

__version__ = "0.1.0"
__all__ = ["Pruned", "UsageError", "__version__", "prune"]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for, so that `import repshift_cli` stays light."""
    if name in ("Pruned", "prune", "UsageError"):
        from repshift_cli import pruning

        return getattr(pruning, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
