"""Imports run one way: scripts → utils → models and dataset. A shortcut would make the parts unusable on their own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "dataset": {"mlx", "models", "utils", "pretrain", "evaluate", "wandb", "hydra"},
    "models": {"dataset", "utils", "pretrain", "evaluate", "wandb", "hydra", "omegaconf"},
    "utils": {"pretrain", "evaluate"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 3
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path
