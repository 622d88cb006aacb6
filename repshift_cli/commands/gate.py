"""`repshift gate`: measure two revisions against each other, now and here, and judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repshift_cli.commands.shared import completion
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.records import UsageError, store

_WHAT, _HOW, _OUT = "What is compared", "Measurement", "Output"

Base = Annotated[
    str | None, typer.Option(help="Revision to compare with: a branch, a tag, a commit.", rich_help_panel=_WHAT)
]
Head = Annotated[
    str | None, typer.Option(help="Revision to judge. (default: the working tree as it is)", rich_help_panel=_WHAT)
]
Profile = Annotated[
    str,
    typer.Option(
        help="Workload profile whose table of thresholds says what gates: a name or a TOML file.",
        rich_help_panel=_WHAT,
        autocompletion=completion.profile_names,
    ),
]
Setup = Annotated[
    str | None, typer.Option(help="Shell command that builds a tree, run in each of the two.", rich_help_panel=_WHAT)
]
BasePython = Annotated[
    str | None, typer.Option(help="Interpreter for base; may be a path within its tree.", rich_help_panel=_WHAT)
]
HeadPython = Annotated[
    str | None, typer.Option(help="Interpreter for head; may be a path within its tree.", rich_help_panel=_WHAT)
]
Learn = Annotated[
    bool,
    typer.Option(
        "--learn", help="Measure the working tree against itself and store this runner's noise.", rich_help_panel=_HOW
    ),
]
SelfTest = Annotated[
    bool,
    typer.Option(
        "--self-test",
        help="Two gates of the working tree against itself: as it is, it must pass; with 5% added, fail.",
        rich_help_panel=_HOW,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes per side before the first look. (default: the profile's)", rich_help_panel=_HOW
    ),
]
MostRounds = Annotated[
    int | None,
    typer.Option(min=1, help="Processes per side before the last look. (default: the profile's)", rich_help_panel=_HOW),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="9 to 16 rounds, for slow-downs of 2% and more: minutes for one small model. (--self-test is always "
        "quick)",
        rich_help_panel=_HOW,
    ),
]
CaseTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        help="A case hangs when one step of it takes longer than this. (default: as in bench)",
        rich_help_panel=_HOW,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.", rich_help_panel=_HOW)]
NoiseFile = Annotated[Path, typer.Option("--noise", help="Where the noise of runners is stored.", rich_help_panel=_HOW)]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the run files. (default: in repshift-runs/)", rich_help_panel=_OUT)
]
Github = Annotated[bool, typer.Option("--github", help="Print annotations for GitHub Actions.", rich_help_panel=_OUT)]
Everything = Annotated[
    bool,
    typer.Option("--all", help="Time and show every case and metric, also what only informs.", rich_help_panel=_OUT),
]


@output_options("gate")
def gate(
    base: Base = None,
    head: Head = None,
    profile: Profile = "ci",
    setup: Setup = None,
    base_python: BasePython = None,
    head_python: HeadPython = None,
    learn: Learn = False,
    self_test: SelfTest = False,
    rounds: Rounds = None,
    most_rounds: MostRounds = None,
    quick: Quick = False,
    case_timeout: CaseTimeout = None,
    device: Device = None,
    noise_file: NoiseFile = store.FOLDER / "noise.json",
    out: Out = None,
    github: Github = False,
    everything: Everything = False,
    *,
    outputs: Outputs,
) -> None:
    """Measure two revisions in turn and say whether head is slower.

    Exit code: 0 no, 1 yes, 2 usage, 3 inconclusive, 4 no base or another environment, 5 nothing measured.
    """
    if learn + self_test + (base is not None) != 1:
        raise UsageError("name the revision to compare with (--base main), or give --learn or --self-test alone")

    from repshift_cli.commands.shared import gating
    from repshift_cli.gate import thresholds

    pythons = (base_python, head_python)
    asked = gating.Asked(base, head, pythons, setup, noise_file, everything, github, outputs, quick)
    if quick and (rounds or most_rounds or learn):
        raise UsageError("--quick has rounds of its own; leave out --rounds, --most-rounds and --learn, or --quick")
    options, limits = gating.profile_options(profile, device, rounds, most_rounds)
    limits = thresholds.quick(limits) if quick or (self_test and not (rounds or most_rounds)) else limits
    mode = "learn" if learn else "self-test" if self_test else "gate"
    raise typer.Exit(gating.run(mode, asked, options, limits, out, case_timeout))
