"""`repshift gate`: measure two revisions against each other, now and here, and judge."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from repshift_cli import axes, findings, noise, sides, store, thresholds
from repshift_cli import gate as rules
from repshift_cli.commands import _complete
from repshift_cli.commands._revisions import both_sides, say
from repshift_cli.duel import Duel
from repshift_cli.gate import FAIL, INCONCLUSIVE, PASS, NothingMeasured, Outcome
from repshift_cli.records import UsageError, to_plain
from repshift_cli.thresholds import Thresholds

DELAY = 0.05
LEARNING_ROUNDS = 40
STALE = 60
"""Days after which learnt noise is called old."""

_WHAT, _HOW, _OUT = "What is compared", "Measurement", "Output"


def gate(
    base: Annotated[
        str | None,
        typer.Option(help="Revision to compare with: a branch, a tag, a commit.", rich_help_panel=_WHAT),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Revision to judge. (default: the working tree as it is)", rich_help_panel=_WHAT)
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="Workload profile whose table of thresholds says what gates: a name or a TOML file.",
            rich_help_panel=_WHAT,
            autocompletion=_complete.profile_names,
        ),
    ] = "ci",
    setup: Annotated[
        str | None,
        typer.Option(help="Shell command that builds a tree, run in each of the two.", rich_help_panel=_WHAT),
    ] = None,
    base_python: Annotated[
        str | None, typer.Option(help="Interpreter for base; may be a path within its tree.", rich_help_panel=_WHAT)
    ] = None,
    head_python: Annotated[
        str | None, typer.Option(help="Interpreter for head; may be a path within its tree.", rich_help_panel=_WHAT)
    ] = None,
    learn: Annotated[
        bool,
        typer.Option(
            "--learn",
            help="Measure the working tree against itself and store this runner's noise.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Two gates of the working tree against itself: as it is, it must pass; with 5% added, fail.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes per side before the first look. (default: the profile's)", rich_help_panel=_HOW
        ),
    ] = None,
    most_rounds: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes per side before the last look. (default: the profile's)", rich_help_panel=_HOW
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.", rich_help_panel=_HOW)] = None,
    noise_file: Annotated[
        Path, typer.Option("--noise", help="Where the noise of runners is stored.", rich_help_panel=_HOW)
    ] = noise.FILE,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run files. (default: in repshift-runs/)", rich_help_panel=_OUT)
    ] = None,
    markdown_to: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table as Markdown to this file.", rich_help_panel=_OUT)
    ] = None,
    junit_to: Annotated[Path | None, typer.Option("--junit", help="Write a JUnit file.", rich_help_panel=_OUT)] = None,
    json_to: Annotated[
        Path | None, typer.Option("--json", help="Write the outcome as JSON to this file.", rich_help_panel=_OUT)
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print annotations for GitHub Actions.", rich_help_panel=_OUT)
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Show every metric, also what informs and did not change.", rich_help_panel=_OUT),
    ] = False,
) -> None:
    """Measure two revisions in turn and say whether head is slower.

    Exit code: 0 no, 1 yes, 2 usage, 3 inconclusive, 4 no base or another environment, 5 nothing measured.
    """
    targets = [path for path in (markdown_to, junit_to, json_to) if path is not None]
    for path in targets:
        store.check_writable(path)
    if learn + self_test + (base is not None) != 1:
        raise UsageError("name the revision to compare with (--base main), or give --learn or --self-test alone")
    options, limits = _asked(profile, device, rounds, most_rounds)
    folder = _folder(out)
    with (
        sides.ending_in_order(),
        both_sides(base, head, base_python, head_python, setup, folder, options) as (old, new),
    ):
        duel = Duel(old, new, options, limits, folder / "rounds", say)
        if learn:
            _learn(duel, noise_file, most_rounds or LEARNING_ROUNDS)
            return
        if self_test:
            code = _self_test(duel, noise_file)
        else:
            outcome = _judge(duel, noise_file)
            _show(outcome, everything, github, markdown_to, junit_to, json_to)
            code = outcome.exit_code
    print(f"run files: {folder}", file=sys.stderr)
    raise typer.Exit(code)


# --- what is asked for ------------------------------------------------------------------------------------------------


def _asked(name: str, device: str | None, rounds: int | None, most: int | None) -> tuple[dict[str, Any], Thresholds]:
    """The profile's options, made ready to be read in another folder, and its thresholds."""
    loaded = axes.load_profile(name)
    table = dict(loaded.get("thresholds", {}))
    if rounds is not None:
        table["rounds"] = rounds
        table["most-rounds"] = max(rounds, table.pop("most_rounds", table.get("most-rounds", thresholds.MOST_ROUNDS)))
    if most is not None:
        table["most-rounds"] = most
    limits = thresholds.parse(table, str(axes.profile_path(name)))
    if not any(rule.share is not None for rule in limits.rules):
        raise UsageError(f"profile {name} gates nothing: name a metric in its [thresholds], like latency = 0.01")
    options = axes.merge(loaded, {"device": device})
    axes.Axes.from_options(options)
    for key in ("weights", "data"):
        if key in options and Path(options[key]).exists():
            options[key] = str(Path(options[key]).resolve())
    return options, limits


