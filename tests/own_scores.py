"""The tables of the scores of our own, from what tests/real/scores.py has measured on data not used for any choice."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from repshift_cli.analysis import stats

FOLDER = Path(__file__).parent.parent / "profiles" / "baselines" / "cpu" / "accuracy"
CONTROLS = ("random", "repshift")
MODELS = ("dinov2", "minilm")
PRIMARY = {"dinov2": "probe", "minilm": "cosine"}
"""The measure that decides, named before anything was run."""
DIGITS = {"probe": 1, "knn": 1, "cosine": 3}
SCALE = {"probe": 100.0, "knn": 100.0}
TOOLS_OWN = (
    "random", "stride", "repshift", "lowest", "norm", "tome", "cls_attention", "column_attention", "divprune",
)  # fmt: skip


@cache
def result(model: str) -> dict[str, Any]:
    """What was kept of a model's run."""
    return json.loads((FOLDER / f"own-scores-{model}.json").read_text())


def tried(model: str) -> list[str]:
    """The candidates that were run on held-out data."""
    return [name for name in result(model)["methods"] if name not in TOOLS_OWN]


def confidence(model: str) -> float:
    """Of one interval, so that all of a model's together are 95%: two controls for each candidate (Bonferroni)."""
    return 1 - 0.05 / (len(CONTROLS) * len(tried(model)))


def gain(model: str, name: str, control: str, measure: str | None = None) -> stats.Estimate:
    """How much better than a control, with the corrected interval of the paired mean over the samples."""
    measure = measure or PRIMARY[model]
    methods = result(model)["methods"]
    ours, theirs = (methods[one][measure]["samples"] for one in (name, control))
    values = [SCALE.get(measure, 1.0) * (a - b) for a, b in zip(ours, theirs, strict=True)]
    found = stats.mean_interval(values)
    freedom = min(len(values) - 1, 1000)
    assert found.low is not None
    half = (found.value - found.low) * stats.student_t(freedom, confidence(model)) / stats.student_t(freedom)
    return stats.Estimate(found.value, found.value - half, found.value + half)


def beats_both(model: str, name: str) -> bool:
    """Whether it is shown better than random dropping and than the printed shift."""
    return all((gain(model, name, control).low or 0.0) > 0 for control in CONTROLS)


def table(model: str) -> Callable[[], str]:
    """Methods down; the measures, both differences and the time against the oracle across."""
    return lambda: "\n".join(_lines(model))


def _lines(model: str) -> list[str]:
    methods = result(model)["methods"]
    measures = [key for key in DIGITS if key in methods["random"]]
    heads = ["method", *measures, "over random", "over repshift", "time / oracle"]
    order = sorted(methods, key=lambda name: gain(model, name, "random").value, reverse=True)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in order:
        shown = f"**{name}**" if name in tried(model) and beats_both(model, name) else name
        cells = [_mean(methods[name], measure) for measure in measures]
        cells += [_gain(model, name, control) for control in CONTROLS]
        lines.append(f"| {' | '.join((shown, *cells, _time(methods[name])))} |")
    return lines


def _mean(method: dict[str, Any], measure: str) -> str:
    values = method[measure]["samples"]
    return f"{SCALE.get(measure, 1.0) * sum(values) / len(values):.{DIGITS[measure]}f}"


def _gain(model: str, name: str, control: str) -> str:
    if name == control:
        return "–"
    found, digits = gain(model, name, control), DIGITS[PRIMARY[model]]
    low, high = found.low or 0.0, found.high or 0.0
    return f"{found.value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _time(method: dict[str, Any]) -> str:
    ratios = method["time_vs_oracle"]
    if not ratios:
        return "–"
    found = stats.hodges_lehmann(ratios)
    return f"{found.value:.2f}" + (f" ({found.low:.2f}–{found.high:.2f})" if found.low and found.high else "")
