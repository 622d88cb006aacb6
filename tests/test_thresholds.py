"""What gates and what informs, as a profile's [thresholds] say it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from synthetic import ON_CPU, REPSHIFT

from repshift_cli.gate.thresholds import MOST_ROUNDS, QUICK_PROCESS, ROUNDS, parse, quick
from repshift_cli.records import UsageError
from repshift_cli.sweep.profiles import load_profile, shipped_profiles

FLASH = dataclasses.replace(ON_CPU, attention="flash")
PRUNED = dataclasses.replace(FLASH, **REPSHIFT)


def test_an_empty_table_has_the_defaults_and_gates_nothing() -> None:
    limits = parse({}, "p.toml")
    assert (limits.rounds, limits.most_rounds, limits.rules) == (ROUNDS, MOST_ROUNDS, ())
    assert limits.share(FLASH, "latency") is None


def test_a_quick_gate_has_the_turns_that_its_promise_is_simulated_with() -> None:
    assert quick(parse({"latency": 0.01}, "p.toml")).process_rounds == QUICK_PROCESS
    assert quick(parse({"latency": 0.01, "process-rounds": 5}, "p.toml")).process_rounds == 5


def test_a_case_table_goes_before_the_general_rule_and_the_last_one_first() -> None:
    cases = {"flash+repshift": {"latency": 0.02}, "flash+repshift keep=0.6": {"latency": "inform", "macs": 0.1}}
    limits = parse({"latency": 0.01, "macs": 0, "cases": cases}, "p.toml")
    assert limits.share(FLASH, "latency") == 0.01
    assert limits.share(PRUNED, "latency") is None
    assert limits.share(PRUNED, "macs") == 0.1
    assert limits.share(dataclasses.replace(PRUNED, keep=0.7), "latency") == 0.02
    assert limits.share(FLASH, "throughput") is None


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"latency": 1.5}, "p.toml: thresholds: latency: 1.5 is neither a share from 0 to 1"),
        ({"latency": "informs"}, "latency: 'informs' is neither a share"),
        ({"latency": True}, "latency: True is neither a share"),
        ({"rounds": 0}, "rounds: 0 is not a whole number above 0"),
        ({"most-rounds": "9"}, "most-rounds: '9' is not a whole number"),
        ({"rounds": 40}, "most-rounds: is below rounds"),
        ({"cases": 3}, "cases: is a table"),
        ({"cases": {"flash": 1}}, "cases.flash: is a table"),
        ({"cases": {"flash": {"macs": -1}}}, "flash: macs: -1 is neither"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_key(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(table, "p.toml")
    assert sentence in str(caught.value)


def test_the_shipped_profiles_thresholds_parse_and_ci_gates() -> None:
    limits = {name: parse(load_profile(name).get("thresholds", {}), name) for name in shipped_profiles()}
    assert {rule.metric for rule in limits["ci"].rules if rule.share is not None} >= {"latency", "macs"}
