"""How an operator is asked for: the shape, the settings, what it works on, what it costs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from repshift_cli.records import Offers

ANY_DTYPE = Offers(dtypes={"cuda": ("fp32", "bf16", "fp16"), "cpu": ("fp32", "bf16", "fp16")}, mask=("cpu", "cuda"))
"""What forms written in plain torch take."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one attention call: `queries` of `tokens` (1 in decode), `kv_heads` dividing `heads`."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    head_dim: int
    queries: int

    @property
    def given(self) -> int:
        """Elements of q, k, v and the output, each once: what any exact form must move."""
        per_head = self.batch * self.head_dim
        return per_head * (2 * self.heads * self.queries + 2 * self.kv_heads * self.tokens)


@dataclass(frozen=True)
class Spec:
    """The settings of an operator; each reads those that its definition names, so one spec serves all of a comparison.

    `window` is w of the sliding forms; `block` the side of a block of a block mask, of a page, of a chunk.
    """

    causal: bool = False
    window: int = 256
    sinks: int = 4
    global_tokens: int = 16
    dilation: int = 1
    block: int = 64
    page: int = 256
    stride: int = 8
    tau: float = 0.9
    density: float = 0.25
    rank: int = 256
    buckets: int = 16
    rounds: int = 2
    side: int = 8
    memory: int = 128
    clip: int = 64
    top: int = 16
    budget: float = 0.125
    compression: float = 4.0
    second_window: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Arranged:
    """What an operator works on, made before anything is timed: its tensors, its parameters by name.

    `full()` gives the q, k, v of the full softmax attention that it is held against; a sentence where there is none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    full: Callable[[], tuple[Tensor, Tensor, Tensor]] | str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates, elements moved (read or written once each), and elements held at once beside the inputs."""

    macs: int
    moved: int
    held: int = 0


@dataclass(frozen=True)
class Engine:
    """One way to carry an operator out. `ops` are operators of torch of which one must be seen to run, `kernels` a
    pattern that a device kernel's name must match on CUDA, `session` a context that it runs within.

    `unasked` are the devices on which it runs beside the plain form without being named; `backward` says where
    gradients exist; `capturable` is False where the work depends on the data, so that no CUDA graph can hold it.
    """

    attend: Callable[..., Tensor]
    ops: tuple[str, ...] = ()
    kernels: str = ""
    offers: Offers = ANY_DTYPE
    unavailable: Callable[[str], str | None] = lambda device: None
    session: Callable[[], AbstractContextManager[Any]] = nullcontext
    backward: tuple[str, ...] = ("cpu", "cuda")
    unasked: tuple[str, ...] = ("cuda",)
    refused: Callable[[Shape, Spec], str | None] = lambda shape, spec: None
    cost: Callable[[Shape, Spec], Cost] | None = None
    capturable: bool = True


NEEDS_TRAINING = "has to be trained: its parameters are drawn from the seed here"


def as_given(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """q, k and v as they are; the full attention is that of the same tensors."""
    return Arranged(q, k, v, full=lambda: (q, k, v))


def last_query(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The last query alone, against the whole cache."""
    q = q[:, :, -1:].contiguous()
    return Arranged(q, k, v, full=lambda: (q, k, v))


def drawn(like: Tensor, spec: Spec, name: str, *size: int, scale: float = 1.0) -> Tensor:
    """A parameter drawn from the seed and its name: normal, in the dtype and on the device of `like`.

    Drawn in float64 on the CPU, so that every dtype and device has the same values but for rounding.
    """
    generator = torch.Generator().manual_seed(spec.seed + zlib.crc32(name.encode()))
    return (torch.randn(*size, generator=generator, dtype=torch.float64) * scale).to(like.device, like.dtype)


def takes_all(shape: Shape, spec: Spec) -> str | None:
    """Refuses nothing."""
    return None


def here(device: str) -> str | None:
    """Runs everywhere."""
    return None
