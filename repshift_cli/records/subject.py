"""What passes between the rooms in memory only: facts of a model, the built model, one case made ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from repshift_cli.records.case import OPERATIONS, Case, Keep
from repshift_cli.records.run import Measurement


@dataclass(frozen=True)
class Facts:
    """What planning must know of a model before it is built: `tokens` are without the `prefix` ones that always stay.

    `operations` are those whose shift can be scored, the family's default first; `attention` is False where there is no
    attention to choose; `removals` are the ways in which a grid gets smaller, the default first, none where there is no
    grid; `row` is False where no first and last tokens can be named for `--protect`; `along(keep, layers)` gives the
    tokens after each cut where they do not follow from `kept` alone (a CNN's stages change them too).
    """

    depth: int
    tokens: int
    prefix: int
    head_dim: int | None = None
    image_size: int | None = None
    frames: int | None = None
    length: int | None = None
    """The tokens of a sequence, where the inputs are sequences of tokens."""
    weights: str = "random"
    batch: int | None = None
    """The batch that the inputs have where none is asked for, as the user's own function makes them."""
    operations: tuple[str, ...] = OPERATIONS
    attention: bool = True
    removals: tuple[str, ...] = ()
    row: bool = True
    along: Callable[[Keep, tuple[int, ...]], tuple[int, ...]] | None = None
    causal: bool = False
    """Whether a token sees only those before it."""
    mask: str | None = None
    """What attention needs a mask for, or None where it needs none."""
    eager: bool = False
    """Whether its library has materialised attention of its own (`Subject.eager`)."""


@dataclass(frozen=True)
class Offers:
    """What an attention back end accepts: dtypes by device, head dims, the devices where it takes a mask or bias.

    `library` says that it is no function of ours but the model's library's own, which not every model has.
    """

    dtypes: Mapping[str, tuple[str, ...]]
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    mask: tuple[str, ...] = ()
    library: bool = False


@dataclass(frozen=True)
class Site:
    """One block of a model, as modules: where hooks look and where they cut.

    In TransformerLens's names: `block` is given resid_pre (x); `attention`, or whatever mixes the tokens, puts out
    attn_out = SA(LN(x)); `middle` is given resid_mid (x') = x + SA(LN(x)), or its norm where the block norms its sums
    (post-norm); `mlp` puts out mlp_out = MLP(LN(x')); `block` puts out resid_post (x^) = x' + MLP(LN(x')), which is
    what gets cut. A part that a block lacks is None. Where a block changes the shape (a CNN's stage), `origin` puts out
    x in the shape of the output.

    Branches that stand side by side, x^ = x + A(LN(x)) + M(LN(x)), have no state between them: `middle` is the block
    itself then, so that resid_mid is x. `post_norm` blocks norm their sums.
    """

    block: Any
    attention: Any = None
    middle: Any = None
    mlp: Any = None
    origin: Any = None
    post_norm: bool = False

    @property
    def parallel(self) -> bool:
        """Whether both branches read the block's input."""
        return self.middle is self.block

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations whose shift this block lets be scored."""
        offered = {"mlp": self.mlp is not None, "attention": self.attention is not None, "block": True}
        return tuple(name for name in OPERATIONS if offered[name])


@dataclass(frozen=True)
class Subject:
    """A built model with its inputs. `inputs` are what is timed; `evaluation` is what fidelity is taken on.

    Both are a dict (keyword arguments) or a tuple (positional ones) of tensors. `units` is what throughput counts
    ("img", "video", "sample"). `logits(output)` gives (B, classes), or None where the model is no classifier;
    `pooled(output)` gives (B, C).

    Protected tokens stay whatever their score: `prefix` leading ones, `suffix` trailing ones, `central` ones that stand
    in the middle and are put back there (0 or 1), and `marked` ones in each sample, which `roles(inputs)` names: from
    the model's own inputs it gives (B, N), +inf for a protected token, -inf for padding, 0 for one that may go; or None
    where the inputs name none. Leading and trailing ones are counted without the padding then.
    `companions` are the arguments of a block that belong to tokens and are cut with them (masks, rotary embeddings), by
    name, with `spread` (see `kernels.along`); `readers` the modules behind the blocks that take such a thing too (a
    mask to pool by).
    """

    module: Any
    inputs: Any
    evaluation: tuple[Any, ...]
    sites: tuple[Site, ...]
    prefix: int
    tokens: int
    units: str
    logits: Callable[[Any], Any]
    pooled: Callable[[Any], Any]
    warnings: tuple[str, ...] = ()
    suffix: int = 0
    central: int = 0
    marked: int = 0
    roles: Callable[[Any], Any] | None = None
    companions: tuple[str, ...] = ()
    spread: int = 0
    readers: tuple[Any, ...] = ()
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What every variant alike runs within (a scan put in the place of a library's); afterwards all is as it was."""
    eager: Callable[[], AbstractContextManager[Any]] | None = None
    """Within it the model's library computes attention as its models write it out, not by torch's function."""
    biased: bool = False
    """Whether attention adds biases for all pairs of tokens that it makes itself (relative positions), which are cut
    along where it hands them to torch's function."""
    own_prefix: int | None = None
    """The leading tokens for which a companion may have no entry: those of the model, where --protect adds others."""
    details: Any = None
    """What the probes of an attention operator need beside the module."""
    grid: bool = False
    """Whether the sites put out (B, C, H, W), whose lines are cut (a CNN), instead of (B, N, C)."""
    each: Callable[[Any], Any] | None = None
    """`each(output)` gives the logits (B, N, classes) of every token, where the model puts out such."""

    @property
    def protected(self) -> int:
        """How many tokens of each sample always stay."""
        return self.prefix + self.suffix + self.central + self.marked


def call(module: Any, inputs: Any) -> Any:
    """The module on a dict of keyword arguments or a tuple of positional ones."""
    return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


@dataclass(frozen=True)
class Step:
    """One case made ready: within `active()`, `forward()` runs it once on the subject's inputs and returns the output.

    `run(inputs)` does the same on other inputs of the same shapes. A CUDA graph or compiled code hides its operators,
    so its step has an `eager` twin that runs the very ones that were captured; what looks at operators looks at
    `step.operators`. `built` are measurements of making it ready.
    """

    case: Case
    subject: Subject
    active: Callable[[], AbstractContextManager[Any]]
    forward: Callable[[], Any]
    run: Callable[[Any], Any]
    eager: Step | None = None
    built: tuple[Measurement, ...] = ()
    kept: Callable[[], Any] | None = None
    """Which tokens the last forward kept to its end, (B | 1, k) places among those that entered, or None where it
    dropped none; no such function where that cannot be told."""

    @property
    def operators(self) -> Step:
        """The step whose operators can be seen: itself, or the eager twin of a graph."""
        return self.eager or self


@dataclass(frozen=True)
class Progress:
    """A word from the runner while it works: the phase, the share done of this block (0 to 1), the live estimate.

    Of several `workers` that measure at once, `share` is the sum of all theirs.
    """

    phase: str
    share: float
    seconds_left: float | None = None
    estimate: str = ""
    workers: int = 1
