"""Pruning in your own code: `prune(model, ...)` makes a model drop tokens as `repshift bench` measured it.

with repshift_cli.prune(model, keep=0.6, layers=[3], inputs=example):
    output = model(**batch)
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from repshift_cli import registry
from repshift_cli.models.base.subjects import protecting
from repshift_cli.models.discovery.recognised import recognised
from repshift_cli.records import REMOVALS, Case, Facts, Subject, UsageError, Value
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.state import Traced
from repshift_cli.sweep import axes, plan, profiles
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.parsing import own_options

OPTIONS = ("keep", "remove", "layers", "per_layer", "removal", "protect")
"""What of a profile says how to prune, beside the methods' own options."""
METHOD = "repshift"

_blocks_in_use: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Pruned:
    """A model that drops tokens, until `remove()` or the end of a `with`. It is the model itself that is changed.

    `keep`, `layers` and `method` say how; `warnings` is what was noticed of the model.
    """

    def __init__(self, subject: Subject, case: Case) -> None:
        self.keep, self.layers, self.method = case.keep, case.layers, case.pruning
        self.warnings = subject.warnings
        self._blocks = [site.block for site in subject.sites]
        self._stack = ExitStack()
        self._dropped = self._stack.enter_context(pruned(subject, _method(case.pruning), case, noting=True))
        _blocks_in_use.update(self._blocks)
        _forget_compiled_code()

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """The places that the last forward kept, one tensor (batch, tokens) for each layer of `layers`.

        Places count the tokens that entered the first block, class token and the like included; in a CNN they count
        those of the stage's own grid, row by row. One row stands for all samples where the method chooses alike in all.
        A merged token has the place of the one that it was merged into, and one that a method appended has -1. Empty
        before the first forward, and at keep 1, where nothing is dropped.
        """
        return self._dropped.kept

    @property
    def traced(self) -> tuple[Traced, ...]:
        """What became of the tokens at each layer of the last forward: `places` as in `kept`, and `ends` (batch,
        tokens), which says for each token that entered the first block in which row it is now, its own or the one that
        it was merged into; -1 where it was dropped. Of a CNN's grid nothing."""
        return self._dropped.traced

    def remove(self) -> None:
        """Make the model whole again; once is enough, and twice does no harm."""
        if self._blocks:
            self._stack.close()
            _blocks_in_use.difference_update(self._blocks)
            self._blocks = []
            _forget_compiled_code()

    def __enter__(self) -> Pruned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def prune(
    model: nn.Module,
    *,
    inputs: Mapping[str, Any] | tuple[Any, ...] | Tensor,
    keep: float | Sequence[float] | None = None,
    remove: str | int | None = None,
    layers: Sequence[int] | int | str | None = None,
    method: str | None = None,
    profile: str | Path | None = None,
    protect: str | None = None,
    adapter: Mapping[str, str | int] | None = None,
    **options: Value | Sequence[str],
) -> Pruned:
    """Have `model` drop tokens at the ends of these blocks, from now until the handle's `remove()` or its `with` ends.

    `inputs` is one example, keyword arguments or a tuple, for finding the blocks; afterwards any batch and size will
    do. `keep` is the share of the tokens that stays at each of `layers`, which count blocks from 1 (default: 0.6, and
    one layer at a quarter of the depth); "all" is all blocks. A list of shares has one for each layer, and so may some
    of the options: `keep=[0.9, 0.7], layers=[3, 6], sign=["highest", "lowest"]`. `remove` stands in the place of
    `keep`: how many tokens leave at each layer, 16, or "30:0" for fewer at each. `method` is a name of `repshift
    methods` (default: repshift); `options` are its own, like form="update". `profile` is a workload profile, by name or
    TOML file, that says the same; what is given beside it goes first. `protect` ("first:3,last:1") names tokens that
    stay beside the model's own protected ones, `adapter` the paths of blocks that cannot be found, as for `repshift
    explain`.

    `repshift_cli.UsageError` says what cannot be and what to do instead. Compile a model (torch.compile) while it is
    pruned, or leave it to torch: code that was compiled before is forgotten, here and at `remove()`.
    """
    given = {"keep": keep, "remove": remove, "layers": _schedule(layers), "protect": protect, **options}
    given |= _per_layer({"keep": keep, **options})
    own = (*own_options(), "removal")
    if unknown := set(options) - set(own):
        raise UsageError(f"prune() has no option {sorted(unknown)[0]!r}; methods take {', '.join(own)}")
    module: nn.Module = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if any(part in _blocks_in_use for part in module.modules()):
        raise UsageError("this model is pruned already: call remove() on that handle first, or leave its `with`")
    example = (inputs,) if isinstance(inputs, Tensor) else inputs if isinstance(inputs, tuple) else dict(inputs)
    subject = recognised(module, example, adapter)
    case = _case(subject, type(module).__name__, method, {k: v for k, v in given.items() if v is not None}, profile)
    return Pruned(protecting(subject, case.protect, case.model), case)


