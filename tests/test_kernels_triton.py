"""The Triton kernels against their plain twins: in Triton's interpreter on a CPU, for real on a GPU, and compiled.

The interpreter is chosen when triton is imported, for the whole process, so `test_in_the_interpreter` runs this file
again in one of its own, and with it `test_kernels_drawn`. A machine with a GPU needs nothing but pytest here, and every
width, dtype and power of two is compiled anew there: so the sizes are few.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repshift_cli.kernels import paths
from repshift_cli.kernels.cut import gather, gather_add
from repshift_cli.kernels.select import top
from repshift_cli.kernels.shift import distance, moved_from

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed")
interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in the process of test_in_the_interpreter")
on_each_device = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=[needs_triton, interpreter]),
        pytest.param("cuda", marks=[needs_triton, pytest.mark.gpu]),
    ],
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("l1", "l2", "cosine")


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="is in the interpreter")
def test_in_the_interpreter() -> None:
    files = (__file__, str(Path(__file__).with_name("test_kernels_drawn.py")))
    command = [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += ["-k", "cpu or drawn"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    run = subprocess.run(command, env={**env, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "passed" in run.stdout and "skipped" not in run.stdout, run.stdout[-300:]


def kernel(f: Any, *args: Any) -> Tensor:
    with paths.using("triton"), paths.seen() as ran:
        out = f(*args)
    assert [name.partition(":")[2] for name in ran] == ["triton"]
    return out


def twin(f: Any, *args: Any) -> Tensor:
    with paths.using("torch"):
        return f(*args)


def normal(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(scores: Tensor, expected: Tensor) -> None:
    """Within rounding of sums in fp32; not a number where the other is none."""
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected.double(), rtol=2e-5, atol=2e-6, equal_nan=True)


# --- score ------------------------------------------------------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1, 8192), (1, 3, 1025), (1, 257, 1)])
def test_scores_at_the_edges(device: str, shape: tuple[int, int, int], kind: str) -> None:
    a, b = (normal(*shape, device=device, seed=s) for s in (1, 2))
    expected = twin(distance, a.double(), b.double(), kind)
    close(kernel(distance, a, b, kind), expected)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (a, b)]  # C is not the last in memory
    close(kernel(distance, *strided, kind), expected)


@on_each_device
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_broken_tokens(device: str, kind: str) -> None:
    moved, origin = (normal(1, 4, 5, device=device, seed=s) for s in (1, 2))
    moved[0, 1, 2], moved[0, 2, 0] = float("nan"), float("inf")
    scores = kernel(distance, moved, origin, kind)
    close(scores, twin(distance, moved, origin, kind))
    assert scores.isfinite().tolist() == [[True, False, False, True]]


@on_each_device
@pytest.mark.parametrize("dtypes", [(d, d) for d in DTYPES] + [(torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 70)])
def test_scores_behind_a_prefix(
    device: str, shape: tuple[int, int, int], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Slices as the hooks see them, odd sizes, in every dtype and in two at once."""
    batch, tokens, width = shape
    a, b = (
        normal(batch, 1 + tokens, width, dtype=d, device=device, seed=s)[:, 1:] for s, d in enumerate(dtypes, start=1)
    )
    for kind in KINDS:
        close(kernel(distance, a, b, kind), twin(distance, a.double(), b.double(), kind))
        close(kernel(moved_from, a, b, kind), twin(moved_from, a.double(), b.double(), kind))


