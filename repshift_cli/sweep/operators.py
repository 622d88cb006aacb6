"""What `repshift operators` asks for, and its cells: every operator at every size, in groups that are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from repshift_cli.records import DTYPES, OPERATORS, Case, UsageError, Value
from repshift_cli.records.json_codec import to_plain
from repshift_cli.sweep import parsing
from repshift_cli.sweep.plan import Planned, default_dtype

REFERENCE, DECODE_REFERENCE = "flash", "decode"
"""What the others are compared with: prefill with flash attention, decoding with flash attention of one query."""
HALF = f"{REFERENCE}+oracle"
"""Flash attention on half of the tokens: what pruning would make of the same layer."""
TOKENS = {"cuda": (4096,), "cpu": (1024,)}
HEADS = {"cuda": (16,), "cpu": (4,)}
"""The default sizes of a device."""
INPUTS = ("planted", "gaussian", "captured")
COLD, WARM = "cold", "warm"
CACHES = {"cuda": COLD, "cpu": WARM}
"""What a device's last-level cache holds when an operator is timed by default: nothing of its inputs, or them."""
PREFILL_CLASSES = ("exact", "masked", "approximate", "trained")
DECODE_CLASS = "decode"


@dataclass(frozen=True)
class OperatorAxes:
    """A sweep over operators.

    An empty `operator` means all that run on the device, an empty `tokens` or `heads` the device's default, an empty
    `kv_heads` as many as heads; `causal` None means both, each operator where it is defined.
    """

    operator: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    kv_heads: tuple[int, ...] = ()
    head_dim: tuple[int, ...] = (64,)
    batch: tuple[int, ...] = (1,)
    window: tuple[int, ...] = (256,)
    dtype: tuple[str, ...] = ()
    causal: bool | None = None
    backward: bool = False
    cache: str | None = None
    input: str = "planted"
    model: str | None = None
    layer: int = 1
    data: str | None = None
    weights: str | None = None
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    cuda_graph: bool = False
    compile: bool = False
    hbm: str = "auto"
    budget: float | None = None
    precision: float | None = None
    rounds: int | None = None
    warmup: int | None = None

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> OperatorAxes:
        """Axes from options as typed; UsageError names the option and what to write instead."""
        axes = cls(**{name: _parsed(name, value) for name, value in given.items() if value not in (None, (), [])})
        if axes.input == "captured" and axes.model is None:
            raise UsageError("--input captured takes q, k and v of a model's layer; name the model with --model")
        for name in ("model", "data", "weights"):
            if axes.input != "captured" and getattr(axes, name) is not None:
                raise UsageError(f"--{name} goes with --input captured")
        return axes

    def as_options(self) -> dict[str, Any]:
        """What is set, by name, as plain values: what a run file stores and `from_options` reads."""
        plain: dict[str, Any] = to_plain(dataclasses.asdict(self))
        return {name: value for name, value in plain.items() if value is not None and value not in ([], ())}


def parser_of(name: str) -> Callable[[Any], Any]:
    """What reads the option of that name; ValueError where there is none."""
    if name not in _PARSERS:
        raise ValueError(f"unknown option; {parsing.near(name, _PARSERS)}a profile takes {', '.join(sorted(_PARSERS))}")
    return _PARSERS[name]


def _parsed(name: str, value: Any) -> Any:
    try:
        return _PARSERS[name](value)
    except ValueError as error:
        raise UsageError(f"--{name.replace('_', '-')}: {error}") from error


def _sizes(value: Any) -> tuple[int, ...]:
    """Whole numbers as ever, with k for 1024 and `1k:64k:x2`, which doubles."""
    texts = value if isinstance(value, (list, tuple)) else [value]
    found = [n for text in texts for piece in str(text).split(",") for n in _grown(piece.strip())]
    if any(n < 1 for n in found):
        raise ValueError(f"{min(found)} is too small; it must be at least 1")
    return tuple(dict.fromkeys(found))


def _grown(piece: str) -> Iterator[int]:
    first, *rest = piece.split(":")
    if len(rest) < 2 or not rest[1].startswith("x"):
        yield from parsing.integers(":".join(map(_without_k, piece.split(":"))))
        return
    (last,), (factor,) = parsing.integers(_without_k(rest[0])), parsing.integers(rest[1][1:])
    (n,) = parsing.integers(_without_k(first))
    if factor < 2 or n < 1 or len(rest) > 2:
        raise ValueError(f"{piece!r} is no growing range; write first:last:xFACTOR, like 1k:64k:x2")
    while n <= last:
        yield n
        n *= factor


def _without_k(text: str) -> str:
    return str(int(text[:-1]) * 1024) if text[-1:] in ("k", "K") and text[:-1].isdigit() else text


def _of(names: tuple[str, ...]) -> Callable[[Any], tuple[str, ...]]:
    def parse(value: Any) -> tuple[str, ...]:
        texts = value if isinstance(value, (list, tuple)) else [value]
        words = tuple(dict.fromkeys(w.strip() for text in texts for w in str(text).split(",")))
        for word in words:
            if not word or (names and word not in names):
                raise ValueError(f"unknown value {word!r}; {parsing.near(word, names)}choose from {', '.join(names)}")
        return words

    return parse


