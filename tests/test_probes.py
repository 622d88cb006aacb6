"""Probes against figures counted by hand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import case
from torch import Tensor, nn

from repshift_cli import registry
from repshift_cli.attention import flash, vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.benchmark import builder, timers
from repshift_cli.benchmark.timers import CudaTimer, HostTimer, timer_for
from repshift_cli.models.base.transformers import logits, pooled
from repshift_cli.probes.base.traffic_model import TrafficModel, stored_bytes
from repshift_cli.probes.fidelity import FidelityProbe, NotFinite, agreement, cosine, divergence
from repshift_cli.probes.hbm import HbmProbe
from repshift_cli.probes.macs import MacsProbe, attention_flops, count_flops
from repshift_cli.probes.memory import METRICS, MemoryProbe, highest, resting_bytes
from repshift_cli.records import Case, Measurement, Step, Subject, call
from repshift_cli.reduction import repshift
from repshift_cli.reduction.engine.hooks import pruned


def step(module: Any, inputs: Any, given: Case | None = None, attention: Any = flash, evaluation: Any = None) -> Step:
    """A step as assemble makes it, on a module that need not be a transformer."""
    given = given or case()
    if given.pruning == "none":
        subject = Subject(module, inputs, evaluation or (inputs,), (), 0, 0, "sample", logits, pooled)
    else:
        subject = tiny.subject(module, inputs)

    @contextmanager
    def active() -> Iterator[None]:
        with torch.inference_mode(), attending(attention), pruned(subject, repshift, given):
            yield

    return Step(given, subject, active, lambda: call(module, inputs), lambda i: call(module, i))


def value(measurements: tuple[Measurement, ...], metric: str) -> float:
    found = next(m for m in measurements if m.metric == metric)
    assert len(found.samples) == 1, found.reason
    return found.samples[0]


# --- MACs: the paper's table ------------------------------------------------------------------------------------------

PAPER = [
    ("deit_t", 0.8, (1, 4, 7), "1.3", "0.8"),
    ("deit_s", 0.8, (1, 4, 7), "4.6", "3.0"),
    ("deit_b", 0.8, (1, 4, 7), "17.6", "11.5"),
]
EXACT = {"deit_t": ("1.25", "0.80"), "deit_s": ("4.60", "2.99"), "deit_b": ("17.56", "11.50")}


def giga_macs(subject: Subject, keep: float, layers: tuple[int, ...], attention: Any) -> float:
    given = case(batch=1, pruning="repshift" if keep < 1 else "none", keep=keep, layers=layers)

    @contextmanager
    def active() -> Iterator[None]:
        with torch.inference_mode(), attending(attention), pruned(subject, repshift, given):
            yield

    forward = lambda: call(subject.module, subject.inputs)  # noqa: E731
    made = Step(given, subject, active, forward, lambda i: call(subject.module, i))
    return count_flops(made) / 2e9


def built(name: str) -> Subject:
    subject: Subject = registry.load(registry.resolve_model(name)).build(case(model=name, batch=1))
    return subject


@pytest.mark.parametrize(("name", "keep", "layers", "base", "cut"), PAPER)
def test_the_papers_deit_rows(name: str, keep: float, layers: tuple[int, ...], base: str, cut: str) -> None:
    subject = built(name)
    for attention in (flash, vanilla) if name == "deit_t" else (flash,):
        whole, pruned_ = giga_macs(subject, 1.0, (), attention), giga_macs(subject, keep, layers, attention)
        assert (f"{whole:.1f}", f"{pruned_:.1f}") == (base, cut)
        assert (f"{whole:.2f}", f"{pruned_:.2f}") == EXACT[name]


@pytest.mark.slow
def test_the_papers_umt_b_rows() -> None:
    """One on torch's CPU flash kernel, which the flop counter does not know by itself: a third would be missing."""
    subject = built("umt_b")
    on_flash = giga_macs(subject, 0.8, (1, 2, 3), flash)
    figures = [giga_macs(on_meta(subject), keep, (1, 2, 3) if keep < 1 else (), vanilla) for keep in (1.0, 0.8, 0.9)]
    assert on_flash == figures[1]
    assert [f"{f:.1f}" for f in figures] == ["303.1", "156.3", "217.5"]
    for figure, printed in zip(figures, (303.3, 156.4, 217.7), strict=True):
        assert figure == pytest.approx(printed, rel=0.001), "the paper's own figure, 0.07% to 0.1% higher"


