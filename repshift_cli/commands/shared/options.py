"""What the commands that run a sweep share: its options, and how a command declares them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_args

import typer

from repshift_cli import registry
from repshift_cli.commands.shared import completion
from repshift_cli.records import Option, UsageError
from repshift_cli.sweep import axes, profiles
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.parsing import own_options

SWEEP = "Sweep"
MEASURE = "Measurement"
OUTPUT = "Output"
COUNTERS = ", ".join(registry.ranked("counters"))

Model = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIST",
        help="Model: an alias (vit_b, deit_s, umt_b ...), hf:NAME (checkpoint folder or hub id), "
        "timm:NAME, or your own package.module:function or FILE.toml (`repshift explain`). (default: vit_b)",
        rich_help_panel=SWEEP,
        autocompletion=completion.model_names,
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIST",
        help="Share of the tokens still there (prefix tokens apart) that stays at each pruning layer: 0.6, a list "
        "0.5,0.7 or a range 0.3:0.9:0.1. The paper's DeiT schedule is --keep 0.8 --layers 1,4,7. (default: 0.6)",
        rich_help_panel=SWEEP,
    ),
]
Remove = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIST",
        help="How many tokens leave at each pruning layer, in the place of --keep: 16, or 30:0 for fewer at each, in "
        "even steps. (default: by --keep)",
        rich_help_panel=SWEEP,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIST",
        help="Pruning layers: blocks counted from 1, the cut is at the block's end. 1,4,7 is one schedule; repeat "
        "the option for several; 1:12 sweeps schedules of one layer, all is one of every block. (default: one at a "
        "quarter of the depth)",
        rich_help_panel=SWEEP,
    ),
]
PerLayer = Annotated[
    bool,
    typer.Option(
        "--per-layer",
        help="A list is one value for each layer of --layers, for --keep, --operation, --distance, --form and --sign: "
        "--keep 0.9,0.7 --layers 3,6. Repeat the option for several.",
        rich_help_panel=SWEEP,
    ),
]
Variant = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIST",
        help="Attention back end (`repshift backends`), or BACKEND+METHOD (`repshift methods`). "
        "(default: vanilla,flash,flash+repshift)",
        rich_help_panel=SWEEP,
        autocompletion=completion.variant_names,
    ),
]
Batch = Annotated[
    list[str] | None,
    typer.Option(
        "--batch",
        "--batch-size",
        metavar="LIST",
        help="Batch size; max is the largest that fits all variants. (default: 1)",
        rich_help_panel=SWEEP,
    ),
]
Dtype = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIST",
        help="fp32, bf16, fp16, or torch's names: float32, bfloat16, half. (default: bf16 on CUDA, fp32 on a CPU)",
        rich_help_panel=SWEEP,
    ),
]
ImageSize = Annotated[
    list[str] | None,
    typer.Option(metavar="LIST", help="Image size in pixels. (default: the model's)", rich_help_panel=SWEEP),
]
Frames = Annotated[
    list[str] | None,
    typer.Option(metavar="LIST", help="Frames of a video. (default: the model's)", rich_help_panel=SWEEP),
]
Tokens = Annotated[
    list[str] | None,
    typer.Option(metavar="LIST", help="Tokens of a sequence (of text). (default: the model's)", rich_help_panel=SWEEP),
]
Removal = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LIST",
        help="How the grid of a CNN gets smaller: line (the rows and columns of the lowest mean score) or token (the "
        "lowest of each row and column). (default: line)",
        rich_help_panel=SWEEP,
    ),
]
Protect = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Tokens that stay beside the model's own protected ones: first:35,last:1. (default: none)",
        rich_help_panel=SWEEP,
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Workload profile: a name from `repshift profiles` or a TOML file; options given here go first.",
        rich_help_panel=SWEEP,
        autocompletion=completion.profile_names,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="Safetensors file or folder for an alias. (default: random weights)", rich_help_panel=SWEEP
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Image or clip as input, or a folder of such; for text encoders a text file with a sentence per line, or "
        "a folder of .txt files. (default: random pixels or tokens)",
        rich_help_panel=SWEEP,
    ),
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1.", rich_help_panel=MEASURE)]
CudaGraph = Annotated[
    bool, typer.Option("--cuda-graph", help="Measure every case as a CUDA graph too.", rich_help_panel=MEASURE)
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Measure every case through torch.compile too.", rich_help_panel=MEASURE)
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="SHARE",
        help="Stop when every speed-up's interval has a half-width below this share. "
        "(default: 0.005 on CUDA, 0.01 on a CPU)",
        rich_help_panel=MEASURE,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="SECONDS",
        help="Seconds of timing per case after which a comparison stops. (default: 5 on CUDA, 6 on a CPU)",
        rich_help_panel=MEASURE,
    ),
]
Rounds = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Exactly this many rounds instead of precision and budget.", rich_help_panel=MEASURE
    ),
]
Warmup = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Exactly this many untimed forwards first. (default: until two windows in a row agree)",
        rich_help_panel=MEASURE,
    ),
]
Seed = Annotated[
    str | None,
    typer.Option(metavar="N", help="Seed of weights, input and order. (default: 0)", rich_help_panel=MEASURE),
]
Threads = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Threads that torch computes with on a CPU. (default: OMP_NUM_THREADS, else one per core, no more than a "
        "container's quota allows)",
        rich_help_panel=MEASURE,
    ),
]
Hbm = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"What measures HBM traffic: auto (the best that passes its calibration here), {COUNTERS}, model "
        "(arithmetic only) or off. See `repshift doctor --counters`. (default: auto)",
        rich_help_panel=MEASURE,
    ),
]
MOST_CASES = 10_000
MaxCases = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Refuse a sweep of more cases than this.", rich_help_panel=MEASURE),
]
TimingOnly = Annotated[
    bool,
    typer.Option(
        "--timing-only",
        help="Measure time alone: no memory, MACs, HBM or fidelity, and attention is not verified.",
        rich_help_panel=MEASURE,
    ),
]
Delay = Annotated[float, typer.Option("--delay", hidden=True)]
"""Share by which every forward takes longer: for the gate's self-test."""
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="List the cases and the impossible ones, measure nothing.", rich_help_panel=MEASURE),
]


