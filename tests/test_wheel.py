"""The wheel holds the package, its schema, its types and its profiles, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_module_is_there(names: set[str]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "repshift_cli").rglob("*.py")}
    assert modules and modules <= names


def test_the_schema_and_the_types_are_there(names: set[str]) -> None:
    assert {"repshift_cli/records/run.schema.json", "repshift_cli/py.typed"} <= names


def test_exactly_the_profiles_of_the_top_level_ship(names: set[str]) -> None:
    shipped = {name.removeprefix("repshift_cli/profiles/") for name in names if "/profiles/" in name}
    assert shipped == {path.name for path in (ROOT / "profiles").glob("*.toml")} != set()


def test_nothing_else_ships(names: set[str]) -> None:
    assert not [name for name in names if name.endswith(".md")], "the rooms' pages are for readers of the repository"
    assert {name.split("/")[0].split("-")[0] for name in names} == {"repshift_cli", "repshift"}


def test_the_wheel_runs_and_finds_its_profiles(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import repshift_cli.sweep.profiles as a; print(a.__file__, *a.shipped_profiles())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, *profiles = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert set(profiles) == {path.stem for path in (ROOT / "profiles").glob("*.toml")}


def test_the_console_script_is_declared(wheel: Path, names: set[str]) -> None:
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "repshift = repshift_cli.cli:main" in zipfile.ZipFile(wheel).read(entry).decode()