@pytest.mark.slow
def test_the_papers_umt_l_rows() -> None:
    subject = on_meta(built("umt_l"))
    figures = [giga_macs(subject, keep, (1, 2, 3) if keep < 1 else (), vanilla) for keep in (1.0, 0.8, 0.9)]
    assert [f"{f:.1f}" for f in figures] == ["984.0", "478.2", "690.1"]
    for figure, printed in zip(figures, (984.6, 478.5, 690.5), strict=True):
        assert figure == pytest.approx(printed, rel=0.001)


def on_meta(subject: Subject) -> Subject:
    """The built module without its memory: only shapes are counted."""
    subject.module.to("meta")
    embeddings: Any = subject.module.embeddings
    embeddings.position_embeddings = embeddings.position_embeddings.to("meta")
    return Subject(**{**vars(subject), "inputs": {name: t.to("meta") for name, t in subject.inputs.items()}})


def test_umts_formula_gives_the_papers_rows() -> None:
    """Written out by hand, so that the slow tests above are not the only ones that know it."""

    def block(n: int, width: int) -> int:
        return 12 * n * width**2 + 2 * n * n * width

    def total(depth: int, width: int, tokens: tuple[int, ...]) -> float:
        embedding = tokens[0] * width * 3 * 16 * 16
        schedule = [*tokens, *[tokens[-1]] * (depth - len(tokens))]
        return (embedding + sum(block(n, width) for n in schedule)) / 1e9

    rows = [(12, 768), (24, 1024)]
    kept = [(2352,), (2352, 1882, 1506, 1205), (2352, 2117, 1906, 1716)]
    figures = [f"{total(depth, width, tokens):.1f}" for depth, width in rows for tokens in kept]
    assert figures == ["303.1", "156.3", "217.5", "984.0", "478.2", "690.1"]


def test_macs_of_attention_by_hand() -> None:
    q, k, v = torch.zeros(2, 6, 5, 8), torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 7, 4)
    assert attention_flops(q, k, v) == 2 * 2 * 6 * 5 * 7 * (8 + 4)


class Attends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("name", ["flash", "math", "vanilla", "package"])
def test_macs_are_the_same_on_every_back_end(name: str) -> None:
    """`package`: a function in which the counter sees nothing, as in the FlashAttention packages."""
    if name == "package":
        part: Any = SimpleNamespace(attend=lambda q, k, v, **_: torch.empty_like(q), session=nullcontext)
    else:
        part = registry.load(registry.find("attention", name))
    made = step(Attends(), (torch.randn(2, 3, 10, 4),), case(batch=2), part)
    assert value(MacsProbe().measure(made), "macs") == 3 * 10 * 10 * (4 + 4)
    assert F.scaled_dot_product_attention.__name__ == "scaled_dot_product_attention"


class BoundEarly(nn.Module):
    """Kept torch's function from before any swap."""

    kept = staticmethod(F.scaled_dot_product_attention)

    def forward(self, x: Tensor) -> Tensor:
        return self.kept(x, x, x)


def test_macs_of_attention_that_passes_the_seam_by() -> None:
    made = step(BoundEarly(), (torch.randn(2, 3, 10, 4),), case(batch=2))
    assert value(MacsProbe().measure(made), "macs") == 3 * 10 * 10 * (4 + 4)


def test_macs_are_per_sample_and_counted_on_the_eager_twin() -> None:
    module = nn.Linear(6, 5)
    eager = step(module, (torch.randn(4, 7, 6),), case(batch=4))
    assert value(MacsProbe().measure(eager), "macs") == 7 * 6 * 5
    replay = Step(case(batch=4, execution="graph"), eager.subject, nullcontext, lambda: None, lambda i: None, eager)
    assert value(MacsProbe().measure(replay), "macs") == 7 * 6 * 5


# --- memory -----------------------------------------------------------------------------------------------------------


