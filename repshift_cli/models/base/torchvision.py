"""A torchvision built for CUDA beside a torch without it: made importable, since timm and transformers import it.

Package registries carry torchvision's CUDA build. Beside a CPU torch its library cannot be loaded, so that the
operators it registers are missing and `import torchvision` dies with "operator torchvision::nms does not exist"; with
it die timm and most model classes of transformers. Declaring the two operators that its Python side registers fakes for
is enough: models need none of them, and calling one still fails.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def mend() -> torch.library.Library | None:
    """Declare torchvision's operators where its library cannot be loaded; to be called before either library's import.

    It does nothing where torch has CUDA or torchvision is not installed. What it gives back keeps the operators alive.
    """
    spec = importlib.util.find_spec("torchvision") if torch.version.cuda is None else None
    if spec is None or "torchvision" in sys.modules or _loads(spec.submodule_search_locations or ()):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + _BOXES)
    return library


def _loads(folders: object) -> bool:
    """Whether torchvision's own library can be loaded, which registers the operators itself."""
    try:
        for folder in folders:  # type: ignore[attr-defined]
            for file in Path(folder).glob("_C.*"):
                torch.ops.load_library(str(file))
    except OSError:
        return False
    return True
