"""What `repshift gate` does: it makes the sides ready, measures them in turn, judges, learns, and tests itself."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from repshift_cli.analysis import comparison
from repshift_cli.analysis.comparison import Lonely
from repshift_cli.commands.shared.output import Outputs
from repshift_cli.commands.shared.revisions import both_sides, say
from repshift_cli.gate import noise, process, thresholds
from repshift_cli.gate import verdict as rules
from repshift_cli.gate.rounds import BaseAndHead, Broken
from repshift_cli.gate.survey import Surveyor
from repshift_cli.gate.thresholds import Thresholds
from repshift_cli.gate.verdict import FAIL, INCONCLUSIVE, PASS, Check, Judged, NothingMeasured, Outcome
from repshift_cli.records import UsageError, printable_line, store
from repshift_cli.records.labels import labels
from repshift_cli.renderers.sheets import gate
from repshift_cli.sweep import axes, profiles

DELAY = 0.05
STALE = 60
"""Days after which learnt noise is called old."""


@dataclass(frozen=True)
class Asked:
    """The options that say what is compared and where it is told."""

    base: str | None
    head: str | None
    pythons: tuple[str | None, str | None]
    setup: str | None
    noise_file: Path
    everything: bool
    github: bool
    outputs: Outputs
    quick: bool = False


def run(
    mode: str,
    asked: Asked,
    options: dict[str, Any],
    limits: Thresholds,
    out: Path | None,
    patience: float | None = None,
) -> int:
    """Gate, learn or self-test: the exit code."""
    folder = _folder(out)
    with (
        process.ending_in_order(),
        both_sides(asked.base, asked.head, *asked.pythons, asked.setup, folder, options) as (old, new),
    ):
        starter = process.Starter(folder / "rounds", options, patience, profiles.command_of(options))
        survey = Surveyor(old, new, starter, limits, say).survey()
        sides = BaseAndHead(old, new, limits, starter, survey, say)
        if mode == "learn":
            _learn(sides, asked.noise_file)
            code = 0
        elif mode == "self-test":
            code = _self_test(sides, asked.noise_file)
        else:
            way_on = rules.WAY_ON_FROM_QUICK if asked.quick else rules.WAY_ON
            outcome = replace(_judge(sides, asked.noise_file, everything=asked.everything), way_on=way_on)
            _show(outcome, asked)
            code = outcome.exit_code
    print(f"run files: {folder}", file=sys.stderr)
    return code


# --- what is asked for ------------------------------------------------------------------------------------------------


def profile_options(
    name: str, device: str | None, rounds: int | None, most: int | None
) -> tuple[dict[str, Any], Thresholds]:
    """The profile's options, made ready to be read in another folder, and its thresholds."""
    loaded = profiles.load_profile(name)
    table = dict(loaded.get("thresholds", {}))
    if rounds is not None:
        table["rounds"] = rounds
        table["most-rounds"] = max(rounds, table.pop("most_rounds", table.get("most-rounds", thresholds.MOST_ROUNDS)))
    if most is not None:
        table |= {"most-rounds": most, "rounds": min(most, table.get("rounds", thresholds.ROUNDS))}
        table.pop("most_rounds", None)
    limits = thresholds.parse(table, str(profiles.profile_path(name)))
    if not limits.judges:
        raise UsageError(f"profile {name} gates nothing: name a metric in its [thresholds], like latency = 0.01")
    options = axes.merge(loaded, {"device": device})
    profiles.sweep_of(options, {})
    for key in ("weights", "data"):
        if key in options and Path(options[key]).exists():
            options[key] = str(Path(options[key]).resolve())
    return options, limits


def _folder(out: Path | None) -> Path:
    """The folder for the run files, made; the default has a name that no other gate has taken."""
    stem = store.FOLDER / f"gate-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for folder in [out] if out else (stem, *(stem.with_name(f"{stem.name}-{n}") for n in range(2, 100))):
        store.check_writable(folder / "base.json")
        with contextlib.suppress(FileExistsError):
            (folder / "rounds").mkdir(parents=True)
            return folder.resolve()
    raise UsageError(f"{out or stem} holds another gate's run files; name a new folder with --out")


# --- what is done -----------------------------------------------------------------------------------------------------


def _judge(sides: BaseAndHead, noise_file: Path, confirm: bool = True, everything: bool = False) -> Outcome:
    """Rounds, verdicts, and the run files of it all; no rounds where the survey has decided already."""
    known, note = _known_noise(sides, noise_file)
    timed = sides.checks(known)
    checks, untimed = _worth_rounds(timed, sides.thresholds.is_quick, everything)
    decided, broken = _decided(sides), tuple[Lonely, ...]()
    judged: dict[Check, Judged] = {}
    try:
        judged = {} if decided else _rounds(sides, checks, confirm)
    except Broken as error:
        decided, broken = [f"round {sides.count} was the last, for a case no longer runs"], error.cases
    sides.write(broken)
    found, lonely = sides.findings(judged), (*sides.survey.lonely, *broken)
    unknown = [] if decided else sides.unknown_rules(found)
    notes = [
        *decided,
        *sides.starter.notes,
        *sides.survey.notes,
        *sides.notes,
        *unknown,
        *sides.warnings(),
        *untimed,
        note,
    ]
    words = (sides.base.words, sides.head.words)
    unsteady = (*sides.survey.unsteady, *sides.unsteady)
    outcome = Outcome(*words, tuple(found), lonely, tuple(notes), sides.count, unsteady)
    if outcome.verdict == PASS and not timed:
        raise NothingMeasured(f"nothing measured on both sides: {sides.why_nothing()}")
    if outcome.verdict == PASS and all(f.metric == thresholds.OUTPUT for f in outcome.judged):
        raise NothingMeasured("nothing measured that gates: no metric of [thresholds] has a figure on both sides")
    say("")
    return outcome