def of_a_method(option: Option) -> Any:
    """The command-line option of what a reduction method declares as its own."""
    named = typer.Option(
        metavar="LIST",
        help=option.text,
        rich_help_panel=SWEEP,
        autocompletion=completion.values_of(option),
    )
    return Annotated[list[str] | None, named]


def optional(panel: str, kind: Any, metavar: str, text: str, min: float | None = None) -> Any:
    """An option of a command's own, in its panel of the help text: None where it is not given."""
    return Annotated[kind | None, typer.Option(metavar=metavar, help=text, rich_help_panel=panel, min=min)]


Stray = Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")]
"""Words that belong to no option: a model's name, most likely."""
OPTIONS: dict[str, Any] = {
    "model": Model,
    "keep": Keep,
    "remove": Remove,
    "layers": Layers,
    "per_layer": PerLayer,
    "variant": Variant,
    "batch": Batch,
    "dtype": Dtype,
    "image_size": ImageSize,
    "frames": Frames,
    "tokens": Tokens,
    **{name: of_a_method(option) for name, option in own_options().items()},
    "removal": Removal,
    "protect": Protect,
    "profile": Profile,
    "weights": Weights,
    "data": Data,
    "device": Device,
    "cuda_graph": CudaGraph,
    "compile": Compile,
    "precision": Precision,
    "budget": Budget,
    "rounds": Rounds,
    "warmup": Warmup,
    "seed": Seed,
    "threads": Threads,
    "hbm": Hbm,
}
"""Every option that says what a sweep asks for, in the order of the help text: `profile`, and the names of `axes`."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was typed: the sweep's options by name as far as they were given, and the workload profile."""

    given: Mapping[str, Any]
    profile: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The options that were given."""
        return (*self.given, *["profile"] * (self.profile is not None))

    def sweep(self) -> Axes:
        """The profile's sweep with the options given in their place; UsageError for a value that cannot be."""
        told = profiles.load_profile(self.profile, "bench") if self.profile else {}
        return Axes.from_options(axes.merge(told, self.given))


def sweep_options(
    only: Collection[str] = tuple(OPTIONS),
    without: Collection[str] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declares the options of a sweep, `only` these or `without` those, and `more` of the command's own, on a command,
    which takes them as `asked`.

    Typer reads a command's signature, so the command gets one that has these options in front of its own.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        left_out = {*without, *inspect.signature(command).parameters}
        shared = {name: kind for name, kind in OPTIONS.items() if name in only and name not in left_out}

        def with_sweep(given: Mapping[str, Any], **values: Any) -> None:
            if stray := given.get("stray"):
                raise UsageError(f"{stray[0]!r} belongs to no option; a model is named with --model {stray[0]}")
            plain = {name: value for name, value in given.items() if name != "profile"}
            command(asked=Asked(plain, given.get("profile")), **values)

        return declared({**shared, **more, "stray": Stray}, of=command, instead="asked")(with_sweep)

    return decorate


def declared(
    shared: Mapping[str, Any], of: Callable[..., None] | None = None, instead: str = "given"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declares options (annotated types by name) on a command, which takes those that were given as the dict `given`.

    The signature is that of the command, or of the one it stands for (`of`), with its parameter `instead` replaced.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        told = of or command
        own = [p for p in inspect.signature(told, eval_str=True).parameters.values() if p.name != instead]

        @functools.wraps(told)
        def with_options(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in shared}
            given = {n: v for n, v in chosen.items() if v is not None and not (v is False and _is_flag(shared[n]))}
            command(given=given, **values)

        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*_parameters(shared), *own)]
        with_options.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in keyword}
        return with_options

    return decorate


def _is_flag(kind: Any) -> bool:
    """Whether an option is there or not; one that may be neither said nor denied is not."""
    return get_args(kind)[0] is bool


def _parameters(shared: Mapping[str, Any]) -> Iterator[inspect.Parameter]:
    for name, kind in shared.items():
        default = False if _is_flag(kind) else None
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
