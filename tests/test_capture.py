"""Graphs on a CPU with the capture played: no mask that nobody gave, no workspace left behind, the replay verified."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers
import transformers.masking_utils
from fake_cuda import Graphs, is_tracing
from tiny import FAMILIES, case
from torch import Tensor
from torch._C._autograd import DeviceType

from repshift_cli.benchmark import builder, execution, failures, worker
from repshift_cli.benchmark.derived import paced_by_host
from repshift_cli.benchmark.pool import Pool
from repshift_cli.benchmark.verification import WrongKernel, hold_against, verify
from repshift_cli.kernels.sdpa import heard_by
from repshift_cli.machine import device as devices
from repshift_cli.probes import launches
from repshift_cli.probes.memory import MemoryProbe
from repshift_cli.profiling import kineto
from repshift_cli.records import Case, Measurement, Record, Step

PRUNED: dict[str, Any] = {"pruning": "repshift", "keep": 0.5, "layers": (1, 2)}


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50}


def of_tokens(family: str) -> tuple[Any, dict[str, Tensor]]:
    """A tiny BERT or Llama in fp64 that is given no mask, and its inputs."""
    torch.manual_seed(0)
    if family == "bert":
        model: Any = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False)
    else:
        model = transformers.LlamaModel(transformers.LlamaConfig(**SIZES, num_key_value_heads=2, use_cache=False))
    return model.eval().double(), {"input_ids": torch.randint(50, (2, 20))}


def eager(family: str, **changes: Any) -> Step:
    plain = FAMILIES[family]() if family in FAMILIES else None
    module, inputs = (plain.module, plain.inputs) if plain else of_tokens(family)
    return builder.eager_step(case(**{"attention": "flash", **changes}), tiny.subject(module, inputs))


def output(step: Step) -> Tensor:
    with step.active():
        out = step.forward()
    return (out if isinstance(out, Tensor) else out[0]).clone()


# --- masks ------------------------------------------------------------------------------------------------------------


def test_transformers_is_told_of_no_tracing_where_no_mask_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 5.17 asks while a stream captures; what it asks of a mask that was given is answered as ever."""
    monkeypatch.setattr(transformers.masking_utils, "is_tracing", lambda tensor=None: True)
    assert is_tracing()
    with execution.masks_as_in_eager():
        assert not is_tracing() and transformers.masking_utils.is_tracing(torch.ones(1))
    assert is_tracing()


def test_it_is_told_so_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[bool, bool]] = []
    step = eager("vit")
    graphs = Graphs(monkeypatch)
    step.subject.module.register_forward_pre_hook(lambda *_: told.append((graphs.capturing, is_tracing())))
    execution.graph(step)
    assert told == [(False, False)] * 3 + [(True, False)]


def test_a_decoder_that_keeps_no_cache_is_captured_without_a_mask_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks whether its positions are those of several sequences, which cannot be asked while it is captured."""
    step, masks = eager("llama"), list[tuple[bool, bool]]()
    graphs = Graphs(monkeypatch)
    with heard_by(lambda call: masks.append((graphs.capturing, call.attn_mask is not None))):
        execution.graph(step)
    assert set(masks) == {(False, False), (True, False)}


@pytest.mark.parametrize("family", ["vit", "vivit", "bert", "llama", "torch_encoder"])
@pytest.mark.parametrize("pruning", [{}, PRUNED], ids=["none", "repshift"])
def test_a_captured_forward_is_the_eager_one(
    family: str, pruning: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under transformers 5.17 the mask that it makes while it is captured is refused by flash, and is not cut."""
    step = eager(family, **pruning)
    expected = output(step)
    graphs = Graphs(monkeypatch)
    captured = execution.graph(step)
    torch.testing.assert_close(output(captured), expected, rtol=0, atol=1e-12)
    assert graphs.log == ["free", "capture", "free", "replay"]


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("an illegal memory access was encountered", True),
        ("invalid program counter", True),
        ("unknown error", True),
        ("out of memory", False),
        ("operation not permitted when stream is capturing", False),
    ],
)
def test_what_cuda_says_of_a_context_that_is_lost(said: str, lost: bool) -> None:
    """cudaGetErrorString of the errors that stay, and of some that do not."""
    assert failures.is_poison(RuntimeError(f"CUDA error: {said}\nCUDA kernel errors might be ...")) == lost


# --- the replay is what is verified -----------------------------------------------------------------------------------

LAYER = {
    "sm90_xmma_gemm_bf16bf16": 6,
    "flash_fwd_kernel<128>": 1,
    "vectorized_layer_norm_kernel": 2,
    "vectorized_elementwise_kernel<4, add>": 2,
}
TWIN = Counter({name: 12 * count for name, count in LAYER.items()})


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"nvjet_hsh_128x128_splitK": 12},
        {"Memcpy DtoD (Device -> Device)": 3, "vectorized_elementwise_kernel<4, FillFunctor<long>>": 2},
    ],
    ids=["same", "products", "copies and seeds"],
)
def test_a_replay_that_differs_in_products_and_copies_alone_passes(own: dict[str, int]) -> None:
    hold_against(TWIN, TWIN + Counter(own))


