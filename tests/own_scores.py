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
MODELS = ("dinov2", "minilm", "smollm2")
FRESH = ("fresh-dinov2", "fresh-minilm")
"""Candidates as they are on samples that no run before has seen."""
PRIMARY = {"dinov2": "probe", "minilm": "cosine", "smollm2": "kl"}
"""The measure that decides, named before anything was run."""
DIGITS = {"probe": 1, "knn": 1, "cosine": 3, "kl": 3, "loss": 2}
SCALE = {"probe": 100.0, "knn": 100.0}
FALLING = ("kl", "loss")
"""Measures of which less is better."""
SHIPPED = {"merge greedy": "farthest_merge", "peaks place": "novelty"}
"""What candidates are called elsewhere."""
TOOLS_OWN = (
    "random", "stride", "repshift", "lowest", "norm", "tome", "cls_attention", "column_attention", "fastv", "divprune",
)  # fmt: skip


@cache
def result(study: str) -> dict[str, Any]:
    """What was kept of a run: of one of MODELS or of FRESH."""
    return json.loads((FOLDER / f"own-scores-{study}.json").read_text())


def primary(study: str) -> str:
    """The measure that decides."""
    return PRIMARY[study.removeprefix("fresh-")]


def tried(study: str) -> list[str]:
    """The candidates that were run on held-out data."""
    return [name for name in result(study)["methods"] if name not in TOOLS_OWN]


def confidence(study: str) -> float:
    """Of one interval, so that all of a run's together are 95%: two controls for each candidate (Bonferroni)."""
    return 1 - 0.05 / (len(CONTROLS) * len(tried(study)))


def gain(study: str, name: str, control: str, measure: str | None = None) -> stats.Estimate:
    """How much better than a control, with the corrected interval of the paired mean over the samples."""
    measure = measure or primary(study)
    methods = result(study)["methods"]
    ours, theirs = (methods[one][measure]["samples"] for one in (name, control))
    scale = SCALE.get(measure, 1.0) * (-1 if measure in FALLING else 1)
    values = [scale * (a - b) for a, b in zip(ours, theirs, strict=True)]
    found = stats.mean_interval(values)
    freedom = min(len(values) - 1, 1000)
    assert found.low is not None
    half = (found.value - found.low) * stats.student_t(freedom, confidence(study)) / stats.student_t(freedom)
    return stats.Estimate(found.value, found.value - half, found.value + half)


def beats_both(study: str, name: str) -> bool:
    """Whether it is shown better than random dropping and than the printed shift."""
    return all((gain(study, name, control).low or 0.0) > 0 for control in CONTROLS)


def table(study: str) -> Callable[[], str]:
    """Methods down; the measures, both differences and the time against the oracle across."""
    return lambda: "\n".join(_lines(study))


def _lines(study: str) -> list[str]:
    methods = result(study)["methods"]
    measures = [key for key in DIGITS if key in methods["random"]]
    heads = ["method", *measures, "over random", "over repshift", "time / oracle"]
    order = sorted(methods, key=lambda name: gain(study, name, "random").value, reverse=True)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in order:
        shown = SHIPPED.get(name, name)
        shown = f"**{shown}**" if name in tried(study) and beats_both(study, name) else shown
        cells = [_mean(methods[name], measure) for measure in measures]
        cells += [_gain(study, name, control) for control in CONTROLS]
        lines.append(f"| {' | '.join((shown, *cells, _time(methods[name])))} |")
    return lines


def _mean(method: dict[str, Any], measure: str) -> str:
    values = method[measure]["samples"]
    return f"{SCALE.get(measure, 1.0) * sum(values) / len(values):.{DIGITS[measure]}f}"


def _gain(study: str, name: str, control: str) -> str:
    if name == control:
        return "–"
    found, digits = gain(study, name, control), DIGITS[primary(study)]
    low, high = found.low or 0.0, found.high or 0.0
    return f"{found.value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _time(method: dict[str, Any]) -> str:
    ratios = method["time_vs_oracle"]
    if not ratios:
        return "–"
    found = stats.hodges_lehmann(ratios)
    return f"{found.value:.2f}" + (f" ({found.low:.2f}–{found.high:.2f})" if found.low and found.high else "")
