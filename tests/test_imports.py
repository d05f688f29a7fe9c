"""Imports run one way: scripts → utils → models and dataset. A shortcut would make the parts unusable on their own."""

from __future__ import annotations

import ast
import re
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


# HRM's states, levels and classes. A message may show one as an example, in the middle of a sentence.
OF_HRM = re.compile(r"\b(z_[HL]|[HL]_(level|init)|inner\.puzzle_emb\.weights|HierarchicalReasoning\w*)\b")


def names(path: Path) -> set[str]:
    """Everything that a file calls by its name: variables, attributes, imports, definitions, arguments and keys."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(name) | ast.arg(name) | ast.keyword(name) | ast.alias(name) if name:
                found.add(name)
            case ast.ClassDef(name) | ast.FunctionDef(name):
                found.add(name)
            case ast.Attribute():
                found.add(ast.unparse(node))
            case ast.Constant(str(text)) if " " not in text:
                found.add(text)
    return found


def test_only_the_file_of_an_architecture_knows_it() -> None:
    """Another one would have to be added in all places that do."""
    files = [path for package in (*FORBIDDEN, "common") for path in (ROOT / package).rglob("*.py")]
    files = [path for path in files if ROOT / "models" / "hrm" not in path.parents]
    for path in (*files, ROOT / "pretrain.py", ROOT / "evaluate.py"):
        assert list(filter(OF_HRM.search, names(path))) == [], path
    core = names(ROOT / "models" / "hrm" / "hrm_act_v1.py")
    assert {"z_H", "self.L_level", "HierarchicalReasoningModel_ACTV1"} <= core
