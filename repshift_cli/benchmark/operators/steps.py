"""An operator's case as a step: its inputs made once per group, its tensors arranged before anything is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli import registry
from repshift_cli.benchmark.operators.choice import offered, parted, shape_of, spec_of
from repshift_cli.operators.base.inputs import CAPTURED, PLANTED, capturing, gaussian, planted
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.spec import Arranged, Engine, Spec
from repshift_cli.records import Case, Step, Subject, UsageError, call
from repshift_cli.sweep.operators import HEADS, TOKENS, OperatorAxes, expand
from repshift_cli.sweep.plan import Planned

MADE_ANEW = "its forward was run anew before each turn, untimed: the graphs of all would not fit into memory together"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Attention(nn.Module):
    """An engine with its settings and parameters: q, k, v in, the output out."""

    def __init__(self, engine: Engine, spec: Spec, made: Arranged) -> None:
        super().__init__()
        self._attend, self._spec, self._names = engine.attend, spec, tuple(made.parameters)
        for name, value in made.parameters.items():
            self.register_buffer(f"of_{name}", value)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d), or what `arrange` makes of them -> (B, H, Nq, d)."""
        return self._attend(q, k, v, self._spec, **{name: getattr(self, f"of_{name}") for name in self._names})


@dataclass(frozen=True)
class Ready:
    """What a step's probes need beside the step: the operator, its settings, its tensors and the group's."""

    module: Any
    engine: Engine
    spec: Spec
    made: Arranged


def subject_of(case: Case) -> Subject:
    """The inputs that all operators of a group share, in the case's dtype on its device."""
    tensors = tuple(t.to(case.device, DTYPES[case.dtype]) for t in _inputs(case))
    return Subject(
        module=nn.Module(),
        inputs=tensors,
        evaluation=(),
        sites=(),
        prefix=0,
        tokens=int(case.length or 0),
        units="call",
        logits=lambda _: None,
        pooled=lambda output: output,
    )


def _inputs(case: Case) -> tuple[Tensor, ...]:
    shape = replace(shape_of(case), queries=int(case.length or 0))
    if case.input == CAPTURED:
        return tuple(t[:, :, : shape.tokens].contiguous() for t in captured(case))
    return (planted if case.input == PLANTED else gaussian)(shape, case.seed)


