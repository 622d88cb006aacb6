"""The tables of rivals, from the run files under profiles/baselines: time, what choosing takes of it, fidelity."""

from __future__ import annotations

from collections.abc import Callable

from stored import FOLDER, NOTHING, interval, pruned, run_of, value

from repshift_cli.analysis import stats
from repshift_cli.profiling.annotations import SELECTION
from repshift_cli.records import Case, Record, store
from repshift_cli.records.profile import ProfileRun, total
from repshift_cli.renderers.page.command import command_of


def rivals(name: str) -> Callable[[], str]:
    """Time against flash and the oracle, what choosing takes of it, and peak memory: methods down."""

    def table() -> str:
        heads = ("method", "tokens", "over flash", "time / oracle", "choosing", "MACs", "peak memory")
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        shares = choosing(f"cpu/parts/{name}")
        for record in pruned(f"cpu/{name}"):
            times = (interval(record, "speedup_vs_flash", "x"), interval(record, "time_vs_oracle"))
            macs = f"{value(record, 'macs') / 1e9:.1f} G"
            peak = f"{value(record, 'memory_peak_allocated') / 2**20:.0f} MiB"
            own = (rival(record.case), _tokens(record), *times, shares.get(rival(record.case), NOTHING), macs, peak)
            lines.append(f"| {' | '.join(own)} |")
        asked = ["```console", f"$ {command_of(run_of(f'cpu/{name}'))}", "```", ""]
        return "\n".join([*asked, *lines, "", beyond(f"cpu/{name}")])

    return table


def beyond(name: str) -> str:
    """Which methods are faster or slower than the shift by more than both intervals, and how busy the machine was."""
    rows = {rival(r.case): r.measurement("speedup_vs_flash") for r in pruned(name)}
    found = {method: stats.estimate(m) if m else None for method, m in rows.items()}
    own = found["repshift"]
    assert own is not None and own.low is not None and own.high is not None
    faster = [m for m, f in found.items() if f is not None and f.low is not None and f.low > own.high]
    slower = [m for m, f in found.items() if f is not None and f.high is not None and f.high < own.low]
    busy = any("machine was busy" in w for r in run_of(name).records for w in r.warnings)
    beside = " The machine was busy with other programs, so that only large differences mean anything." if busy else ""
    told = [
        f"{word} than the shift by more than both intervals: {', '.join(ms) or 'none'}"
        for word, ms in (("Faster", faster), ("slower", slower))
    ]
    return f"{'; '.join(told)}.{beside}"


def choosing(name: str) -> dict[str, str]:
    """What a profile says of scoring, selecting and cutting, by method: their share of a step."""
    if not (FOLDER / f"{name}.json").exists():
        return {}
    profile = store.load_any(FOLDER / f"{name}.json")
    assert isinstance(profile, ProfileRun)
    shares = {}
    for one in profile.breakdowns:
        if one.case is not None and one.parts:
            chosen = total((p for p in one.parts if p.part in SELECTION), on_device=False)
            shares[rival(one.case)] = f"{chosen / total(one.parts, on_device=False):.0%}"
    return shares


def fidelities(name: str) -> Callable[[], str]:
    """Cosine: methods down, the best first."""

    def table() -> str:
        rows = [r for r in pruned(name) if r.status == "ok"]
        rows.sort(key=lambda r: -value(r, "fidelity_cosine"))
        told = [f"| {rival(r.case)} | {_tokens(r)} | {value(r, 'fidelity_cosine'):.4f} |" for r in rows]
        return "\n".join(["| method | tokens | cosine |", "|---|---|---|", *told])

    return table


def rival(case: Case) -> str:
    """The method, with MCTF's kind of attention."""
    ahead = case.option("ahead")
    return case.pruning + (f", {ahead}" if ahead else "")


def _tokens(record: Record) -> str:
    return " → ".join(map(str, record.tokens))
