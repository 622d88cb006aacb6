"""`--batch max`: the largest batch that fits, at the very edge, and what is left free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import ON_CPU

from repshift_cli.benchmark import fitting
from repshift_cli.benchmark.builder import StepBuilder
from repshift_cli.benchmark.planning import with_batches
from repshift_cli.machine import memory
from repshift_cli.records import Case, Step, UsageError
from repshift_cli.sweep.axes import Axes

TINY = Axes.from_options({"model": "vit_t", "image_size": 32, "variant": "flash,flash+stride", "keep": 0.5})
MIB = 2**20


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("limit", [*range(0, 40), 63, 64, 65])
def test_the_edge_is_found_to_one_part_in_32(limit: int) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= limit

    found = fitting.largest(fits, most=64)
    expected = min(limit, 64)
    assert found <= expected and expected - found <= max(0, expected // 32 - 1)
    assert sum(batch > limit for batch in tried) <= 7, "few tries that run out of memory"


class Allocator(torch.nn.Module):
    """Runs out of memory above so many samples, as torch's CUDA allocator says it."""

    def __init__(self, room: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.room, self.error = room, error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise self.error()
        return x


def step_with(room: int, error: Callable[[], Exception]) -> Step:
    step = StepBuilder("cpu").prepare(case_of("flash"))
    module = Allocator(room, error)
    inputs = {"x": torch.zeros(1, 3)}
    return Step(
        step.case, replace(step.subject, inputs=inputs), nullcontext, lambda: None, lambda given: module(**given)
    )


def case_of(attention: str) -> Case:
    return replace(ON_CPU, model="vit_t", image_size=32, attention=attention)


OUT = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [lambda: torch.OutOfMemoryError(OUT), lambda: RuntimeError("can't allocate memory: 3 bytes"), MemoryError]
)
def test_running_out_of_memory_backs_off_to_what_fits(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "free_memory", lambda: None)
    assert fitting.largest(fitting._tried(step_with(13, error))) == 13


def test_any_other_error_is_no_lack_of_memory() -> None:
    with pytest.raises(ValueError, match="shapes"):
        fitting.largest(fitting._tried(step_with(13, lambda: ValueError("shapes"))))


def test_the_variants_agree_on_the_smallest_of_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms, said = {"flash": 29, "vanilla": 12}, []
    monkeypatch.setattr(fitting, "_reckoned", lambda step: lambda batch: batch <= rooms[step.case.attention])
    cases = [case_of("flash"), case_of("vanilla"), replace(case_of("vanilla"), execution="graph")]
    assert fitting.largest_batch(cases, "cpu", said.append) == 12
    assert said[0] == "flash: trying batch 1" and "vanilla: trying batch 29" in said
    rooms["vanilla"] = 0
    with pytest.raises(UsageError, match="not even one sample of vit_t fits vanilla"):
        fitting.largest_batch(cases, "cpu")


@pytest.mark.slow
def test_on_a_cpu_what_is_reckoned_is_what_a_forward_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    step = StepBuilder("cpu").prepare(case_of("vanilla"))
    monkeypatch.setattr(memory, "free_bytes", lambda: 16 * MIB)
    found = fitting.largest(fitting._reckoned(step))
    room = 16 * MIB * fitting.SHARE
    assert 8 < found < fitting.MOST
    assert fitting._bytes_of(step, found) == pytest.approx(room, rel=0.1)
    sweep = with_batches(replace(TINY, batch=(1, 0)), "cpu")
    assert sweep.batch[0] == 1 and sweep.batch[1] >= found, "flash takes no more than vanilla"


def test_a_batch_of_its_own_is_repeated_and_other_tensors_stay() -> None:
    step = step_with(99, MemoryError)
    given: dict[str, Any] = {"x": torch.arange(6.0).view(2, 3), "sizes": torch.ones(5), "flag": True}
    step = replace(step, case=replace(step.case, batch=2), subject=replace(step.subject, inputs=given))
    found = fitting.repeated(step, 5)
    assert found["x"][:, 0].tolist() == [0, 3, 0, 3, 0] and len(found["sizes"]) == 5 and found["flag"] is True


def test_what_is_free_is_the_least_of_the_machine_and_the_container(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    1000 kB\n")
    assert memory.free_bytes(tmp_path) == 1000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in (("memory.max", "500000"), ("memory.current", "400000"), ("memory.stat", "anon 1\nfile 50000\n")):
        (group / name).write_text(text)
    assert memory.free_bytes(tmp_path) == 150_000
    (group / "memory.max").write_text("max")
    assert memory.free_bytes(tmp_path) == 1000 * 1024
    assert memory.free_bytes(tmp_path / "none") is None


def test_one_model_at_a_time() -> None:
    with pytest.raises(UsageError, match="one model at a time"):
        with_batches(replace(TINY, model=("vit_t", "vit_s"), batch=(0,)), "cpu")
    assert Axes.from_options({"batch": "8,max"}).batch == (8, 0)
