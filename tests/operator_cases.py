"""What the tests of operators share: every operator with its engines that run on a CPU, and small shapes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from repshift_cli import registry
from repshift_cli.operators.base import flex
from repshift_cli.operators.base.spec import Arranged, Engine, Shape, Spec

SPEC = Spec(
    window=20,
    block=16,
    page=32,
    rank=24,
    clip=5,
    memory=7,
    second_window=6,
    buckets=4,
    top=3,
    side=4,
    stride=4,
    global_tokens=3,
)
"""Settings at which small shapes have windows, blocks, buckets and pages that end within them."""

SHAPES = [
    (batch, heads, kv_heads, tokens)
    for tokens in (1, 2, 37, 64, 130)
    for batch, heads, kv_heads in ((1, 4, 4), (2, 4, 2), (2, 4, 1))
]
NAMES = sorted(registry.parts("operators"))


def operator(name: str) -> Any:
    return registry.load(registry.find("operators", name))


def inputs(batch: int, heads: int, kv_heads: int, tokens: int, d: int = 16, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((batch, h, tokens, d) for h in (heads, kv_heads, kv_heads))
    return tuple(torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)


def engines(module: Any) -> Iterator[tuple[str, Engine]]:
    """The engines that run on a CPU without compiling anything."""
    for name, engine in module.ENGINES.items():
        if engine.unavailable("cpu") is None and engine.ops != flex.COMPILED:
            yield name, engine


def cells(module: Any, shapes: list[tuple[int, int, int, int]] = SHAPES) -> Iterator[tuple[Shape, Spec]]:
    """The shapes and masks that an operator is defined for."""
    for batch, heads, kv_heads, tokens in shapes:
        queries = 1 if module.CLASS == "decode" else tokens
        shape = Shape(batch, heads, kv_heads, tokens, 16, queries)
        for causal in module.CAUSAL:
            spec = replace(SPEC, causal=causal)
            if module.refused(shape, spec) is None:
                yield shape, spec


def arranged(module: Any, shape: Shape, spec: Spec, dtype: torch.dtype = torch.float64) -> Arranged:
    q, k, v = (t.to(dtype) for t in inputs(shape.batch, shape.heads, shape.kv_heads, shape.tokens))
    made: Arranged = module.arrange(q, k, v, spec)
    return made


def run(engine: Engine, made: Arranged, spec: Spec) -> Tensor:
    with torch.no_grad(), engine.session():
        return engine.attend(made.q, made.k, made.v, spec, **made.parameters)


def attend(name: str, q: Tensor, k: Tensor, v: Tensor, spec: Spec, engine: str = "plain") -> Tensor:
    module = operator(name)
    return run(module.ENGINES[engine], module.arrange(q, k, v, spec), spec)


def distance(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())
