"""The result as a workload profile: TOML that `bench`, `eval`, `gate` and `prune()` take, its evidence in comments."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from repshift_cli.analysis import stats
from repshift_cli.records import Measurement, visible
from repshift_cli.records.tuning import CHOSEN, Confirmed, Tuning

WIDTH = 118
FIXED = ("image_size", "frames", "tokens", "removal", "weights")
"""What of the sweep belongs to the workload, beside model, batch and dtype."""
GATED = ("", "# What `repshift gate` judges by.", "[thresholds]", "latency = 0.01", "macs = 0")


def profile_text(tuning: Tuning, own: Confirmed, fixed: Mapping[str, Any]) -> str:
    """The profile of one schedule; `fixed` are the options of the search's sweep, as plain values."""
    lines = [line for text in _evidence(tuning, own) for line in _comment(text)]
    return "\n".join([*lines, *_keys(tuning, own, fixed), *GATED, ""])


def _keys(tuning: Tuning, own: Confirmed, fixed: Mapping[str, Any]) -> Iterator[str]:
    case = own.case
    yield f"title = {_toml(f'Tuned for {case.model}: {_words(own)}')}"
    yield f"model = {_toml(case.model)}"
    yield f"batch = {case.batch}"
    yield f"dtype = {_toml(case.dtype)}"
    for name in FIXED:
        if fixed.get(name):
            yield f"{name.replace('_', '-')} = {_toml(fixed[name])}"
    if case.protect is not None:
        yield f"protect = {_toml(case.protect)}"
    keep = list(case.keep) if isinstance(case.keep, tuple) else [case.keep]
    yield f"keep = [{_toml(keep)}]"
    yield f"layers = [{_toml(list(case.layers))}]"
    yield "per-layer = true"
    for name, value in case.options:
        yield f"{name.replace('_', '-')} = {_toml([value])}"
    yield f"variant = {_toml([case.attention, case.variant])}"


def _evidence(tuning: Tuning, own: Confirmed) -> Iterator[str]:
    machine, torch = tuning.machine, tuning.machine.packages.get("torch", "?")
    threads = f", {machine.threads} threads" if machine.threads else ""
    where = f"torch {torch}, {machine.device_name}{threads}"
    yield f"Found by `repshift tune` on {tuning.created[:10]}: {tuning.tool}, {where}."
    yield (
        f"Sought: {tuning.goal}. Data: {tuning.data}; {tuning.samples[0]} samples searched ({tuning.trials} trials), "
        f"{tuning.samples[1]} others held out."
    )
    if tuning.status == "interrupted":
        yield "NOT CONFIRMED: the search was interrupted, and these figures are of the samples that it saw."
    yield f"{tuning.loss} on the held-out samples: {figure(own.loss)}; on those searched: {_number(own.calibration)}."
    for other in tuning.confirmed:
        if other.number == own.number and other.role != CHOSEN:
            against = f"; difference {figure(other.versus)}, below 0 this one is better" if other.versus else ""
            yield f"{other.role} ({_words(other)}): {figure(other.loss)}{against}."
    yield f"Speed-up against the unpruned model, measured: {figure(own.speedup)}; latency {figure(own.latency)} ms."
    yield tuning.sentence + "."


def _words(one: Confirmed) -> str:
    protect = [f"protect {one.case.protect}"] * (one.case.protect is not None)
    told = " ".join([*(str(value) for _, value in one.case.options), *protect])
    return f"{one.case.pruning} keep {one.case.rate} at {','.join(map(str, one.case.layers))} {told}".strip()


def figure(measurement: Measurement | None) -> str:
    """`0.0123 (0.011 to 0.014)`, or why there is none."""
    if measurement is None:
        return "not measured"
    found = stats.estimate(measurement)
    if found is None:
        return measurement.reason or "not measured"
    ends = f" ({_number(found.low)} to {_number(found.high)})" if found.low is not None else ""
    return f"{_number(found.value)}{ends}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(visible(text), WIDTH, break_long_words=False)]


def _toml(value: Any) -> str:
    """A text, a number, or a list of them; JSON's way of writing these is TOML's too."""
    return json.dumps(value, ensure_ascii=False)