def _schedule(layers: Sequence[int] | int | str | None) -> list[list[int]] | str | None:
    if isinstance(layers, str):
        return layers
    return None if layers is None else [[layers] if isinstance(layers, int) else list(layers)]


def _per_layer(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given as a list, a value for each layer, and that it was; nothing where nothing is."""
    lists = {name: [list(value)] for name, value in given.items() if isinstance(value, (list, tuple))}
    texts = [name for name, value in given.items() if isinstance(value, str) and "," in value]
    return {**lists, "per_layer": True} if lists or texts else {}


def _case(
    subject: Subject, name: str, method: str | None, given: Mapping[str, Any], profile: str | Path | None
) -> Case:
    """The one case that the options and the profile name, checked as a sweep is."""
    told = profiles.load_profile(str(profile), "bench") if profile is not None else {}
    chosen = {key: value for key, value in axes.merge(told, given).items() if key in (*OPTIONS, *own_options())}
    methods = [method] if method is not None else _methods(told, profile)
    sweep = Axes.from_options({**chosen, "model": name, "variant": [f"none+{m}" for m in methods]})
    offered = {m: registry.options_of(registry.find("reduction", m)) for m in methods}
    taken = {option for options in offered.values() for option in options}
    if idle := given.keys() & own_options().keys() - taken:
        raise UsageError(f"{min(idle)} applies to methods that take it (`repshift methods`), not to {methods[0]}")
    traits = {m: plan.traits_of(registry.find("reduction", m)) for m in methods}
    planned = plan.expand(sweep, "cpu", lambda *_: _facts(subject), {"none": plan.Backend(None)}, offered, traits)
    cases = [p for p in planned if p.case.layers]
    if len(cases) != 1:
        said = ", ".join(f"{key} {value}" for key, value in chosen.items())
        raise UsageError(
            f"{len(cases)} ways to prune are named ({said}); one model is pruned in one: give keep, layers"
        )
    if cases[0].refused is not None:
        raise UsageError(cases[0].refused)
    return cases[0].case


def _methods(told: Mapping[str, Any], profile: str | Path | None) -> list[str]:
    """The methods of a profile's variants; repshift where it names no variant."""
    if "variant" not in told:
        return [METHOD]
    variants = Axes.from_options({"variant": told["variant"]}).variant
    found = list(dict.fromkeys(v.partition("+")[2] for v in variants if "+" in v))
    if not found:
        raise UsageError(f"no variant of the profile {profile} prunes; give method=, like method='repshift'")
    return found


def _facts(subject: Subject) -> Facts:
    return Facts(
        depth=len(subject.sites),
        tokens=subject.tokens,
        prefix=subject.protected,
        weights="own",
        operations=subject.sites[0].operations,
        attention=False,
        removals=REMOVALS if subject.grid else (),
        row=not subject.marked and not subject.central,
        along=(lambda keep, layers: ()) if subject.grid else None,
    )


def _method(name: str) -> Any:
    return registry.load(registry.find("reduction", name))


def _forget_compiled_code() -> None:
    """torch.compile does not look whether hooks have changed since it compiled: what it has is of the other model."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
