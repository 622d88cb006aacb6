"""The plain answer of a run in one sentence, and the lines of Python that apply the row that pays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from repshift_cli.analysis import answer as answers
from repshift_cli.analysis.answer import Answer, Control, Gain, answer
from repshift_cli.analysis.stats import Estimate, estimate
from repshift_cli.records import Case, Measurement, Run
from repshift_cli.records.labels import labels, words
from repshift_cli.renderers.sheets.cells import metric_cell

LINE = 80
"""Columns that a line of code may have."""
BATCH = 32
"""What to try where the batch is smaller."""


def closing(run: Run) -> tuple[str, str]:
    """The lines of Python that apply the row that pays (or none), and the sentence; both empty where there is none."""
    found = answer(run)
    if found is None:
        return "", ""
    code = code_of(found.best.case) if found.verdict == answers.PAYS and found.best else ""
    return code, sentence(found, [record.case for record in run.records])


def sentence(found: Answer, cases: Sequence[Case]) -> str:
    """The answer in words, its rows called as they are told apart among `cases`."""
    told = labels(cases)
    return f"{_said(found, told)}. Next: {'; '.join(_steps(found))}."


def code_of(case: Case) -> str:
    """Python that makes `model` drop tokens as this row did; `example` is one example of its inputs."""
    rate: dict[str, Any] = {"keep": case.keep} if case.remove is None else {"remove": case.remove}
    given = {**rate, "layers": list(case.layers), "method": case.pruning}
    given |= dict(case.options) | {n: v for n in ("removal", "protect") if (v := getattr(case, n)) is not None}
    pieces = [f"{name}={_literal(value)}" for name, value in given.items() if name.isidentifier()]
    call = _called("handle = prune(", ["model", "inputs=example", *pieces])
    return "\n".join(("from repshift_cli import prune", "", *call))


def _literal(value: Any) -> str:
    """The value in Python, texts in double quotes whatever stands in them."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _called(head: str, pieces: Sequence[str]) -> Iterable[str]:
    """A call on one line, or with its arguments on as many as they need."""
    whole = f"{head}{', '.join(pieces)})"
    if len(whole) <= LINE:
        return [whole]
    lines = ["   "]
    for piece in pieces:
        if len(lines[-1]) + len(piece) + 2 > LINE:
            lines.append("   ")
        lines[-1] += f" {piece},"
    return [head, *lines, ")"]


# --- what was found ---------------------------------------------------------------------------------------------------


def _said(found: Answer, told: dict[Case, str]) -> str:
    best = found.best
    if best is None:
        return {
            answers.UNPRUNED: "Nothing was pruned here",
            answers.UNJUDGED: "No verdict: " + WHY_UNJUDGED.get(found.next[0], ""),
        }[found.verdict]
    row, where = _named(best.case, told), f" in {found.paying} of {found.settings} settings" * (found.settings > 1)
    if found.verdict == answers.PAYS:
        least = found.mildest
        mild = f"; of least loss among what pays: {_named(least.case, told)} {_is(least)}" if least else ""
        row = f"the best of {found.rows} rows, {row}," if found.rows > 1 else row  # the choice flatters its figure
        return f"Pruning pays{where}: {row} {_is(best)}{_on_controls(found.controls)}{mild}"
    if found.verdict == answers.SLOWER:
        return f"Pruning is slower here: {row} runs at {_ratio(best.speedup)} the speed of {_over(best)}"
    setting = f"in any of {found.settings} settings" if found.settings > 1 else f"at batch {best.case.batch}"
    luck = "" if best.speedup.spans(1) else f", as the luckiest of {found.rows} rows may by chance"
    return f"Nothing was shown to pay {setting}: {row} runs at {_ratio(best.speedup)} the speed of {_over(best)}{luck}"


def _is(gain: Gain) -> str:
    return f"is {_ratio(gain.speedup)} as fast as {_over(gain)}, {_loss(gain)}"


def _named(case: Case, told: dict[Case, str]) -> str:
    """The row by what tells it apart, and where it prunes in any case."""
    name = told[case]
    return " ".join([name, *(word for word in words(case, ("keep", "layers")) if word not in name)])


def _ratio(figure: Estimate) -> str:
    low, high = figure.low or 0.0, figure.high or 0.0
    decimals = 2 if figure.spans(1) or min(abs(low - 1), abs(high - 1)) >= 0.005 else 4
    return f"{figure.value:.{decimals}f}x ({low:.{decimals}f}–{high:.{decimals}f})"


def _over(gain: Gain) -> str:
    name = "the unpruned model" if gain.over == "unpruned" else f"unpruned {gain.over}"
    return f"{name}, the better of {gain.among} unpruned variants" if gain.among > 1 else name


def _loss(gain: Gain) -> str:
    if gain.case.weights == "random":
        return "at a loss that random weights cannot show"
    if not gain.loss:
        return "at a loss that was not measured"
    inputs = f" over {gain.inputs} input{'s' * (gain.inputs > 1)}" if gain.inputs else ""
    return f"at {' and '.join(map(_figure, gain.loss))}{inputs}"


def _figure(m: Measurement) -> str:
    cell = metric_cell(m, estimate(m), 1.0)
    unit = "" if m.unit in ("", "%") else f" {m.unit}"
    return f"{m.label} {cell.text}{'%' * (m.unit == '%')}{unit}" + f" {cell.detail}" * bool(cell.detail)


def _on_controls(controls: Sequence[Control]) -> str:
    """What the methods that choose without looking lose at the same places."""
    said = [f"{c.method} dropping {'does as well' if c.as_well else 'loses more'}: {_figure(c.loss)}" for c in controls]
    return f" ({'; '.join(said)})" if said else ""


# --- what to do next --------------------------------------------------------------------------------------------------

WHY_UNJUDGED = {
    answers.QUIET: "the machine was busy",
    answers.ROUNDS: "too few rounds for an interval",
    answers.BASELINE: "no unpruned variant to compare with was measured",
}


def _steps(found: Answer) -> list[str]:
    batch = found.best.case.batch if found.best else 1
    larger = f"--batch {BATCH if batch < BATCH else 4 * batch}"
    method = f"{found.best.case.attention}+random" if found.best else ""
    texts = {
        answers.QUIET: "end other programs and measure again",
        answers.ROUNDS: "--rounds 6 or more, or none to let precision decide",
        answers.BASELINE: "add flash to --variant",
        answers.METHOD: "add flash+repshift to --variant",
        answers.WEIGHTS: "measure the loss with trained weights (--weights, or --model hf:NAME)",
        answers.CONTROL: f"add {method} to --variant, which shows whether the score is what helps",
        answers.LAYERS: "the score is not what helps here; try other --layers, or take the control",
        answers.HOST: f"the host sets the pace; try {larger} or --cuda-graph",
        answers.GROW: f"try {larger}, more tokens, or a lower --keep",
        answers.BUDGET: "a longer --budget narrows the interval",
        answers.APPLY: "the lines above apply it in your own code",
    }
    return [texts[step] for step in found.next]
