"""Probes as passes: all that are here, in their order, each failing for itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from repshift_cli import registry
from repshift_cli.benchmark import builder
from repshift_cli.benchmark.passes import Pass, in_order, passes
from repshift_cli.probes import BEFORE_TIMING, ORDER, Context
from repshift_cli.records import CaseBroken, Measurement, Metric, Step, UsageError

LAPS = Metric("laps", "samples/lap", "", "lower", "value", "counted", "Laps of a forward.")


def context(device: str = "cpu") -> Context:
    nothing: Any = lambda: "no GPU in this run"  # noqa: E731
    return Context(None, device, nothing, nothing, nothing, nothing, nothing)  # type: ignore[arg-type]


def step() -> Step:
    plain = tiny.vit()
    return builder.eager_step(tiny.case(attention="flash"), tiny.subject(plain.module, plain.inputs))


def raises(error: BaseException) -> Any:
    def work(step: Step) -> tuple[Measurement, ...]:
        raise error

    return work


def test_a_probe_that_fails_costs_its_own_figures_with_the_reason() -> None:
    (found,) = Pass("laps", (LAPS,), raises(ValueError("nobody ran"))).measure(step())
    assert (found.metric, found.reason, found.label) == ("laps", "ValueError: nobody ran", "img/lap")
    (found,) = Pass("laps", (LAPS,), "there is no track").measure(step())
    assert found.reason == "there is no track"
    (found,) = Pass("laps", (LAPS,), lambda step: None).measure(step())  # type: ignore[arg-type, return-value]
    assert found.reason and found.reason.startswith("TypeError")
    assert Pass("laps", (LAPS,), lambda step: [LAPS.of(3)]).measure(step()) == (LAPS.of(3),)


@pytest.mark.parametrize(
    "error",
    [
        CaseBroken("NaN"),
        UsageError("no such photo"),
        KeyboardInterrupt(),
        RuntimeError("CUDA error: misaligned address"),
    ],
)
def test_what_concerns_the_whole_case_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        Pass("laps", (LAPS,), raises(error)).measure(step())


def test_a_probe_without_metrics_has_none_to_lose() -> None:
    with pytest.raises(ValueError):
        Pass("snapshot", (), raises(ValueError("disk full"))).measure(step())


def probe(work: Any, unavailable: str | None = None) -> Any:
    return SimpleNamespace(METRICS=(LAPS,), unavailable=lambda device: unavailable, make=work)


def broken(context: Context) -> Any:
    raise OSError("no such device")


@pytest.mark.parametrize(
    ("made", "reason"),
    [(probe(None, "needs a track"), "needs a track"), (probe(broken), "OSError: no such device")],
    ids=["unavailable", "cannot be made"],
)
def test_a_probe_that_cannot_be_had_is_missing_too(made: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"laps": registry.Part("laps", "probes", "", "")}
    monkeypatch.setattr(registry, "parts", lambda room: parts)
    monkeypatch.setattr(registry, "load", lambda part: made)
    before, (one,) = passes(context())
    assert before == () and one.measure(step())[0].reason == reason


def test_the_order_is_explicit_and_strangers_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dict(registry.parts("probes"))
    assert set(own) == set(ORDER) and [part.name for part in in_order()] == list(ORDER)
    before, after = passes(context())
    asked = [name for name in ORDER if name not in (*BEFORE_TIMING, "snapshot")]
    assert [one.name for one in before] == list(BEFORE_TIMING) and [one.name for one in after] == asked
    strangers = {name: registry.Part(name, "probes", "", "") for name in ("zeal", "ardour")}
    monkeypatch.setattr(registry, "parts", lambda room: {**strangers, **own})
    assert [part.name for part in in_order()] == [*ORDER, "ardour", "zeal"]
