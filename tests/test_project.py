"""pyproject.toml beside the requirements files: `pip install -e .`, `uv sync` and `make install` bring the same."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

# pytest brings tomli where Python has no tomllib
tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[1]


def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    return table


def lines(name: str) -> list[str]:
    """The lines of a requirements file, without comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in (line.split("#")[0].strip() for line in text.splitlines()) if line]


def requirements(name: str) -> list[str]:
    """What `pip install -r` finds in a file and in those that it includes."""
    found = []
    for line in lines(name):
        found += requirements(line.removeprefix("-r ")) if line.startswith("-r ") else [str(Requirement(line))]
    return found


def test_the_project_needs_what_the_requirements_files_list() -> None:
    """setuptools refuses `-r`, so a file moved behind an include would be missing from `pip install -e .`."""
    dynamic = setuptools_table()["dynamic"]
    listed = [str(Requirement(line)) for name in dynamic["dependencies"]["file"] for line in lines(name)]
    assert listed == requirements("requirements.txt")
    for extra in ("dev", "notebook", "reasoning-gym"):
        assert dynamic["optional-dependencies"][extra] == {"file": [f"requirements-{extra}.txt"]}
        assert [str(Requirement(line)) for line in lines(f"requirements-{extra}.txt")]


def test_what_may_break_has_an_upper_bound() -> None:
    """An installation next year would bring a major version that nobody has tried."""
    for path in ROOT.glob("requirements*.txt"):
        for requirement in map(Requirement, requirements(path.name)):
            bounded = any(specifier.operator == "<" for specifier in requirement.specifier)
            assert bounded or requirement.name.startswith("types-"), f"{path.name}: {requirement}"


def test_every_package_is_listed() -> None:
    """A new room without __init__.py, or a new package at the top, would be missing from an installation."""
    patterns = {pattern.removesuffix("*") for pattern in setuptools_table()["packages"]["find"]["include"]}
    rooms = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()}
    assert patterns == rooms - {"tests"}
    for top in patterns:
        for file in (ROOT / top).rglob("*.py"):
            if "raw-data" not in file.parts:
                assert (file.parent / "__init__.py").is_file(), file.parent
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert set(setuptools_table()["py-modules"]) == scripts