def test_a_replay_with_a_mask_is_another_forward() -> None:
    masked = TWIN + Counter({"elementwise_kernel<where>": 12, "arange": 1})
    with pytest.raises(WrongKernel) as raised:
        hold_against(TWIN, masked)
    assert str(raised.value) == (
        "the captured graph runs 73 kernels besides products and its eager twin 60: "
        "more of elementwise_kernel<where> ×12, arange ×1; fewer of none"
    )


class Event:
    def __init__(self, name: str, device: DeviceType, annotation: bool = False) -> None:
        self.name, self.device_type, self.is_user_annotation = name, device, annotation
        self.time_range = SimpleNamespace(elapsed_us=lambda: 250)


def verified(patch: pytest.MonkeyPatch, replayed: dict[str, int] | None, kernels: str) -> str:
    """The verdict of `verify` where the eager twin runs TWIN and the replay TWIN and more (None: nothing is seen)."""
    twin = eager("vit")
    device = {**vars(twin.case), "device": "cuda", "execution": "graph"}
    graph = Step(Case(**device), twin.subject, twin.active, twin.forward, twin.run, eager=twin)

    def events(step: Step) -> list[Any]:
        ran = TWIN if step is not graph else Counter() if replayed is None else TWIN + Counter(replayed)
        host = [Event("aten::_scaled_dot_product_flash_attention", DeviceType.CPU)] * tiny.DEPTH
        return host + [Event(n, DeviceType.CUDA) for n, count in ran.items() for _ in range(count)]

    patch.setattr(kineto, "events_of", events)
    return verify(graph, ("aten::_scaled_dot_product_flash_attention",), kernels)


def test_the_kernels_of_a_graph_are_those_of_its_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verified(monkeypatch, {}, r"flash_fwd\w*") == f"flash_fwd_kernel ×{tiny.DEPTH}"
    with pytest.raises(WrongKernel, match="besides products and its eager twin 60"):
        verified(monkeypatch, {"elementwise_kernel<where>": 12}, r"flash_fwd\w*")


def test_a_replay_of_which_the_profiler_shows_nothing_is_not_said_to_run_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = verified(monkeypatch, None, r"flash_fwd\w*")
    assert told == f"flash_fwd_kernel ×{tiny.DEPTH}, of its eager twin (the profiler shows no kernel of a replay)"
    monkeypatch.setattr(kineto, "events_of", lambda _: [])
    _, kernels, busy = launches.LaunchProbe().measure(eager("vit", device="cuda"))
    assert kernels.samples == busy.samples == () and kernels.reason == busy.reason == launches.UNSEEN


def test_a_range_around_kernels_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile opens one around each graph, which comes again on the device, as long as all of its kernels."""
    events = [Event("triton_poi_fused_add", DeviceType.CUDA), Event("## Call Graph ##", DeviceType.CUDA, True)]
    events += [Event("## Call Graph ##", DeviceType.CPU, True)]
    monkeypatch.setattr(kineto, "events_of", lambda _: events)
    _, kernels, busy = launches.LaunchProbe().measure(eager("vit", device="cuda"))
    assert (kernels.samples, busy.samples) == ((1.0,), (0.25,))
    assert kineto.names(events, kineto.DEVICE) == {"triton_poi_fused_add": 1}
    assert kineto.names(events, kineto.HOST) == {"## Call Graph ##": 1}


# --- a capture that fails ---------------------------------------------------------------------------------------------

WAITS = "CUDA error: operation not permitted when stream is capturing"


@pytest.mark.parametrize("invalidated", [True, False])
def test_a_capture_that_cannot_be_ended_takes_the_process_with_it(
    invalidated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch does it: what breaks the capture is overlaid by that it cannot be ended; else it comes as it is."""
    step = eager("vit")
    graphs = Graphs(monkeypatch, invalidated)

    def waits(*_: Any) -> None:
        if graphs.capturing:
            raise RuntimeError(WAITS)

    step.subject.module.register_forward_pre_hook(waits)
    with pytest.raises(Exception) as raised:
        execution.graph(step)
    assert failures.is_poison(raised.value) == invalidated
    told = failures.reason_of(raised.value)
    assert told == "no CUDA graph can hold it: " * invalidated + f"RuntimeError: {WAITS}"


# --- CUPTI stays attached ---------------------------------------------------------------------------------------------