def _worth_rounds(timed: list[Check], quick: bool, everything: bool) -> tuple[list[Check], list[str]]:
    """The checks that are measured in rounds, and a note on the cases that are not, since no time of theirs gates."""
    gating = {check.case for check in timed if check.gates}
    checks = [c for c in timed if c.gates or (not quick and (everything or c.case in gating))]
    names = labels(dict.fromkeys(c.case for c in timed))
    left = ", ".join(names[case] for case in names if case not in {c.case for c in checks})
    return checks, [f"not timed, for it would only inform: {left} (--all times it too)"] if left and not quick else []


def _decided(sides: BaseAndHead) -> list[str]:
    """A note where the survey alone says that head is worse: by a number without noise, or a case that fails now."""
    failed = [f.label or f.metric for f in sides.findings({}) if f.verdict == FAIL]
    broken = [one for one in sides.survey.lonely if one.is_broken]
    what = ", ".join(dict.fromkeys(failed)) or ("a case that no longer runs" if broken else "")
    return [f"{what} had decided, so no times were measured"] if what else []


def _rounds(sides: BaseAndHead, checks: list[Check], confirm: bool) -> dict[Check, Judged]:
    """The verdicts on times, after as many rounds as they take; how long that may be is told before."""
    if not checks:
        return {}
    rules.check_rounds(checks, sides.thresholds.most_rounds)
    sides.start(checks)
    if not sides.ready:
        say("")
        say(sides.plan())
    return rules.decide(checks, sides.measure, sides.thresholds.rounds, sides.thresholds.most_rounds, confirm)


def _known_noise(sides: BaseAndHead, path: Path) -> tuple[dict[str, dict[str, float]], str]:
    """This runner's noise by case and metric, and a note on where the thresholds come from."""
    own = noise.of(noise.load(path), comparison.fingerprint(sides.survey.head.machine))
    if own is None:
        return (
            {},
            f"no noise learnt for this runner in {path}: the profile's thresholds stand alone (repshift gate --learn)",
        )
    days = (datetime.now(UTC) - datetime.fromisoformat(own.learnt)).days
    old = f", {days} days ago; learn it again" if days > STALE else ""
    return own.cases, f"thresholds are at least the noise of this runner, learnt {own.learnt[:10]}{old}"


def _learn(sides: BaseAndHead, path: Path) -> None:
    """Measure A/A rounds, as many as a gate has at most, and store what gates drawn from them report."""
    rounds = sides.thresholds.most_rounds
    checks = [c for c in sides.checks({}) if c.gates]
    if not checks:
        raise NothingMeasured(f"nothing measured that gates: {sides.why_nothing()}")
    sides.start(checks)
    taken = [sides.measure() for _ in range(rounds)]
    learnt = rules.noise(taken, checks, sides.thresholds.rounds)
    cases: dict[str, dict[str, float]] = {}
    for check, share in learnt.items():
        cases.setdefault(check.case.key, {})[check.metric] = round(share, 6)
    runner = comparison.fingerprint(sides.survey.head.machine)
    noise.save(path, noise.Noise(runner, datetime.now(UTC).isoformat(timespec="seconds"), rounds, cases))
    say("")
    names = labels(check.case for check in checks)
    for check, share in learnt.items():
        print(
            f"{names[check.case]} {check.metric}: A/A gates of {sides.thresholds.rounds} rounds stay within {share:.2%}"
        )
    print(f"learnt from {rounds} rounds, stored in {path}")


def _self_test(sides: BaseAndHead, noise_file: Path) -> int:
    """A/A must not fail and head with 5% added must: the exit code, and a line for each.

    What is not timed is the same in both, so it is surveyed once; both heads are held against one base in the same
    rounds; the 5% are there, so they need not be confirmed.
    """
    slow = replace(
        sides.head,
        name="delayed",
        extra=("--delay", str(DELAY)),
        words=f"this folder with {DELAY:.0%} added to every forward",
    )
    folder = sides.starter.folder.parent / "delayed" / "rounds"
    folder.mkdir(parents=True)
    second = BaseAndHead(sides.base, slow, sides.thresholds, replace(sides.starter, folder=folder), sides.survey, say)
    sides.also = second
    plain = _judge(sides, noise_file)
    print(f"A/A: {plain.sentence}")
    delayed = _judge(second, noise_file, confirm=False)
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


def _show(outcome: Outcome, asked: Asked) -> None:
    """The table, the files asked for, the annotations, and the last line."""
    asked.outputs.emit(gate.document_of(outcome), on_screen=gate.document_of(outcome, asked.everything))
    place = sys.stderr if asked.outputs.own_stdout else sys.stdout
    for line in gate.workflow_commands(outcome) if asked.github else ():
        print(line, file=place)
    print(printable_line(outcome.sentence), file=place, flush=True)