# --- select -----------------------------------------------------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize("tokens", [1, 196, 1024, 1025, 8191, 8192])
def test_selection_from_many(device: str, tokens: int) -> None:
    ranks = torch.randperm(tokens, generator=torch.Generator().manual_seed(0)).to(device)
    for scores in (ranks.float(), (ranks // 7).float(), normal(2 * tokens, device=device)[::2]):
        for count in {1, tokens // 2 or 1, tokens}:
            given = scores.unsqueeze(0)
            assert torch.equal(kernel(top, given, count), twin(top, given, count))


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_selection_among_what_is_no_number(device: str, dtype: torch.dtype) -> None:
    """NaN counts as +inf, -0.0 as 0.0, and of equal scores the lower position is kept."""
    rows = [[float("nan"), float("inf"), 1.0, -0.0, 0.0, -1.0, float("-inf")], [2.0, 2.0, 2.0, 3.0, 3.0, 1.0, 1.0]]
    by_rank = [[0, 1, 2, 3, 4, 5, 6], [3, 4, 0, 1, 2, 5, 6]]
    scores = torch.tensor(rows, dtype=dtype, device=device)
    for count in range(1, 8):
        expected = [sorted(ranked[:count]) for ranked in by_rank]
        assert kernel(top, scores, count).tolist() == expected
        assert twin(top, scores, count).tolist() == expected


# --- cut --------------------------------------------------------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize("dtypes", [(d, d) for d in DTYPES] + [(torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize(("tokens", "width", "prefix"), [(1, 1, 0), (9, 3, 1), (5, 1025, 3)])
def test_cuts_of_odd_sizes(
    device: str, tokens: int, width: int, prefix: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """Of batch-last tensors, in every dtype and in two at once; the first with one row for all samples too."""
    indices = twin(top, normal(2, tokens, device=device), -(-tokens // 2))
    whole = [(8 * normal(prefix + tokens, 2, width, seed=s)).round() for s in (1, 2)]  # sums are exact in 16 bits
    middle, branch = (t.to(device, d).transpose(0, 1) for t, d in zip(whole, dtypes, strict=True))
    shared = middle[:1].expand(2, -1, -1)
    for hidden in (middle, shared):
        assert torch.equal(kernel(gather, hidden, prefix, indices), twin(gather, hidden, prefix, indices))
    expected = twin(gather, middle + branch, prefix, indices)
    assert torch.equal(kernel(gather_add, middle, branch, prefix, indices), expected)


# --- on the device ----------------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.gpu
def test_the_chain_is_triton_captured_and_never_waits() -> None:
    """Three launches in a CUDA graph, with any synchronisation an error; the graph follows its inputs."""
    middle, branch = (normal(4, 197, 384, dtype=torch.bfloat16, device="cuda", seed=s) for s in (1, 2))

    def chain() -> Tensor:
        scores = distance(branch[:, 1:], middle[:, 1:], "l2")
        return gather_add(middle, branch, 1, top(scores, 157))

    with torch.inference_mode():
        with paths.seen() as ran:
            chain()
        assert ran == ["cut:triton", "score:triton", "select:triton"]
        torch.cuda.set_sync_debug_mode("error")
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = chain()
            branch.mul_(0.5)
            graph.replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(out, chain())


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("ones", [False, True], ids=["sizes", "ones"])
def test_every_kernel_compiles_for_hopper(ones: bool) -> None:
    """To PTX and machine code, without a device; Triton makes constants of arguments that are 1."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from repshift_cli.kernels import _cut_triton, _select_triton, _shift_triton

    tile = {"ROWS": 4, "COLUMNS": 1024}
    forms = [(2, "distance"), (1, "length"), (0, "distance"), (0, "moved_from")]
    cases: list[tuple[Any, dict[str, Any]]] = [
        *((_shift_triton._score, {"WIDTH": 1100, "ORDER": o, "FORM": f, **tile}) for o, f in forms),
        *((_select_triton._top, {"BLOCK": n, "BITS": b}) for n, b in ((256, 4), (8192, 1))),
        *((_cut_triton._cut, {"ADD": add, **tile}) for add in (False, True)),
    ]
    pointers = {n: "*bf16" for n in ("first", "second", "hidden", "branch", "out")} | {"scores": "*fp32"}
    for function, constants in cases:
        types = {n: pointers.get(n, "*i64" if n == "indices" else "i32") for n in function.arg_names}
        if ones:
            constants = {**dict.fromkeys((n for n, t in types.items() if t == "i32"), 1), **constants}
        signature = {n: "constexpr" if n in constants else t for n, t in types.items()}
        indexed = {(function.arg_names.index(n),): v for n, v in constants.items()}
        built = compile(ASTSource(function, signature, indexed), target=GPUTarget("cuda", 90, 32))
        assert built.asm["cubin"]
