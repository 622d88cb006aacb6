"""What passes between the rooms: frozen records, and the version history of the run file's schema.

Standard library only. Everything that a run file holds is a dataclass here (`Run` down to `Measurement`); `Subject`,
`Site`, `Facts` and `Offers` live in memory only and never reach the disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from decimal import Decimal
from math import isqrt
from typing import Any

SCHEMA_VERSION = 3
"""Version of the run file. History: 1 (0.1.0) the first; 2 adds `calibrations` of a run, `provider` and `parts` of a
measurement; 3 adds `protect`, `removal` and `length` of a case, `paths` of a record. Older files are read: what they
lack has its default."""

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


class RepshiftError(Exception):
    """An error with one clear sentence for the user; `exit_code` is what the process exits with."""

    exit_code = 1


class UsageError(RepshiftError):
    """What the user typed or pointed at cannot be used; the sentence says what to do next."""

    exit_code = 2


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


@dataclass(frozen=True)
class Measurement:
    """One quantity of one case; it describes itself, so that a renderer needs to know no metric by name.

    `samples` are the raw values in `unit`, in the order taken, `per_round` of them in each round. No value: no
    `samples`, and `reason` says why; it is never 0 for "not measured".

    `statistic` names how a single figure comes from the samples: `median` (times: of the rounds' medians),
    `hodges-lehmann` (paired ratios, see `stats`), `value` (one exact number). `source` labels its origin:
    `timed`, `counted`, `modelled`, `counter`, `sampled`, `allocator`, `driver`, `compared`. `rank` orders columns, most
    wanted first. `provider` names the instrument where several could have measured it (`cupti`, `ncu`, `gpm`). `parts`
    splits an exact figure, each way on its own: {"operator": {"aten.addmm": 6e6, ...}, "block": {"1": 2e6, ...}}.
    """

    metric: str
    label: str
    unit: str
    better: str
    statistic: str
    rank: int
    source: str
    samples: tuple[float, ...] = ()
    per_round: int = 1
    reason: str | None = None
    provider: str | None = None
    parts: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples and not self.reason:
            raise ValueError(f"{self.metric}: no samples and no reason")


@dataclass(frozen=True)
class Metric:
    """The description that measurements of one quantity share."""

    metric: str
    label: str
    unit: str
    better: str
    statistic: str
    rank: int
    source: str
    provider: str | None = None

    def of(self, *samples: float, per_round: int = 1) -> Measurement:
        """The measurement with these samples."""
        return Measurement(**vars(self), samples=tuple(float(s) for s in samples), per_round=per_round)

    def missing(self, reason: str) -> Measurement:
        """The measurement that could not be taken, with the reason."""
        return Measurement(**vars(self), reason=reason)


@dataclass(frozen=True)
class Calibration:
    """What a counter of HBM traffic made of known bytes, by which it is believed or not.

    `read` and `written` are counted / known (None where only the sum is told: `total`), `doubled` the bytes of twice
    the work over those of once (2 is right), `empty` what was counted where nearly nothing ran, in bytes. `key` names
    the machine, the driver and the versions that it holds for.
    """

    provider: str
    label: str
    passed: bool
    reason: str | None = None
    read: float | None = None
    written: float | None = None
    total: float | None = None
    doubled: float | None = None
    empty: float | None = None
    key: str = ""
    created: str = ""


@dataclass(frozen=True)
class Record:
    """What became of one case: `ok`, `skipped` (impossible here, never tried) or `failed` (tried), with the reason.

    `tokens` are the tokens, prefix included, at the input and after each cut: (197, 119). `kernel` is what attention
    was seen to run on; `paths` how the kernels of pruning ran (`score:triton`); `stopped_by` is `precision` or
    `budget`; `warmup` counts the untimed forwards.
    """

    case: Case
    status: str
    reason: str | None = None
    tokens: tuple[int, ...] = ()
    kernel: str | None = None
    paths: tuple[str, ...] = ()
    rounds: int = 0
    warmup: int = 0
    stopped_by: str | None = None
    measurements: tuple[Measurement, ...] = ()
    warnings: tuple[str, ...] = ()

    def measurement(self, metric: str) -> Measurement | None:
        """The measurement of that name, or None."""
        return next((m for m in self.measurements if m.metric == metric), None)


@dataclass(frozen=True)
class Machine:
    """The computer of a run. A field that could not be read is None and `missing` says why, by the field's name."""

    device: str
    device_name: str
    uuid: str | None = None
    driver: str | None = None
    cuda: str | None = None
    capability: str | None = None
    device_memory: int | None = None
    sm_clock_max: int | None = None
    memory_clock_max: int | None = None
    peak_bandwidth: str | None = None
    cpu: str | None = None
    cores: int | None = None
    threads: int | None = None
    memory: int | None = None
    system: str | None = None
    python: str | None = None
    commit: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run file: where it ran, what was asked, what came out."""

    machine: Machine
    options: dict[str, Any]
    planned: tuple[Case, ...] = ()
    records: tuple[Record, ...] = ()
    warnings: tuple[str, ...] = ()
    created: str = ""
    tool: str = ""
    schema: int = SCHEMA_VERSION
    calibrations: tuple[Calibration, ...] = ()


# --- in memory only -------------------------------------------------------------------------------------------------


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
    """The batch that the inputs have, where the user's own function fixes it."""
    operations: tuple[str, ...] = OPERATIONS
    attention: bool = True
    removals: tuple[str, ...] = ()
    row: bool = True
    along: Callable[[float, tuple[int, ...]], tuple[int, ...]] | None = None
    mask: str | None = None
    """What attention needs a mask for, or None where it needs none."""


@dataclass(frozen=True)
class Offers:
    """What an attention back end accepts: dtypes by device, head dims, the devices where it takes a mask or bias."""

    dtypes: Mapping[str, tuple[str, ...]]
    max_head_dim: int | None = None
    head_dim_multiple: int = 1
    mask: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """One block of a model, as modules: where hooks look and where they cut.

    x is the input of `block`; `attention` puts out SA(LN(x)), or whatever mixes the tokens; the input of `middle` is
    x' = x + SA(LN(x)), or its norm where the block norms its sums (post-norm); `mlp` puts out MLP(LN(x')); the output
    of `block` is x^ = x' + MLP(LN(x')), and it is what gets cut. A part that a block lacks is None. Where a block
    changes the shape (a CNN's stage), `origin` puts out x in the shape of the output.
    """

    block: Any
    attention: Any = None
    middle: Any = None
    mlp: Any = None
    origin: Any = None

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
    the model's own inputs it gives (B, N), +inf for a protected token, -inf for padding, 0 for one that may go.
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
    own_prefix: int | None = None
    """The leading tokens for which a companion may have no entry: those of the model, where --protect adds others."""
    grid: bool = False
    """Whether the sites put out (B, C, H, W), whose lines are cut (a CNN), instead of (B, N, C)."""

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

    @property
    def operators(self) -> Step:
        """The step whose operators can be seen: itself, or the eager twin of a graph."""
        return self.eager or self


@dataclass(frozen=True)
class Progress:
    """A word from the runner while it works: the phase, the share done of this block (0 to 1), the live estimate."""

    phase: str
    share: float
    seconds_left: float | None = None
    estimate: str = ""


# --- arithmetic that every room must do alike -------------------------------------------------------------------------


def dropped_share(keep: float) -> tuple[int, int]:
    """1 - keep as a fraction, in decimal: 0.8 -> (1, 5). In binary floats 10 * (1 - 0.8) is 1.9999999999999996."""
    return (1 - Decimal(str(keep))).as_integer_ratio()


def kept(tokens: int, keep: float) -> int:
    """How many of `tokens` (without prefix) stay at one cut: drop int(n * r), and at least one stays.

    (Choi et al. 2025, arXiv 2508.00367; rounding found by reproducing the paper's MACs.)
    """
    return left(tokens, *dropped_share(keep))


def left(tokens: int, number: int, of: int) -> int:
    """`kept` with its share worked out before: whole numbers only, so that torch.compile can follow it."""
    return max(1, tokens - tokens * number // of)


def lines_left(lines: int, number: int, of: int) -> int:
    """How many rows of a grid (and columns) stay, at least one, so that about 1 - number / of = keep of its tokens do.

    Of n lines round(n (1 - sqrt(keep))) go, in whole numbers, where a half goes to those that stay. At keep 0.72 that
    is 8 of 56 and 4 of 24, as in Choi et al. 2025 (arXiv 2508.00367, Table 6); at other sizes the same share.
    """
    return max(1, (isqrt(4 * lines * lines * (of - number) // of) + 1) // 2)


def protection(text: str | None) -> tuple[int, int]:
    """Leading and trailing tokens of `first:35,last:1`; ValueError says how it is written."""
    counts = {"first": 0, "last": 0}
    for piece in text.split(",") if text else ():
        name, _, number = piece.strip().partition(":")
        if name not in counts or not number.isdecimal():
            raise ValueError(f"{piece.strip()!r} is neither first:N nor last:N; write first:35,last:1")
        counts[name] = int(number)
    return counts["first"], counts["last"]


def tokens_along(facts: Facts, keep: float, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens, protected ones too, at the input and after each cut: (197, 158, 127, 102) for DeiT at 0.8, 1, 4, 7."""
    if facts.along is not None:
        return facts.along(keep, layers)
    counts = [facts.tokens]
    for _ in layers:
        counts.append(kept(counts[-1], keep))
    return tuple(n + facts.prefix for n in counts)