def _one_of(names: tuple[str, ...]) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        (word,) = _of(names)(value) if isinstance(value, str) and "," not in value else (None,)
        if word is None:
            raise ValueError(f"takes one of {', '.join(names)}")
        return word

    return parse


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "operator": _of(()),
    **dict.fromkeys(("tokens", "heads", "kv_heads", "head_dim", "batch", "window"), _sizes),
    "dtype": _of(DTYPES),
    **dict.fromkeys(("causal", "backward", "cuda_graph", "compile"), parsing.PARSERS["cuda_graph"]),
    "input": _one_of(INPUTS),
    "cache": _one_of((COLD, WARM)),
    **dict.fromkeys(("model", "data", "weights", "device"), parsing.text_of),
    "layer": parsing.PARSERS["rounds"],
    "seed": parsing.PARSERS["seed"],
    **{name: parsing.PARSERS[name] for name in ("hbm", "budget", "precision", "rounds", "warmup", "threads")},
}


# --- cells ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offered:
    """An operator, or one of its engines, as planning sees it: `refused(case)` says why a cell cannot be."""

    name: str
    operator_class: str
    causal: tuple[bool, ...]
    refused: Callable[[Case], str | None]


def expand(axes: OperatorAxes, device: str, offered: Sequence[Offered]) -> tuple[Planned, ...]:
    """Every cell, group by group; each group has its reference, and flash attention on half of its tokens."""
    sizes = (axes.heads, axes.kv_heads or (None,), axes.head_dim, axes.batch, axes.window)
    planned: list[Planned] = []
    for dtype, (heads, kv_heads, head_dim, batch, window) in product(
        axes.dtype or (default_dtype(device),), product(*sizes)
    ):
        if kv_heads is not None and heads % kv_heads:
            raise UsageError(f"--kv-heads {kv_heads} does not divide --heads {heads}")
        shape: dict[str, Value] = {"heads": heads, "head_dim": head_dim, "window": window}
        shape |= {"kv_heads": kv_heads} if kv_heads is not None and kv_heads != heads else {}
        for tokens in axes.tokens:
            base = _base(axes, device, dtype, batch, tokens)
            planned += [p for phase in _phases(axes, device) for p in _group(axes, base, shape | phase, offered)]
    return tuple(planned)


def _base(axes: OperatorAxes, device: str, dtype: str, batch: int, tokens: int) -> Case:
    return Case(
        model=OPERATORS,
        input=axes.input,
        weights=axes.weights or "none",
        image_size=None,
        frames=None,
        batch=batch,
        dtype=dtype,
        device=device,
        attention="",
        seed=axes.seed,
        length=tokens,
    )


def _phases(axes: OperatorAxes, device: str) -> list[dict[str, Value]]:
    """Prefill without a mask, causal prefill, decoding, as the options that tell them apart."""
    more: dict[str, Value] = {"backward": True} if axes.backward else {}
    if (cache := axes.cache or CACHES[device.partition(":")[0]]) == COLD:
        more["cache"] = cache
    if axes.input == "captured":
        more |= {"captured": f"{axes.model} layer {axes.layer}"} | ({"data": axes.data} if axes.data else {})
    masks = [axes.causal] if axes.causal is not None else [False, True]
    phases: list[dict[str, Value]] = [{"causal": mask} | more for mask in masks]
    return phases + ([{"decode": True} | more] if axes.causal is not False and not axes.backward else [])


def _group(
    axes: OperatorAxes, base: Case, options: Mapping[str, Value], offered: Sequence[Offered]
) -> Iterator[Planned]:
    """The cells that are compared with each other: none where only the reference would be there."""
    decode = bool(options.get("decode"))
    wanted = [o for o in offered if (o.operator_class == DECODE_CLASS) == decode]
    wanted = [o for o in wanted if decode or options["causal"] in o.causal]
    asked = [
        o for o in wanted if not axes.operator or o.name.partition(":")[0] in _names(axes) or o.name in _names(axes)
    ]
    if not asked:
        return
    reference = DECODE_REFERENCE if decode else REFERENCE
    chosen = [o for o in wanted if o.name == reference] + [o for o in asked if o.name != reference]
    executions = ("eager", *["graph"] * axes.cuda_graph, *["compile"] * axes.compile)
    for one, execution in product(chosen, executions):
        case = dataclasses.replace(base, attention=one.name, execution=execution, options=tuple(options.items()))
        tokens = base.length or 0
        yield Planned(case, (tokens,), one.refused(case))
        if one.name == REFERENCE and tokens > 1 and not decode:
            half = dataclasses.replace(case, pruning="oracle", keep=0.5, layers=(1,))
            yield Planned(half, (tokens, -(-tokens // 2)), one.refused(case))


def _names(axes: OperatorAxes) -> set[str]:
    return {name.replace("-", "_") for name in axes.operator}