class Known(nn.Module):
    """Holds 1000 floats and 4000 together, later 1000, 1000 and 2000: the peak is in the first part."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.clone()
        big = torch.cat((first, first, first, first))
        del big
        second = first.neg()
        return torch.cat((second, second))


def test_the_peak_of_a_known_module() -> None:
    x = torch.randn(1000)
    made = step(Known(), (x,))
    measured = MemoryProbe(lambda: 12345).measure(made)
    assert value(measured, "memory_peak_above_resting") == 4 * (1000 + 4000)
    assert value(measured, "memory_resting") == 4 * 1000
    assert value(measured, "memory_peak_allocated") == 4 * (1000 + 1000 + 4000)
    assert value(measured, "memory_process") == 12345


def test_the_output_belongs_to_the_peak() -> None:
    measured = MemoryProbe(lambda: "x").measure(step(nn.Linear(64, 32, bias=False), (torch.randn(10, 64),)))
    assert value(measured, "memory_peak_above_resting") == 4 * 10 * 32
    assert value(measured, "memory_resting") == 4 * (64 * 32 + 10 * 64)


def test_vanilla_attention_needs_the_scores_and_flash_does_not() -> None:
    x = torch.randn(1, 2, 256, 16)
    peaks = [
        value(MemoryProbe(lambda: 0).measure(step(Attends(), (x,), attention=part)), "memory_peak_above_resting")
        for part in (flash, vanilla)
    ]
    scores = 4 * 2 * 256 * 256
    assert peaks[0] < scores
    assert 2 * scores <= peaks[1] < 2.5 * scores


def test_what_memory_cannot_be_told_has_a_reason() -> None:
    measured = MemoryProbe(lambda: "no driver").measure(step(nn.Linear(2, 2), (torch.randn(1, 2),)))
    reasons = {m.metric: m.reason for m in measured if not m.samples}
    assert reasons == {
        "memory_peak_reserved": "a CPU has no caching allocator",
        "memory_card": "no GPU in this run",
        "memory_process": "no driver",
    }
    graph = MemoryProbe(lambda: 0).measure(step(nn.Linear(2, 2), (torch.randn(1, 2),), case(execution="graph")))
    assert [m.metric for m in graph] == [m.name for m in METRICS]
    assert all("private pool" in (m.reason or "") for m in graph)


@pytest.mark.parametrize(
    ("changes", "peak"),
    [([], 0), ([5, -5, 3], 5), ([5, 3, -8, 7], 8), ([-5, 3], 0), ([1, 1, -2, 2, 1, -3], 3)],
)
def test_highest(changes: list[int], peak: int) -> None:
    assert highest(changes) == peak


def test_resting_counts_a_shared_storage_once() -> None:
    module = nn.Module()
    module.a = nn.Linear(4, 4, bias=False)
    module.b = nn.Linear(4, 4, bias=False)
    module.b.weight = module.a.weight
    module.register_buffer("view", module.a.weight.detach()[:2])
    module.register_buffer("own", torch.zeros(3, dtype=torch.float64))
    x = torch.zeros(2, 4)
    inputs = {"x": x, "again": x[:1], "flag": True}
    assert resting_bytes(step(module, inputs)) == 4 * 16 + 8 * 3 + 4 * 8


# --- traffic ----------------------------------------------------------------------------------------------------------


def traffic(work: Callable[[], Any], inference: bool) -> tuple[int, int]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(inference))
        if not inference:
            stack.enter_context(torch.no_grad())
        model = stack.enter_context(TrafficModel())
        work()
    return model.read, model.written


A, BIAS, W = torch.randn(10, 6), torch.randn(5), torch.randn(5, 6)
ROWS, IDS = torch.randn(100, 8), torch.tensor([3, 50, 3])
WIDE = torch.randn(1, 6)
FLOAT, INT = 4, 8

COUNTED: dict[str, tuple[Callable[[], Any], int, int]] = {
    "addmm": (lambda: torch.addmm(BIAS, A, W.t()), FLOAT * (5 + 60 + 30), FLOAT * 50),
    "linear": (lambda: F.linear(A, W, BIAS), FLOAT * (5 + 60 + 30), FLOAT * 50),
    "linear on three dimensions": (lambda: F.linear(A.view(2, 5, 6), W, BIAS), FLOAT * (5 + 60 + 30), FLOAT * 50),
    "matmul": (lambda: A @ W.t(), FLOAT * (60 + 30), FLOAT * 50),
    "add": (lambda: A + A.clone(), FLOAT * (60 + 120), FLOAT * (60 + 60)),
    "the same tensor twice": (lambda: A + A, FLOAT * 60, FLOAT * 60),
    "broadcast": (lambda: A + WIDE, FLOAT * (60 + 6), FLOAT * 60),
    "expanded": (lambda: A + WIDE.expand(10, 6), FLOAT * (60 + 6), FLOAT * 60),
    "expanded and copied": (lambda: WIDE.expand(10, 6).contiguous(), FLOAT * 6, FLOAT * 60),
    "a slice": (lambda: A[:, 1:3] * 2, FLOAT * 20, FLOAT * 20),
    "the same slice twice": (lambda: A[:2] * A[:2], FLOAT * 12, FLOAT * 12),
    "two slices of one tensor": (lambda: A[:4] * A[6:], FLOAT * 48, FLOAT * 24),
    "overlapping windows": (lambda: ROWS[:, 0].unfold(0, 50, 1) * 1, FLOAT * 800, FLOAT * 51 * 50),
    "in place": (lambda: A.clone().add_(1), FLOAT * 120, FLOAT * 120),
    "in place with another": (lambda: A.clone().mul_(WIDE), FLOAT * (120 + 6), FLOAT * 120),
    "copy": (lambda: torch.empty(10, 6).copy_(A), FLOAT * 60, FLOAT * 60),
    "fill": (lambda: torch.empty(10, 6).fill_(1), 0, FLOAT * 60),
    "out": (lambda: torch.neg(A, out=torch.empty(10, 6)), FLOAT * 60, FLOAT * 60),
    "matmul with out": (lambda: torch.mm(A, W.t(), out=torch.empty(10, 5)), FLOAT * 90, FLOAT * 50),
    "zeros": (lambda: torch.zeros(10), 0, FLOAT * 10),
    "arange": (lambda: torch.arange(10), 0, INT * 10),
    "rows by index_select": (lambda: ROWS.index_select(0, IDS), FLOAT * 24 + INT * 3, FLOAT * 24),
    "rows by index": (lambda: ROWS[IDS], FLOAT * 24 + INT * 3, FLOAT * 24),
    "gather": (lambda: ROWS.gather(0, IDS.view(3, 1)), FLOAT * 3 + INT * 3, FLOAT * 3),
    "embedding": (lambda: F.embedding(IDS, ROWS), FLOAT * 24 + INT * 3, FLOAT * 24),
    "cat": (lambda: torch.cat((A, WIDE)), FLOAT * 66, FLOAT * 66),
    "layer norm": (lambda: F.layer_norm(A, (6,)), FLOAT * 60, FLOAT * (60 + 20)),
    "softmax": (lambda: torch.softmax(A, -1), FLOAT * 60, FLOAT * 60),
    "topk": (lambda: A.topk(2), FLOAT * 60, FLOAT * 20 + INT * 20),
    "gelu": (lambda: F.gelu(A), FLOAT * 60, FLOAT * 60),
    "convolution": (
        lambda: F.conv2d(torch.ones(1, 3, 8, 8), torch.ones(4, 3, 4, 4), torch.ones(4), stride=4),
        FLOAT * (192 + 192 + 4),
        FLOAT * (192 + 192 + 4 + 16),
    ),
    "to another dtype": (lambda: A.to(torch.bfloat16), FLOAT * 60, 2 * 60),
    "dropout that is off": (lambda: F.dropout(A, 0.5, training=False), 0, 0),
    "identity": (lambda: nn.Identity()(A), 0, 0),
}

VIEWS: dict[str, Callable[[], Any]] = {
    "view": lambda: A.view(6, 10),
    "reshape": lambda: A.reshape(6, 10),
    "flatten": lambda: A.flatten(),
    "unflatten": lambda: A.unflatten(1, (2, 3)),
    "transpose": lambda: A.transpose(0, 1),
    "permute": lambda: A.permute(1, 0),
    "t": lambda: A.t(),
    "slice": lambda: A[:, 1:4],
    "select": lambda: A[3],
    "expand": lambda: WIDE.expand(10, 6),
    "unsqueeze": lambda: A.unsqueeze(0).squeeze(0),
    "split": lambda: A.split(5),
    "chunk": lambda: A.chunk(3, dim=1),
    "unbind": lambda: A.unbind(0),
    "narrow": lambda: A.narrow(0, 1, 3),
    "detach": lambda: A.detach(),
    "contiguous": lambda: A.contiguous(),
    "to itself": lambda: A.to(torch.float32),
    "type_as": lambda: A.type_as(W),
    "empty": lambda: torch.empty(10, 10),
    "empty_like": lambda: torch.empty_like(A),
    "shape": lambda: A.shape[0] + A.numel(),
}


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference"])
@pytest.mark.parametrize("name", COUNTED)
def test_traffic_counted_by_hand(name: str, inference: bool) -> None:
    work, read, written = COUNTED[name]
    assert traffic(work, inference) == (read, written)


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_move_nothing(name: str, inference: bool) -> None:
    assert traffic(VIEWS[name], inference) == (0, 0)


SHAPES = [(2, 3, 10, 10, 4), (1, 2, 33, 33, 8), (2, 3, 10, 17, 4)]


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference"])
@pytest.mark.parametrize(("dtype", "e"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize(("b", "h", "nq", "nk", "d"), SHAPES)
def test_traffic_of_vanilla_attention(
    b: int, h: int, nq: int, nk: int, d: int, dtype: torch.dtype, e: int, inference: bool
) -> None:
    """Compulsory e(2 B H Nq d + 2 B H Nk d), the materialised scores 4e B H Nq Nk, and q * scale: one read, one write.

    q is scaled in a pass of its own, 2e B H Nq d, in place of a pass over the scores (6e).
    """
    q, k, v = torch.randn(b, h, nq, d, dtype=dtype), *(torch.randn(b, h, nk, d, dtype=dtype) for _ in range(2))
    read, written = traffic(lambda: vanilla.attend(q, k, v), inference)
    compulsory = e * (2 * b * h * nq * d + 2 * b * h * nk * d)
    assert read + written == compulsory + 4 * e * b * h * nq * nk + 2 * e * b * h * nq * d
    assert written == e * b * h * (nq * d + nq * nk + nq * nk + nq * d)


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference"])
@pytest.mark.parametrize(("dtype", "e"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize(("b", "h", "nq", "nk", "d"), SHAPES)
def test_traffic_of_flash_attention(
    b: int, h: int, nq: int, nk: int, d: int, dtype: torch.dtype, e: int, inference: bool
) -> None:
    """Compulsory, and the logarithms of the sums, one fp32 for every row of the scores."""
    q, k, v = torch.randn(b, h, nq, d, dtype=dtype), *(torch.randn(b, h, nk, d, dtype=dtype) for _ in range(2))

    def attend() -> None:
        with attending(flash):
            F.scaled_dot_product_attention(q, k, v)

    read, written = traffic(attend, inference)
    assert read == e * (b * h * nq * d + 2 * b * h * nk * d)
    assert written == e * b * h * nq * d + 4 * b * h * nq


def test_traffic_of_heads_that_lie_apart() -> None:
    """(B, N, H, d) as models have it: torch copies q, k and v before the two products, which is real traffic."""
    b, h, n, d = 2, 3, 10, 4
    q, k, v = (torch.randn(b, n, h, d).transpose(1, 2) for _ in range(3))
    apart = sum(traffic(lambda: vanilla.attend(q, k, v), True))
    dense = sum(traffic(lambda: vanilla.attend(q.contiguous(), k.contiguous(), v.contiguous()), True))
    assert apart == dense
    assert traffic(lambda: vanilla.attend(q, k, v), True) == traffic(lambda: vanilla.attend(q, k, v), False)


def test_stored_bytes() -> None:
    base = torch.zeros(4, 6)
    assert stored_bytes([]) == 0
    assert stored_bytes([base, base, base.view(4, 6)]) == 96
    assert stored_bytes([base[:2], base[2:]]) == 96
    assert stored_bytes([base, base[:2]]) == 96, "never above the storage"
    assert stored_bytes([base[:, :1].expand(4, 6)]) == 16
    assert stored_bytes([base, base.clone()]) == 192
    assert stored_bytes([base[:0]]) == 0


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_traffic_of_a_whole_model_is_the_same_in_both_modes(keep: float) -> None:
    plain = tiny.FAMILIES["vit"]()
    given = case(pruning="repshift", keep=keep, layers=(1,))
    made = step(plain.module, plain.inputs, given)
    measured = HbmProbe().measure(made)
    with torch.no_grad(), attending(flash), pruned(made.subject, repshift, given), TrafficModel() as again:
        made.forward()
    assert value(measured, "hbm_modelled_read") == again.read
    assert value(measured, "hbm_modelled_written") == again.written
    assert value(measured, "hbm_modelled") == again.read + again.written
    assert measured[0].source == "modelled"


def test_measured_traffic_is_null_with_a_reason() -> None:
    plain = tiny.FAMILIES["plain_torch"]()
    (measured,) = [m for m in HbmProbe().measure(step(plain.module, plain.inputs)) if m.metric == "hbm"]
    assert measured.samples == ()
    assert measured.reason


def test_the_model_counts_the_eager_twin_of_a_graph() -> None:
    eager = step(nn.Linear(6, 5), (A,))
    replay = Step(case(execution="graph"), eager.subject, nullcontext, lambda: None, lambda i: None, eager)
    assert value(HbmProbe().measure(replay), "hbm_modelled") == FLOAT * (5 + 60 + 30 + 50)


# --- fidelity ---------------------------------------------------------------------------------------------------------


class Says(nn.Module):
    """Gives its input times a factor, as logits or bare."""

    def __init__(self, classifies: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.classifies, self.factor = classifies, factor

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=x * self.factor) if self.classifies else x * self.factor


def test_top1_and_kl_by_hand() -> None:
    reference = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]]).log() + 3
    other = torch.tensor([[0.25, 0.5, 0.25], [0.9, 0.05, 0.05], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1]]).log() - 1
    assert agreement(reference, other).tolist() == [0, 1, 1, 0]
    log = math.log
    expected = [
        0.5 * log(2) + 0.25 * log(0.5),
        0.0,
        0.2 * log(2) + 0.2 * log(0.2 / 0.3),
        0.1 * log(0.2) + 0.8 * log(2),
    ]
    torch.testing.assert_close(divergence(reference, other), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_cosine_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [4.0, 3.0]])
    torch.testing.assert_close(cosine(a, b), torch.tensor([0.0, 0.96], dtype=torch.float64))


def test_no_input_is_compared_that_the_model_has_changed_before() -> None:
    class Spoils(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(-3).relu() + 1

    x, y = torch.randn(2, 6, 5)
    made = step(Spoils(), (x,), evaluation=((x,), (y,)))
    before = x.clone(), y.clone()
    found = {m.metric: m.samples for m in FidelityProbe(made.subject).measure(made)}
    assert found["fidelity_cosine"] == (pytest.approx(1, abs=1e-12),)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@pytest.mark.parametrize("classifies", [True, False])
def test_the_untouched_model_is_like_itself(classifies: bool) -> None:
    x = torch.randn(6, 5)
    module = Says(classifies)
    made = step(module, (x,), case(weights="trained"), evaluation=((x,), (x + 1,)))
    found = {m.metric: m.samples for m in FidelityProbe(made.subject).measure(made)}
    assert found.pop("fidelity_inputs") == (12.0,)
    if classifies:
        assert found == {"fidelity_top1": (100.0,) * 12, "fidelity_kl": (0.0,)}
    else:
        assert found == {"fidelity_cosine": (pytest.approx(1, abs=1e-12),)}


def test_random_weights_have_no_classes_to_keep() -> None:
    made = step(Says(True), (torch.randn(6, 5),))
    top1, kl, _ = FidelityProbe(made.subject).measure(made)
    assert not top1.samples and top1.reason and "random weights" in top1.reason and kl.samples == (0.0,)


@pytest.mark.parametrize("classifies", [True, False])
def test_an_output_of_zeros_has_no_fidelity_and_says_why(classifies: bool) -> None:
    """A head that begins with zeros: not a cosine of 0, nor a perfect KL."""
    made = step(Says(classifies), (torch.zeros(2, 5),))
    measured = [m for m in FidelityProbe(made.subject).measure(made) if m.metric != "fidelity_inputs"]
    assert measured and all(not m.samples and m.reason and m.reason.startswith("undefined: ") for m in measured)


def test_fidelity_is_the_mean_over_all_evaluation_inputs() -> None:
    """Two batches of two; the variant turns the sign of the second batch."""
    first, second = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    module = Says(True)
    made = step(module, (first,), case(weights="trained"), evaluation=((first,), (second,)))
    probe = FidelityProbe(made.subject)
    turned = Step(
        made.case,
        made.subject,
        made.active,
        made.forward,
        lambda i: SimpleNamespace(logits=i[0] if torch.equal(i[0], first) else -i[0]),
    )
    measured = probe.measure(turned)
    assert measured[0].metric == "fidelity_top1" and measured[0].samples == (100.0, 100.0, 0.0, 0.0)
    by_hand = [3 * (1 / (1 + math.exp(-3)) - 1 / (1 + math.exp(3))), math.tanh(0.5)]
    assert value(measured, "fidelity_kl") == pytest.approx(sum(by_hand) / 4, rel=1e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("classifies", [True, False])
def test_an_output_that_is_not_finite_is_said(wrong: float, classifies: bool) -> None:
    x = torch.randn(3, 4)
    module = Says(classifies)
    made = step(module, (x,))
    probe = FidelityProbe(made.subject)
    module.factor = wrong
    with pytest.raises(NotFinite, match="NaN or infinity"):
        probe.measure(made)


def test_fidelity_sees_pruning_and_repeats_random_draws() -> None:
    plain = tiny.FAMILIES["vit"]()
    from repshift_cli.reduction import random

    subject = tiny.subject(plain.module, plain.inputs)

    def measure(seed: int) -> float:
        given = case(pruning="random", keep=0.3, layers=(1,), seed=seed)

        @contextmanager
        def active() -> Iterator[None]:
            with torch.inference_mode(), attending(vanilla), pruned(subject, random, given):
                yield

        made = Step(given, subject, active, lambda: None, lambda i: call(plain.module, i))
        return value(FidelityProbe(subject).measure(made), "fidelity_kl")

    assert measure(0) == measure(0) > 0.001
    assert measure(0) != measure(1)


# --- through the builder of steps -------------------------------------------------------------------------------------


def test_the_host_timer_gives_every_sample() -> None:
    ran: list[int] = []
    samples = HostTimer().time(lambda: ran.append(1), 5)
    assert len(samples) == len(ran) == 5
    assert all(s > 0 for s in samples)
    assert isinstance(timer_for("cpu"), HostTimer)
    assert isinstance(timer_for("cuda:1"), CudaTimer)


def test_what_empties_the_caches_comes_ahead_of_each_forward_untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host and, with events that read the same clock, on a device."""
    clock, ran = [0], list[str]()

    def spend(what: str, milliseconds: int) -> None:
        ran.append(what)
        clock[0] += milliseconds * 10**6

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0

        def record(self) -> None:
            self.at = clock[0]

        def elapsed_time(self, end: Event) -> float:
            return (end.at - self.at) / 1e6

    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for made in (HostTimer, CudaTimer):
        ran.clear()
        assert made(lambda: spend("flush", 100)).time(lambda: spend("forward", 3), 2) == [3, 3]
        assert ran == ["flush", "forward"] * 2


