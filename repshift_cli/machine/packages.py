"""What is installed, found without importing anything, and how to get what is not. Standard library only."""

from __future__ import annotations

import re
import shlex
from importlib.machinery import ModuleSpec, PathFinder

EXTRAS = {
    "eval": ("datasets>=4", "pyarrow>=21"),
    "fla": ("flash-linear-attention>=0.4",),
    "flash-attn": ("flash-attn>=2.8",),
    "history": ("ruptures>=1.1.10",),
    "ray": ("ray[client]>=2.40",),
    "tensorboard": ("torch-tb-profiler>=0.4.3", "tensorboard>=2.21"),
    "timm": ("timm>=1.0.31",),
    "tune": ("optuna>=4",),
    "video": ("av>=16",),
}
"""What the extras of pyproject.toml ask for."""

TORCHVISION = 15
"""torchvision 0.n+15 is built for torch 2.n, and asks for that one alone."""


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


def install(extra: str) -> str:
    """The command that brings what an extra asks for, by its own names: no registry has this package.

    timm needs torchvision, and the newest one would replace the torch that is here by the one that it was built for; so
    the one that belongs to this torch is named, and nothing else is looked at. flash-attn is built with the torch here.
    """
    needed = EXTRAS[extra]
    if extra == "flash-attn":
        needed = ("--no-build-isolation", *needed)
    if extra == "timm" and (torch := re.match(r"2\.(\d+)", _version("torch"))):
        needed = ("--no-deps", *needed, f"torchvision==0.{int(torch[1]) + TORCHVISION}.*")
    return shlex.join(("pip", "install", *needed))


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
