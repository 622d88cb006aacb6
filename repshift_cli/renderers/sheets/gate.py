"""A gate's outcome: the sheet, the document, GitHub's annotations."""

from __future__ import annotations

from collections.abc import Iterable

from repshift_cli.analysis.comparison import BETTER, WORSE, Finding
from repshift_cli.gate.verdict import FAIL, INCONCLUSIVE, PASS, Outcome, told
from repshift_cli.records import printable
from repshift_cli.renderers import Document
from repshift_cli.renderers.sheets.cells import Sheet
from repshift_cli.renderers.sheets.comparison import sheet

VERDICTS = (FAIL, INCONCLUSIVE)


def document_of(outcome: Outcome, everything: bool = True) -> Document:
    """The outcome as a document, with what `outcome_sheet` shows."""
    said = {"verdict": outcome.verdict, "exit_code": outcome.exit_code, "sentence": outcome.sentence}
    return Document(
        "gate",
        outcome,
        lambda: [outcome_sheet(outcome, everything)],
        title=f"repshift gate: {outcome.verdict}",
        sentence=outcome.sentence,
        summary=said,
        whole="--markdown",
    )


def outcome_sheet(outcome: Outcome, everything: bool = False) -> Sheet:
    """What gates, the bad first, and what informs and changed; `everything` has the rest too."""
    order = {FAIL: 0, INCONCLUSIVE: 1}
    alike = [] if everything else [f for f in outcome.judged if f.metric == "output" and f.verdict == PASS]
    shown = sorted(
        (f for f in outcome.findings if everything or (f in outcome.judged and f not in alike) or _speaks(f)),
        key=lambda f: (order.get(f.verdict, 2), -f.effect),
    )
    hidden = len(outcome.findings) - len(shown) - len(alike)
    once = [
        f"{outcome.names[one.case]} failed on head once, and not when it was started again ({one.reason})"
        for one in outcome.unsteady
    ]
    notes = [*once, *_outputs(alike), *_statistics(outcome), *outcome.notes]
    if hidden:
        notes.append(f"{hidden} metrics that only inform did not change or are open; --all shows them")
    return sheet(shown, outcome.lonely, (f"base: {outcome.base}", f"head: {outcome.head}"), notes)


def _outputs(alike: list[Finding]) -> Iterable[str]:
    """What both sides put out alike, in one line."""
    if alike:
        far = max(f.head or 0.0 for f in alike)
        count = f"{len(alike)} case{'s' * (len(alike) > 1)}"
        yield f"outputs: the same in {count}" if not far else f"outputs: at most {far:.2g}% apart in {count}"


def _speaks(finding: Finding) -> bool:
    """Whether it is shown though it does not gate."""
    return finding.word in (WORSE, BETTER) or bool(finding.reason)


def _statistics(outcome: Outcome) -> Iterable[str]:
    timed = [f for f in outcome.findings if not f.exact]
    if timed:
        low, high = min(f.rounds for f in timed), max(f.rounds for f in timed)
        rounds = f"{low}" if low == high else f"{low} to {high}"
        yield (
            f"change: head / base, Hodges and Lehmann's estimate over {rounds}{_of(outcome, high)} rounds of fresh "
            "processes, with its 97.5% interval (two looks of 97.5% keep 95%); what fails does so by Holm's procedure"
        )
    deltas = sorted({f.delta for f in outcome.judged if not f.exact})
    if deltas:
        span = f"{deltas[0]:.1%}" if len(deltas) == 1 else f"{deltas[0]:.1%} to {deltas[-1]:.1%}"
        yield f"a slow-down below {span} is let through"


def _of(outcome: Outcome, judged: int) -> str:
    """` of 44`, where a failure was measured once more beside the rounds that were judged."""
    return f" of {outcome.rounds}" if outcome.rounds > judged else ""


def workflow_commands(outcome: Outcome) -> list[str]:
    """GitHub's workflow commands: `::error` for what failed, `::warning` for what stayed open, naming the case."""
    names = outcome.names
    lines = []
    for f in outcome.judged:
        if f.verdict in VERDICTS:
            kind = "error" if f.verdict == FAIL else "warning"
            text = told(f, names[f.case])
            lines.append(f"::{kind} title={_property(f'{f.verdict}: {names[f.case]}')}::{_data(text)}")
    unsteady = ((one, "warning", INCONCLUSIVE, "failed once") for one in outcome.unsteady)
    for one, kind, verdict, what in (*((b, "error", FAIL, "no longer runs") for b in outcome.broken), *unsteady):
        text = f"{names[one.case]} {what}: {one.reason}"
        lines.append(f"::{kind} title={_property(f'{verdict}: {names[one.case]}')}::{_data(text)}")
    return lines


def _data(text: str) -> str:
    """Escaped as the runner reads it back: % and line ends; what could steer a terminal is visible."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
