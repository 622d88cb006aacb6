"""Tokens that do not come from the input (class tokens, registers, queries), found by changing the input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.discovery.arguments import rows_of
from repshift_cli.records import call

BESIDE = ("mask", "position", "type")
"""Inputs with such a word in their name say something of tokens, and are not what tokens are made of."""


@dataclass(frozen=True)
class Learnt:
    """The places of tokens that stay the same whatever the input is, among the `entering` ones of the first block.

    `names` are the parameters that make them.
    """

    places: tuple[int, ...] = ()
    entering: int = 0
    names: tuple[str, ...] = ()

    @property
    def leading(self) -> int:
        """How many stand in front of all others."""
        return next((i for i in range(len(self.places) + 1) if i not in self.places), 0)

    @property
    def trailing(self) -> int:
        """How many stand behind all others."""
        ends = range(self.entering - 1, -1, -1)
        return next((i for i, place in enumerate(ends) if place not in self.places), 0)

    @property
    def inside(self) -> tuple[int, ...]:
        """Those that stand between others."""
        return tuple(p for p in self.places if self.leading <= p < self.entering - self.trailing)

    @property
    def called(self) -> str:
        """` (summary)`, where the parameters are known."""
        return f" ({', '.join(self.names)})" if self.names else ""


def learnt_tokens(module: nn.Module, block: nn.Module, inputs: Any) -> Learnt:
    """The learnt tokens among those that enter `block`, the first one; none where the trial says nothing.

    Two forwards, which end at the block, and one for each parameter that may be such a token, (1, k, C) or (k, C).
    """
    plain, other = entering_states(module, block, inputs), entering_states(module, block, changed(inputs))
    if plain is None or other is None or plain.shape != other.shape:
        return Learnt()
    same = (plain == other).all(2).all(0)
    places = tuple(same.nonzero().flatten().tolist())
    if not places or bool(same.all()):
        return Learnt(entering=plain.shape[1])
    return Learnt(places, plain.shape[1], tuple(_makers(module, block, inputs, plain, same)))


def changed(inputs: Any) -> Any:
    """Other inputs of the same shapes: other numbers, other token ids of the same range; masks and the like stay."""
    if isinstance(inputs, dict):
        return {name: v if any(word in name for word in BESIDE) else _other(v) for name, v in inputs.items()}
    return tuple(map(_other, inputs))


def _other(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype == torch.bool or not value.numel():
        return value
    if value.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        return torch.randn(value.shape, generator=generator).to(value.device, value.dtype) + value
    return (value + 1) % (value.max() + 1)


class _Entered(Exception):
    """Ends the forward where the first block begins."""


def entering_states(module: nn.Module, block: nn.Module, inputs: Any) -> Tensor | None:
    """What enters `block`, (B, N, C); None where the forward does not come so far."""
    found: list[Tensor] = []

    def begin(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = rows_of((*args, *kwargs.values()))
        found.extend(() if rows is None else (rows.clone(),))
        raise _Entered

    handle = block.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with torch.inference_mode():
            call(module, inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a trial: other inputs may be none that the model takes
        return found[0] if found else None
    finally:
        handle.remove()
    return None


def _makers(module: nn.Module, block: nn.Module, inputs: Any, plain: Tensor, same: Tensor) -> Iterator[str]:
    """The parameters that change some of the `same` rows and no others."""
    inner, width = set(map(id, block.parameters())), plain.shape[2]
    for name, p in module.named_parameters():
        if id(p) in inner or p.shape[-1] != width or not 2 <= p.ndim <= 3 or p.numel() > width * int(same.sum()):
            continue
        with _raised(p):
            other = entering_states(module, block, inputs)
        moved = None if other is None else (other != plain).any(2).any(0)
        if moved is not None and bool(moved.any()) and not bool((moved & ~same).any()):
            yield name


@contextmanager
def _raised(parameter: nn.Parameter) -> Iterator[None]:
    kept = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.add_(1)
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