def ready(case: Case, subject: Subject) -> Ready:
    """The operator of a case on its group's inputs."""
    module, engine = parted(case)
    q, k, v = subject.inputs
    if case.keep != 1:  # flash attention on the tokens that the oracle keeps
        kept = -(-q.shape[2] // 2)
        q, k, v = (t[:, :, :kept].contiguous() for t in (q, k, v))
    spec = spec_of(case)
    return Ready(module, engine, spec, module.arrange(q, k, v, spec))


def step_of(case: Case, subject: Subject, held: bool = True) -> Step:
    """The case made ready: a forward, or the backward pass of one forward that was run before; one that is not `held`
    runs that forward whenever it becomes active, and keeps nothing between its turns."""
    one = ready(case, subject)
    attention = Attention(one.engine, one.spec, one.made)
    inputs = (one.made.q, one.made.k, one.made.v)
    own = replace(subject, module=attention, inputs=inputs, warnings=one.made.notes, details=one)
    run = lambda given: call(attention, given)  # noqa: E731
    if not case.option("backward"):
        return Step(case, own, _forward_context(one.engine), lambda: call(attention, inputs), run)
    backward = Backward(attention, inputs, one.engine, held)
    words = () if held else (MADE_ANEW,)
    return Step(case, replace(own, warnings=(*own.warnings, *words)), backward.active, backward, run)


def _forward_context(engine: Engine) -> Callable[[], Any]:
    @contextmanager
    def active() -> Iterator[None]:
        with torch.inference_mode(), engine.session():
            yield

    return active


class Backward:
    """Gradients of q, k and v from a gradient of ones, by the graph of one forward.

    `held`, the forward is run once and its graph stays; else it is run on each entry of `active`, outside what is
    timed, and its graph goes with the exit.
    """

    def __init__(self, attention: Attention, inputs: Sequence[Tensor], engine: Engine, held: bool) -> None:
        self._attention, self._engine, self._held = attention, engine, held
        self._leaves = [t.detach().requires_grad_() for t in inputs]
        self._graph: tuple[Tensor, Tensor] | None = None
        if held:
            with self.active():
                pass

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it there is a graph."""
        with torch.enable_grad(), self._engine.session():
            if self._graph is None:
                out = self._attention(*self._leaves)
                self._graph = out, torch.ones_like(out)
            try:
                yield
            finally:
                if not self._held:
                    self._graph = None

    def __call__(self) -> Any:
        """One backward pass; the graph is kept for the next."""
        assert self._graph is not None
        out, above = self._graph
        return torch.autograd.grad(out, self._leaves, above, retain_graph=True, allow_unused=True)


def whole(step: Step) -> Any:
    """The step with its forward, whatever is timed of it."""
    if not step.case.option("backward"):
        return step.forward()
    leaves = [t.detach().requires_grad_() for t in step.subject.inputs]
    out = step.subject.module(*leaves)
    torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)
    return out


def captured(case: Case) -> tuple[Tensor, ...]:
    """q, k and v of one attention layer of a model on its own input, on the CPU; UsageError where it has none."""
    name, _, layer = str(case.option("captured")).rpartition(" layer ")
    data = case.option("data")
    found = capture(name, int(layer), None if case.weights == "none" else case.weights, data, case.batch, case.seed)
    missing = int(case.length or 0) - found[0].shape[2]
    if missing > 0:
        raise UsageError(f"{name} gives {found[0].shape[2]} tokens; --tokens {case.length} is more than that")
    return found


@lru_cache(maxsize=1)
def capture(name: str, layer: int, weights: str | None, data: str | None, batch: int, seed: int) -> tuple[Tensor, ...]:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) of that layer, counted from 1."""
    from repshift_cli.benchmark.builder import facts_of

    facts = facts_of(weights, name, None, None, data=data)
    model = Case(
        model=name,
        input=data or "random",
        weights=facts.weights,
        image_size=facts.image_size,
        frames=facts.frames,
        batch=facts.batch or batch,
        dtype="fp32",
        device="cpu",
        attention="flash",
        seed=seed,
        length=facts.length,
    )
    subject: Subject = registry.load(registry.resolve_model(name)).build(model)
    with torch.inference_mode(), subject.context(), capturing(layer) as taken:
        call(subject.module, subject.inputs)
    if not taken:
        raise UsageError(f"{name} has no attention call number {layer}; name a smaller --layer")
    return taken[0]


def operator_cells(axes: OperatorAxes, device: str) -> tuple[Planned, ...]:
    """The cells of what was asked for, at the device's sizes, or at those of the captured tensors."""
    found = offered(axes.operator, device)
    kind = device.partition(":")[0]
    if axes.input == CAPTURED:
        axes = _with_captured_sizes(axes)
    axes = replace(axes, tokens=axes.tokens or TOKENS[kind], heads=axes.heads or HEADS[kind])
    planned = expand(axes, device, found)
    if not planned:
        raise UsageError("no cell comes of this: the operators named are not defined for that mask; leave it out")
    return planned


def _with_captured_sizes(axes: OperatorAxes) -> OperatorAxes:
    """The axes with the sizes that the captured tensors have; tokens may be fewer."""
    assert axes.model is not None
    q, k, _ = capture(axes.model, axes.layer, axes.weights, axes.data, axes.batch[0], axes.seed)
    batch, heads, tokens, head_dim = q.shape
    return replace(
        axes,
        tokens=axes.tokens or (tokens,),
        heads=(heads,),
        kv_heads=(k.shape[1],),
        head_dim=(head_dim,),
        batch=(batch,),
    )


def expected(one: Ready, tensors: Sequence[Tensor]) -> Tensor:
    """The operator's own definition in float64 on the very tensors that it is given."""
    wide = [t.double() for t in tensors]
    parameters = {n: p.double() if p.is_floating_point() else p for n, p in one.made.parameters.items()}
    out: Tensor = one.module.reference(*wide, one.spec, **parameters)
    return out


def full_of(one: Ready) -> Tensor | str:
    """Full softmax attention in float64, or why there is none to be held against."""
    if isinstance(one.made.full, str):
        return one.made.full
    q, k, v = (t.double() for t in one.made.full())
    return full(q, k, v, one.spec.causal)
