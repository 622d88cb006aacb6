"""Processes that measure in turn: who goes when, and that nobody waits for one that is gone."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from repshift_cli.machine.turns import VARIABLE, Seat, Table, table


def run(names: list[str], rounds: Callable[[str, Seat, Callable[[str], None]], None]) -> list[str]:
    """What processes (here threads) at one table say that they did, in order."""
    said: list[str] = []
    with table(names) as laid:
        addresses = {name: laid.environment(name)[VARIABLE] for name in names}

        def sit(name: str) -> None:
            rounds(name, Seat(addresses[name]), said.append)

        threads = {name: threading.Thread(target=sit, args=[name], daemon=True) for name in names}
        for thread in threads.values():
            thread.start()
        until = time.monotonic() + 60
        while (living := [name for name, t in threads.items() if t.is_alive()]) and time.monotonic() < until:
            laid.attend(0.01, living)
        assert not living, f"{living} wait for ever"
        assert laid.came == set(names)
    return said


def nothing() -> None:
    pass


def test_turns_go_forth_and_back_and_none_leaves_before_all_are_through() -> None:
    def rounds(name: str, seat: Seat, say: Callable[[str], None]) -> None:
        for _ in range(4 if name == "a" else 3):
            assert seat.take(nothing)
            say(name)
        seat.leave(nothing)
        say("gone")

    assert "".join(run(["a", "b"], rounds)) == "abbaab" + "a" + "gonegone"


def test_of_three_each_comes_as_often_behind_each_of_the_others_and_never_behind_itself() -> None:
    """Of three that went forth and back, who is in the middle never found its own caches warm: 1.4% in an A/A gate."""

    def rounds(name: str, seat: Seat, say: Callable[[str], None]) -> None:
        for _ in range(7):
            assert seat.take(nothing)
            say(name)
        seat.leave(nothing)

    order = run(["a", "b", "c"], rounds)[:19]
    assert [sorted(order[n : n + 3]) for n in range(0, 18, 3)] == [["a", "b", "c"]] * 6
    behind = Counter(itertools.pairwise(order))
    assert behind == {(one, other): 3 for one, other in itertools.permutations("abc", 2)}


def test_one_that_dies_in_its_turn_or_never_comes_to_the_next_holds_up_nobody() -> None:
    """Its process may live on: another worker of it sits down in its place; or it ends."""

    def rounds(name: str, seat: Seat, say: Callable[[str], None]) -> None:
        for number in range(3):
            assert seat.take(nothing)
            say(name)
            if name == "b" and number == 1:
                return
        seat.leave(nothing)

    assert "".join(run(["a", "b"], rounds)) == "abbaa"


def test_a_worker_that_is_replaced_takes_the_place_over() -> None:
    with table(["a"]) as laid:
        address = laid.environment("a")[VARIABLE]
        first, second = Seat(address), Seat(address)
        taken = threading.Thread(target=second.take, args=[nothing], daemon=True)
        taken.start()
        until = time.monotonic() + 60
        while taken.is_alive() and time.monotonic() < until:
            laid.attend(0.01, ["a"])
        assert not taken.is_alive()
        assert not first.take(nothing), "its link is cut, so it goes on alone"


def test_whoever_waits_gives_signs_of_life_and_may_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repshift_cli.machine.turns.SECONDS_BETWEEN_SIGNS", 0.01)

    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    with table(["a", "b"]) as laid:
        seat = Seat(laid.environment("a")[VARIABLE])
        laid.attend(0.01, ["a", "b"])
        with pytest.raises(Stopped):
            seat.take(stop)


def test_without_a_table_the_machine_is_always_ones_own() -> None:
    laid = Table(["a"])
    address = laid.environment("a")[VARIABLE]
    laid.close()
    for seat in (Seat(), Seat(address), Seat("nonsense"), Seat("1:zz")):
        assert not seat.take(nothing)
        seat.leave(nothing)


def test_a_stranger_is_given_no_place() -> None:
    with table(["a"]) as laid:
        port = laid.environment("a")[VARIABLE].partition(":")[0]
        stranger = Seat(f"{port}:{'00' * 16}")
        laid.attend(0.1, ["a"])
        assert not laid.came and not stranger.take(nothing)