def test_a_cpu_s_cache_is_as_large_as_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "size"
    monkeypatch.setattr(timers, "CPU_CACHE", told)
    assert timers.cache_bytes("cpu") == timers.UNKNOWN_CACHE
    told.write_text("24576K\n")
    assert timers.cache_bytes("cpu") == 24 << 20
    timers.flusher.cache_clear()
    assert timers.flusher("cpu")().numel() == 48 << 20
    timers.flusher.cache_clear()


def test_a_prepared_step_serves_every_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the step_builder, as bench does it: one model for all cases of a group, nothing left behind."""
    plain = tiny.FAMILIES["vit"]()
    subject = tiny.subject(plain.module.float(), {"pixel_values": plain.inputs["pixel_values"].float()})
    builds: list[Case] = []
    family = SimpleNamespace(build=lambda given: builds.append(given) or subject)  # type: ignore[func-returns-value]
    monkeypatch.setattr(builder.registry, "resolve_model", lambda name: name)
    load = builder.registry.load
    monkeypatch.setattr(builder.registry, "load", lambda part: family if part == "tiny" else load(part))
    shop = builder.StepBuilder("cpu")
    kinds = {"keep": 0.5, "layers": (1,), "operation": "mlp", "distance": "l2", "form": "paper"}
    kl = {}
    for given in (
        case(attention="vanilla"),
        case(attention="flash"),
        case(attention="flash", pruning="repshift", **kinds),
    ):
        made = shop.prepare(given)
        assert shop.parts.verify(made).endswith(f"×{tiny.DEPTH}")
        probes = (*shop.parts.memory(made), *shop.parts.probes(made))
        measured = [m for probe in probes for m in probe.measure(made)]
        assert {"fidelity_top1", "fidelity_kl", "memory_peak_allocated", "macs", "hbm_modelled", "hbm"} <= {
            m.metric for m in measured
        }
        kl[given.variant] = value(tuple(measured), "fidelity_kl")
    assert len(builds) == 1
    assert kl["vanilla"] < 1e-6
    assert kl["flash"] == 0
    assert kl["flash+repshift"] > 1e-4
    shop.prepare(case(batch=5))
    assert len(builds) == 2