def test_what_is_timed_behind_a_profiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison's own passes come after its rounds; another comparison's came before."""
    shop = builder.StepBuilder("cpu")
    step = eager("vit")
    monkeypatch.setattr(kineto, "_attached", False)
    shop.parts.before()
    with kineto.profiler(on_cuda=True):
        pass
    assert kineto.attached()
    assert shop.parts.derive(step, [], 1.0)[1] == []
    shop.parts.before()
    assert shop.parts.derive(step, [], 1.0)[1] == [builder.BEHIND_A_PROFILER]


def test_memory_is_freed_by_a_torch_without_its_private_call_too(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[str] = []
    cuda = SimpleNamespace(is_available=lambda: True, empty_cache=lambda: freed.append("cache"))
    monkeypatch.setattr(devices, "import_torch", lambda: SimpleNamespace(_C=SimpleNamespace(), cuda=cuda))
    devices.free_memory()
    assert freed == ["cache"]


def test_memory_is_measured_behind_what_others_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuBLAS' workspaces of other streams count as allocated: they go before the forward whose workspace rests."""
    log: list[str] = []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: 1)
    step = eager("vit", device="cuda")
    step.subject.module.register_forward_pre_hook(lambda *_: log.append("forward"))
    MemoryProbe(lambda: 1, lambda: 1, lambda: log.append("free")).measure(step)
    assert log == ["free", "forward", "forward"]


@pytest.mark.parametrize(("spent", "processes"), [(False, 1), (True, 3)])
def test_what_is_timed_next_gets_a_process_that_has_not_profiled(spent: bool, processes: int) -> None:
    crew = Crew(spent)
    tasks = [object(), object(), object()]
    source: Any = SimpleNamespace(take=lambda last: tasks.pop() if tasks else None)
    assert list(Pool(crew).carry_out(source, Quiet())) == []  # type: ignore[arg-type]
    assert crew.hired == processes and crew.ended == (processes if spent else 0)


def test_a_worker_says_that_it_has_profiled_only_after_a_task_that_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed, recorded = Record(case(), "failed", "reason"), ("a breakdown", None)
    for attached, value, spent in ((True, timed, True), (True, recorded, False), (False, timed, False)):
        monkeypatch.setattr(kineto, "_attached", attached)
        sent: list[Any] = []
        link = SimpleNamespace(send=sent.append)
        task = SimpleNamespace(perform=lambda _, value=value: iter([value]))
        worker._answer(task, SimpleNamespace(link=link), None)  # type: ignore[arg-type]
        assert sent == [("result", value), ("done", spent)]


class Quiet:
    def phase(self, text: str) -> None: ...

    def update(self, word: Any) -> None: ...

    def next(self) -> None: ...


class Crew:
    """One place, whose workers answer every task with nothing, and say whether they have profiled."""

    places = 1

    def __init__(self, spent: bool) -> None:
        self.spent, self.hired, self.ended = spent, 0, 0
        self.free = [0]

    def arrived(self) -> list[int]:
        free, self.free = self.free, []
        return free

    def hire(self, place: int) -> Crew:
        self.hired += 1
        self.place, self.task, self.last = place, None, None
        return self

    def give(self, task: Any) -> None:
        self.task = task

    def wait(self, seconds: float) -> list[Crew]:
        return [self]

    def messages(self) -> list[tuple[Any, ...]]:
        return [("done", self.spent)]

    def death(self) -> None: ...

    def end(self) -> None:
        self.ended += 1


def test_what_cupti_may_lose_at_the_head_of_a_session_is_none_of_the_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph and its eager twin are held against each other by the number of their kernels."""
    ran: list[str] = []
    step = eager("vit", device="cuda")
    step.subject.module.register_forward_pre_hook(lambda *_: ran.append("forward"))
    seen = [Event("at::cuda::(anonymous namespace)::spin_kernel(long)", DeviceType.CUDA)]
    seen += [Event("flash_fwd_kernel", DeviceType.CUDA)]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: ran.append("wait"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: ran.append("spin"))
    monkeypatch.setattr(kineto, "profiler", lambda _: nullcontext(SimpleNamespace(events=lambda: seen)))
    assert [e.name for e in kineto.events_of(step)] == ["flash_fwd_kernel"]
    assert ran == ["forward", "wait", *["spin"] * kineto.HEAD, "wait", "forward", "wait"]


def test_the_host_alone_attaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto, "_attached", False)
    assert kineto.events_of(eager("vit")) and not kineto.attached()


# --- who sets the pace ------------------------------------------------------------------------------------------------


def busy(milliseconds: float) -> list[Measurement]:
    return [launches.BUSY.of(milliseconds)]


def test_bench_says_when_the_host_sets_the_pace() -> None:
    (eager_words,) = paced_by_host(busy(1.2), 4.0, "eager")
    assert eager_words == (
        "the host sets the pace: the kernels take 1.20 of 4.00 ms, so fewer tokens save little; "
        "--cuda-graph, or a larger batch, shows what the device can do"
    )
    assert "; a larger batch shows" in paced_by_host(busy(1.2), 4.0, "graph")[0]
    assert paced_by_host(busy(2.8), 4.0, "eager") == paced_by_host([], 4.0, "eager") == []


def test_the_records_warnings_say_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto, "_attached", False)
    shop = builder.StepBuilder("cpu")
    shop.parts.before()
    _, words = shop.parts.derive(eager("vit"), busy(1.0), 2.0)
    assert len(words) == 1 and words[0].startswith("the host sets the pace")
