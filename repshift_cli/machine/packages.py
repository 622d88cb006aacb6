"""Whether a module is installed, found without importing anything. Standard library only."""

from __future__ import annotations

from importlib.machinery import ModuleSpec, PathFinder


def find_spec(module: str) -> ModuleSpec | None:
    """Where a module would come from, found without importing it or its parents, as importlib's own does."""
    names, path, spec = module.split("."), None, None
    for i in range(len(names)):
        spec = PathFinder.find_spec(".".join(names[: i + 1]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec


def is_installed(module: str) -> bool:
    """Whether a module has a file; a bare folder without one, which another package may leave, does not count."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None
