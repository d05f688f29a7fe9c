"""Imports run one way: scripts → utils → dataset and models → common. A shortcut would make the parts unusable on their
own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "common": {"common"},
    "dataset": {"common", "dataset"},
    "models": {"common", "models"},
    "utils": {"common", "dataset", "models", "utils"},
}
PROJECT = {*MAY_IMPORT, "pretrain", "evaluate", "tests"}
NEVER: dict[str, set[str]] = {
    "common": {"mlx", "wandb", "hydra", "omegaconf"},
    "dataset": {"mlx", "wandb", "hydra", "omegaconf"},
    "models": {"wandb", "hydra", "omegaconf", "logging"},
    "utils": set(),
}
OF_TORCH = {"torch_model.py", "torch_peer.py"}  # of utils/bench, for a process of its own
# What asks for the device, and for the machine
OF_THE_DEVICE = re.compile(r"mx\.(cpu|gpu|Device|(set_)?default_(device|stream)|(new_)?stream|metal|cuda)\b")
OF_THE_MACHINE = {"os", "threading"}
# What runs code that it reads, or sends objects as pickles. pickletools only takes pickles apart
RUNS_WHAT_IT_READS = {"pickle", "_pickle", "marshal", "shelve", "multiprocessing", "dill", "cloudpickle", "joblib"}


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    files = [path for path in sorted((ROOT / package).rglob("*.py")) if "raw-data" not in path.parts]
    assert len(files) > 3
    for path in files:
        assert top_level(path) & PROJECT <= MAY_IMPORT[package], path
        assert not top_level(path) & NEVER[package], path


def test_nothing_needs_pytorch() -> None:
    """Nobody could train without installing it."""
    of_torch = {f"utils.bench.{name.removesuffix('.py')}" for name in OF_TORCH}
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py") if "raw-data" not in path.parts]
    for path in (*files, *ROOT.glob("*.py")):
        needs = "torch" in top_level(path) or any(name.startswith(tuple(of_torch)) for name in imported(path))
        assert needs == (path.name in OF_TORCH), path


def test_nothing_runs_what_it_reads() -> None:
    """Whoever takes a rank's place, or passes a file on, would run code as the user."""
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py") if "raw-data" not in path.parts]
    for path in (*files, *ROOT.glob("*.py")):
        assert not top_level(path) & RUNS_WHAT_IT_READS, path
        assert "allow_pickle=True" not in path.read_text(encoding="utf-8"), path


def test_of_the_mathematics_only_kernels_knows_the_machine() -> None:
    """A model would compute something else on a Mac than on a server, or threads stand between its equations."""
    kernels = set((ROOT / "models" / "kernels").glob("*.py"))
    for path in {*(ROOT / "models").rglob("*.py")} - kernels:
        assert not top_level(path) & OF_THE_MACHINE, path
        assert not list(filter(OF_THE_DEVICE.match, names(path))), path
    # the check would see it
    assert set().union(*map(top_level, kernels)) >= OF_THE_MACHINE
    assert list(filter(OF_THE_DEVICE.match, set().union(*map(names, kernels))))


def test_tests_import_from_helpers_alone() -> None:
    """A test that imports from another runs with its fixtures and fails with its mistakes."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > 50
    for path in files:
        for name in imported(path):
            assert not name.startswith("tests") or name.startswith("tests.helpers."), f"{path}: {name}"


# States, levels and classes of each architecture. A message may show one as an example, in the middle of a sentence.
ARCHITECTURES = {
    "hrm/hrm_act_v1.py": r"z_[HL]|[HL]_(level|init)|HierarchicalReasoning\w*",
    "recursive_reasoning/trm.py": r"z_[HL]|[HL]_(level|init)|mlp_t|TinyRecursive\w*",
    "urm/urm.py": r"current_hidden|init_hidden|dwconv|URM\w*",
}
OF_ONE = re.compile(rf"\b({'|'.join(ARCHITECTURES.values())}|inner\.puzzle_emb\.weights)\b")


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
    own = {ROOT / "models" / file: re.compile(rf"\b({pattern})\b") for file, pattern in ARCHITECTURES.items()}
    files = {path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")} - own.keys()
    files -= {ROOT / "utils" / "bench" / name for name in OF_TORCH}  # the same models in PyTorch
    for path in (*files, ROOT / "pretrain.py", ROOT / "evaluate.py", ROOT / "solve.py"):
        assert list(filter(OF_ONE.search, names(path))) == [], path
    for path, pattern in own.items():
        named = names(path)
        assert len(list(filter(pattern.search, named))) > 3, "the pattern finds nothing"
        others = {name for name in filter(OF_ONE.search, named) if not pattern.search(name)}
        assert not others, f"{path} knows another architecture: {others}"