def _folder(out: Path | None) -> Path:
    folder = out or store.FOLDER / f"gate-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    store.check_writable(folder / "base.json")
    if (folder / "rounds").exists():
        raise UsageError(f"{folder} holds another gate's run files; name a new folder with --out")
    (folder / "rounds").mkdir(parents=True)
    return folder.resolve()


# --- what is done -----------------------------------------------------------------------------------------------------


def _judge(duel: Duel, noise_file: Path) -> Outcome:
    """Survey, rounds, verdicts, and the run files of it all."""
    duel.survey()
    known, note = _known_noise(duel, noise_file)
    checks = duel.checks(known)
    duel.start(checks)
    judged = rules.decide(checks, duel.measure, duel.thresholds.rounds, duel.thresholds.most_rounds) if checks else {}
    duel.write()
    found = duel.findings(judged)
    notes = [*duel.notes, *duel.unknown_rules(found), *duel.warnings(), note]
    outcome = Outcome(duel.base.words, duel.head.words, tuple(found), tuple(duel.lonely()), tuple(notes))
    if not checks and not outcome.broken:
        raise NothingMeasured(f"nothing measured on both sides: {duel.why_nothing()}")
    if not outcome.judged and not outcome.broken:
        raise NothingMeasured("nothing measured that gates: no metric of [thresholds] has a figure on both sides")
    say("")
    return outcome


def _known_noise(duel: Duel, path: Path) -> tuple[dict[str, dict[str, float]], str]:
    """This runner's noise by case and metric, and a note on where the thresholds come from."""
    own = noise.of(noise.load(path), findings.fingerprint(duel.surveys["head"].machine))
    if own is None:
        return (
            {},
            f"no noise learnt for this runner in {path}: the profile's thresholds stand alone (repshift gate --learn)",
        )
    days = (datetime.now(UTC) - datetime.fromisoformat(own.learnt)).days
    old = f", {days} days ago; learn it again" if days > STALE else ""
    return own.cases, f"thresholds are at least the noise of this runner, learnt {own.learnt[:10]}{old}"


def _learn(duel: Duel, path: Path, rounds: int) -> None:
    duel.survey()
    checks = [c for c in duel.checks({}) if c.gates]
    if not checks:
        raise NothingMeasured(f"nothing measured that gates: {duel.why_nothing()}")
    duel.start(checks)
    taken = [duel.measure() for _ in range(rounds)]
    learnt = rules.noise(taken, checks, duel.thresholds.rounds)
    cases: dict[str, dict[str, float]] = {}
    for check, share in learnt.items():
        cases.setdefault(check.case.key, {})[check.metric] = round(share, 6)
    runner = findings.fingerprint(duel.surveys["head"].machine)
    noise.save(path, noise.Noise(runner, datetime.now(UTC).isoformat(timespec="seconds"), rounds, cases))
    say("")
    names = findings.labels(check.case for check in checks)
    for check, share in learnt.items():
        print(
            f"{names[check.case]} {check.metric}: A/A gates of {duel.thresholds.rounds} rounds stay within {share:.2%}"
        )
    print(f"learnt from {rounds} rounds, stored in {path}")


def _self_test(duel: Duel, noise_file: Path) -> int:
    """A/A must not fail and head with 5% added must: the exit code, and a line for each."""
    plain = _judge(duel, noise_file)
    print(f"A/A: {plain.sentence}")
    slow = replace(
        duel.head, extra=("--delay", str(DELAY)), words=f"this folder with {DELAY:.0%} added to every forward"
    )
    second = Duel(duel.base, slow, duel.options, duel.thresholds, duel.folder.parent / "delayed" / "rounds", say)
    second.folder.mkdir(parents=True)
    delayed = _judge(second, noise_file)
    print(f"with {DELAY:.0%} added: {delayed.sentence}")
    verdicts = (plain.verdict, delayed.verdict)
    if verdicts == (PASS, FAIL):
        print(f"PASS: the gate lets A/A through and catches {DELAY:.0%} here")
        return 0
    if verdicts[0] == FAIL or verdicts[1] == PASS:
        print(f"FAIL: A/A was {verdicts[0]} and {DELAY:.0%} added was {verdicts[1]}; do not trust the gate here")
        return 1
    print(f"INCONCLUSIVE: A/A was {verdicts[0]} and {DELAY:.0%} added was {verdicts[1]}; this machine is too noisy")
    return rules.EXIT_CODES[INCONCLUSIVE]


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(
    outcome: Outcome, everything: bool, github: bool, markdown: Path | None, junit: Path | None, json_to: Path | None
) -> None:
    from repshift_cli.renderers import _gate, table
    from repshift_cli.renderers import markdown as as_markdown

    sheet = _gate.outcome_sheet(outcome, everything)
    table.print_sheet(sheet, table.console_for(sys.stdout), "--markdown")
    if markdown:
        text = as_markdown.section(_gate.outcome_sheet(outcome, everything=True))
        store.write_text(
            markdown, f"### repshift gate: {outcome.verdict}\n\n{as_markdown.escape(outcome.sentence)}\n\n{text}"
        )
    if junit:
        store.write_text(junit, _gate.junit(outcome))
    if json_to:
        said = {"verdict": outcome.verdict, "exit_code": outcome.exit_code, "sentence": outcome.sentence}
        store.write_text(json_to, json.dumps(said | to_plain(outcome), indent=1) + "\n")
    for line in _gate.workflow_commands(outcome) if github else ():
        print(line)
    print(outcome.sentence, flush=True)
