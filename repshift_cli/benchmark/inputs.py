"""The inputs that all cases of a group share: noticed where a model changes them in place, and put back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WORDS = (
    "the model changes its inputs in place ({}): they were put back after each measurement, and within one its "
    "forwards ran on what the forward before had left"
)


@dataclass
class Inputs:
    """The tensors of a subject's inputs, with copies in the host's memory, for on the device they would be measured."""

    given: Any
    _kept: list[_Kept] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = self.given.items() if isinstance(self.given, dict) else enumerate(self.given, 1)
        self._kept = [_Kept(str(n), t) for n, t in named if isinstance(t, Tensor) and t.layout == torch.strided]

    def put_back(self, thorough: bool) -> tuple[str, ...]:
        """Undo what has changed, and say so.

        Contents are compared where it is `thorough`; else, since that takes a copy from the device, only of tensors
        that torch has counted a change of. A kernel of the model's own that torch does not see is found by the first.
        """
        changed = [one.name for one in self._kept if one.put_back(thorough)]
        return (WORDS.format(", ".join(changed)),) if changed else ()


class _Kept:
    """One tensor and what it held. One that has changed once is compared every time."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self._tensor, self._wary = name, tensor, tensor.is_inference()
        self._copy = tensor.detach().to("cpu", copy=True)
        self._version = self._counted()

    def put_back(self, thorough: bool) -> bool:
        if not (thorough or self._wary or self._counted() != self._version):
            return False
        if self._as_it_was():
            self._version = self._counted()
            return False
        with torch.inference_mode():
            if self._tensor.shape == self._copy.shape and self._tensor.dtype == self._copy.dtype:
                self._tensor.copy_(self._copy)
            else:
                self._tensor.data = self._copy.to(self._tensor.device)
        self._wary, self._version = True, self._counted()
        return True

    def _counted(self) -> int:
        return 0 if self._tensor.is_inference() else self._tensor._version

    def _as_it_was(self) -> bool:
        now, was = self._tensor.detach(), self._copy
        return now.shape == was.shape and now.dtype == was.dtype and torch.equal(_bytes(now.cpu()), _bytes(was))


def _bytes(t: Tensor) -> Tensor:
    """The tensor's memory as it is, for NaN is not equal to itself."""
    return t.contiguous().reshape(-1).view(torch.uint8)
