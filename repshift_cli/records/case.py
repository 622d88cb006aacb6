"""A cell of a sweep, and the words that its fields take."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

METHODS_WITHOUT_PRUNING = "none"
OPERATIONS = ("mlp", "attention", "block")
DISTANCES = ("l2", "l1", "cosine")
FORMS = ("paper", "update")
REMOVALS = ("line", "token")
WITHOUT_ATTENTION = "none"
"""The back end of models that have no attention to choose."""
DTYPES = ("fp32", "bf16", "fp16")
EXECUTIONS = ("eager", "graph", "compile")
HBM_CHOICES = ("auto", "cupti", "ncu", "gpm", "model", "off")


@dataclass(frozen=True)
class Case:
    """One cell of a sweep: hashable, printable, and its own key on disk.

    `keep` is the share of the tokens still there (prefix tokens apart) that stays at each layer of `layers`; `layers`
    count blocks from 1 and the cut is at the block's end. `protect` names leading and trailing tokens that stay beside
    the model's own protected ones (`first:35,last:1`); `removal` says how a grid (of a CNN) gets smaller, `length`
    how many tokens a sequence (of text) has.
    """

    model: str
    input: str
    weights: str
    image_size: int | None
    frames: int | None
    batch: int
    dtype: str
    device: str
    attention: str
    pruning: str = METHODS_WITHOUT_PRUNING
    keep: float = 1.0
    layers: tuple[int, ...] = ()
    operation: str | None = None
    distance: str | None = None
    form: str | None = None
    execution: str = "eager"
    seed: int = 0
    protect: str | None = None
    removal: str | None = None
    length: int | None = None

    @property
    def variant(self) -> str:
        """`flash`, or `flash+repshift`: the attention back end and the pruning method."""
        return self.attention if self.pruning == METHODS_WITHOUT_PRUNING else f"{self.attention}+{self.pruning}"

    @property
    def group(self) -> tuple[Any, ...]:
        """What cases must share so that one model and one input serve them all and their times may be compared."""
        return (
            self.model,
            self.weights,
            self.input,
            self.image_size,
            self.frames,
            self.batch,
            self.dtype,
            self.device,
            self.seed,
            self.protect,
            self.length,
        )

    @property
    def schedule(self) -> tuple[Any, ...]:
        """What two pruned cases must share so that they run on the same numbers of tokens."""
        return (self.keep, self.layers, self.execution, self.removal)

    @property
    def key(self) -> str:
        """A readable name, unique within a run: every field that was set, in the order of the declaration."""
        parts = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value is None or value == ():
                continue
            parts.append(f"{f.name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
        return " ".join(parts)
