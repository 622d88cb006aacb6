"""The walls between the rooms hold: who may import what, read from the source of every file."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "repshift_cli"
TENSORS = {"torch", "numpy", "PIL", "transformers", "safetensors", "huggingface_hub"}
WALLS: dict[str, set[str]] = {
    "records": {"records"},
    "registry": {"records", "machine.packages"},
    "sweep": {"records", "registry", "sweep"},
    "analysis": {"records", "analysis", "machine.packages", "numpy", "ruptures"},
    "gate": {"records", "analysis", "machine.cores", "machine.guardian", "machine.memory", "machine.turns", "gate"},
    "profiling": {"records", "kernels", "profiling", "torch"},
    "machine": {"records", "machine", "torch", "pynvml"},
    "counters": {"records", "registry", "machine", "counters"},
    "kernels": {"records", "kernels", "triton", "mamba_ssm", *TENSORS},
    "models": {"records", "machine.packages", "kernels", "models", "av", "timm", "torchvision", *TENSORS},
    "attention": {
        "records",
        "machine.packages",
        "kernels",
        "attention",
        "flash_attn",
        "flash_attn_interface",
        *TENSORS,
    },
    "reduction": {"records", "kernels", "profiling.annotations", "reduction", *TENSORS},
    "operators": {"records", "machine.packages", "kernels", "operators", "flash_attn", "fla", "torch"},
    "inspection": {"records", "kernels", "reduction", "operators", "probes.memory", "inspection", "torch"},
    "probes": {
        "records",
        "kernels",
        "profiling.annotations",
        "profiling.kineto",
        "profiling.recorder",
        "probes",
        *TENSORS,
    },
    "evaluation": {
        "records",
        "registry",
        "sweep",
        "analysis",
        "machine",
        "models.inputs",
        "models.base.text",
        "benchmark.builder",
        "benchmark.engine",
        "benchmark.failures",
        "benchmark.launchers",
        "benchmark.planning",
        "benchmark.runner",
        "evaluation",
        "datasets",
        "pyarrow",
        "timm",
        *TENSORS,
    },
    "tuning": {
        "records",
        "registry",
        "sweep",
        "analysis",
        "machine",
        "benchmark.builder",
        "evaluation",
        "models.inputs.images",
        "probes.fidelity",
        "tuning",
        "optuna",
        *TENSORS,
    },
    "renderers": {"records", "analysis", "gate.verdict", "profiling", "renderers", "rich", "PIL"},
}
"""What each room may import besides the standard library and the package's own version: rooms, or a module of one."""

FREE = {"benchmark", "commands", "cli", "pruning", "__init__", "__main__"}
"""The rooms that assemble the others; but `benchmark` knows neither commands nor renderers."""


def imports(source: str, package: str) -> set[str]:
    """What a file imports anywhere in it: the top names of other packages, and of this one `room` or `room.module`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: -node.level + 1 or None]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names |= {f"{module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    own = {n.removeprefix("repshift_cli.") for n in names if n.startswith("repshift_cli.")} - {"__version__"}
    return own | {n.split(".")[0] for n in names if n.split(".")[0] != "repshift_cli"}


def may(name: str, allowed: set[str]) -> bool:
    """Whether `room.module.name` lies in an allowed room, or in the one module of it that is allowed."""
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


def of_the_files(wrong: Callable[[Path], Iterable[str]]) -> dict[str, list[str]]:
    """What is wrong with each file where something is: one test for all of them, for there are hundreds."""
    found = {str(path.relative_to(PACKAGE)): sorted(wrong(path)) for path in FILES}
    return {path: words for path, words in found.items() if words}


def test_a_file_imports_only_what_its_room_may() -> None:
    assert len(FILES) > 400
    assert not of_the_files(beyond_its_walls)


def beyond_its_walls(path: Path) -> set[str]:
    room, found = room_of(path), imported(path)
    if room == "benchmark":
        return {name for name in found if may(name, {"commands", "renderers", "cli", "rich", "typer"})}
    return set() if room in FREE else {name for name in found if not may(name, WALLS[room])}


def test_what_is_private_is_used_in_its_own_room() -> None:
    assert not of_the_files(private_to_others)


def private_to_others(path: Path) -> list[str]:
    private = [n for n in imported(path) if any(part.startswith("_") and part != "__init__" for part in n.split("."))]
    return [name for name in private if name.split(".")[0] != room_of(path)]


@cache
def imported(path: Path) -> set[str]:
    package = ".".join(("repshift_cli", *path.relative_to(PACKAGE).parts[:-1]))
    return imports(path.read_text(encoding="utf-8"), package) - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("line", "package", "name"),
    [
        ("import torch.nn as nn", "repshift_cli", "torch"),
        ("def f():\n    from torch import nn", "repshift_cli", "torch"),
        ("from repshift_cli import stats", "repshift_cli", "stats"),
        ("from repshift_cli.models.vit import build", "repshift_cli.probes", "models.vit.build"),
        ("from . import stats", "repshift_cli", "stats"),
        ("from ..models import vit", "repshift_cli.probes", "models.vit"),
        ("import importlib\nimportlib.import_module('torch')", "repshift_cli", "torch"),
    ],
)
def test_every_way_to_import_is_seen(line: str, package: str, name: str) -> None:
    assert name in imports(line, package)


def test_light_rooms_bring_no_torch_and_a_worker_no_compiler() -> None:
    """What torch.compile needs takes as long to import as torch itself, in every process that measures."""
    light = {"records", "analysis", "registry", "sweep", "machine", "renderers", "gate", "counters", "profiling"}
    modules = [".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in FILES if room_of(p) in light]
    modules = [m.removesuffix(".__init__") for m in modules if m != "repshift_cli.profiling.recorder"] + [
        "repshift_cli.benchmark.runner"
    ]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += "heavy = {'torch', 'transformers', 'pynvml'} & set(sys.modules)\n"
    code += "from repshift_cli.benchmark import builder\n"
    code += "heavy |= {'torch._dynamo', 'sympy', 'scipy', 'torchvision', 'transformers', 'timm'} & set(sys.modules)\n"
    code += "sys.exit(' '.join(heavy) or None)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_no_function_is_longer_than_a_screen() -> None:
    assert not of_the_files(long_functions)


def long_functions(path: Path) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, functions)]
    return [n.name for n in found if n.end_lineno and n.end_lineno - n.lineno >= 60]


def test_no_file_is_longer_than_400_lines() -> None:
    assert not [str(p.relative_to(PACKAGE)) for p in FILES if len(p.read_text(encoding="utf-8").splitlines()) > 400]
