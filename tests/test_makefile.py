"""The Makefile with a stand-in for Python, so nothing is installed: what it runs, refuses, recovers from, removes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TOOLS = ("sh", "make", "cat", "rm", "mkdir", "rmdir", "touch", "ls", "env", "find", "head", "dirname", "cp")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# Answers as Python does as far as the Makefile asks, and notes in `log` what it was asked to do.
PYTHON = """#!/bin/sh
case "$1 $2 $3" in
  "-c "*find_spec*) shift 2; for module; do [ ! -e "gone/$module" ] || exit 1; done ;;
  "-c "*version_info\\[*) echo {version} ;;
  "-c "*"<"*) exit {too_old} ;;
  "-c "*ensurepip*) exit {no_ensurepip} ;;
  "-m venv "*) mkdir -p .venv/bin && cp "{self}" .venv/bin/python && echo "venv" >>log ;;
  "-m ruff"*|"-m mypy"*|"-m pytest"*|"-m tests."*)
    echo "$*${{HRM_DEVICE_TEST:+ $HRM_DEVICE_TEST $HRM_DEVICE_REPORT}}" >>log ;;
  "-m pip install") shift 3; echo "pip $*" >>log; [ ! -e cut-off ] ;;
  *pretrain.py*) echo "$* WANDB_MODE=$WANDB_MODE" >>log
    mkdir -p checkpoints/demo/step_9 checkpoints/demo/step_10 && touch checkpoints/demo/step_10/model.safetensors ;;
  *dataset/*) echo "$*" >>log; mkdir -p data/sudoku-6x6/test && touch data/sudoku-6x6/test/dataset.json ;;
  *.py*) echo "$*" >>log ;;
esac
"""


class Checkout:
    """A copy of the Makefile and the requirements in a folder of its own, with the commands that it may find."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a folder with spaces"
        self.bin = folder / "bin"
        self.root.mkdir()
        self.bin.mkdir()
        for path in (ROOT / "Makefile", *ROOT.glob("requirements*.txt")):
            shutil.copy(path, self.root)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)

    def add_python(
        self, name: str = "python3", version: str = "3.12.1", too_old: int = 0, no_ensurepip: int = 0
    ) -> Path:
        path = self.bin / name
        text = PYTHON.format(version=version, too_old=too_old, no_ensurepip=no_ensurepip, self=path)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run make; the make that may be running these tests must not pass on its own flags and variables."""
        env = {"PATH": str(self.bin), "HOME": str(self.root)} | environment
        command = [str(self.bin / "make"), *arguments]
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, timeout=60)

    def refuse(self, *arguments: str) -> str:
        """Run make, which has to fail with one line of its own beside make's `make: *** …`; that line."""
        done = self.make(*arguments)
        assert done.returncode != 0
        lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ***")]
        assert len(lines) == 1, lines
        return lines[0]

    @property
    def log(self) -> list[str]:
        path = self.root / "log"
        return path.read_text().splitlines() if path.exists() else []

    def outdate(self) -> None:
        """Make the last installation older than the requirements, as after a `git pull` that changed them."""
        os.utime(self.root / ".venv/installed", (1, 1))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_make_alone_is_help(checkout: Checkout) -> None:
    """Who types `make` to see what there is would start a long installation."""
    done = checkout.make()
    assert done.returncode == 0
    assert all(f"make {target} " in done.stdout for target in ("install", "demo", "check", "test", "clean"))
    assert not (checkout.root / ".venv").exists()


@pytest.mark.parametrize("target", ["install", "demo", "check", "test"])
def test_no_python(checkout: Checkout, target: str) -> None:
    """Without Python the message must say what is needed, not 'command not found'."""
    line = checkout.refuse(target)
    assert "no Python >= 3.10 found" in line
    assert "PYTHON=" in line


def test_too_old_python(checkout: Checkout) -> None:
    """Python 3.9 would fail much later, inside pip or at the first `match`."""
    checkout.add_python(version="3.9.18", too_old=1)
    assert "python3: 3.9.18" in checkout.refuse("install")
    assert not (checkout.root / ".venv").exists()
    old = checkout.add_python("old", version="3.8.0", too_old=1)
    assert f"{old}: 3.8.0" in checkout.refuse("install", f"PYTHON={old}")


def test_a_newer_python_is_found_beside_an_old_one(checkout: Checkout) -> None:
    """macOS and old distributions have an old python3 and a newer python3.12 side by side."""
    checkout.add_python(version="3.9.18", too_old=1)
    checkout.add_python("python3.12")
    done = checkout.make("install")
    assert done.returncode == 0, done.stderr
    assert "Python 3.12.1 (python3.12)" in done.stdout


def test_missing_ensurepip(checkout: Checkout) -> None:
    """Debian's python3 alone can't make virtual environments; the message must name the package."""
    checkout.add_python(no_ensurepip=1)
    assert "apt install python3-venv" in checkout.refuse("install")


def test_second_install_does_nothing_until_requirements_change(checkout: Checkout) -> None:
    """Every `make demo` would wait for pip, or a new requirement would never be installed."""
    checkout.add_python()
    assert checkout.make("install").returncode == 0
    assert [entry.split()[0] for entry in checkout.log] == ["venv", "pip"]
    assert checkout.log[1].endswith("-r requirements.txt")
    assert checkout.make("install").returncode == 0
    assert len(checkout.log) == 2
    checkout.outdate()
    assert checkout.make("install").returncode == 0
    assert checkout.log[2:] == [checkout.log[1]]


def test_interrupted_install_starts_again(checkout: Checkout) -> None:
    """A half-filled .venv would pass for a whole one and fail with ModuleNotFoundError."""
    checkout.add_python()
    (checkout.root / "cut-off").touch()
    assert checkout.make("install").returncode != 0
    (checkout.root / "cut-off").unlink()
    leftover = checkout.root / ".venv" / "half-a-package"
    leftover.touch()
    assert checkout.make("install").returncode == 0
    assert not leftover.exists()
    assert [entry.split()[0] for entry in checkout.log] == ["venv", "pip", "venv", "pip"]


def test_removed_python_means_a_new_venv(checkout: Checkout) -> None:
    """After an upgrade of the system's Python every command would end with 'No such file or directory'."""
    checkout.add_python()
    checkout.make("install")
    (checkout.root / ".venv/bin/python").unlink()
    done = checkout.make("install")
    assert done.returncode == 0, done.stderr
    assert (checkout.root / ".venv/bin/python").exists()


def test_packages_that_another_tool_has_removed_are_installed_again(checkout: Checkout) -> None:
    """`uv sync` shares .venv with make; a command would end with `No module named ruff` or `mlx`."""
    checkout.add_python()
    assert checkout.make("check").returncode == 0
    gone = checkout.root / "gone"
    gone.mkdir()
    for module, expected in (("mlx.core", ["pip", "pip"]), ("ruff", ["pip"])):
        done = len(checkout.log)
        (gone / module).touch()
        assert checkout.make("install").returncode == 0
        (gone / module).unlink()
        assert checkout.make("check").returncode == 0
        installed = [entry for entry in checkout.log[done:] if entry.startswith("pip")]
        assert [entry.split()[0] for entry in installed] == expected, module
        assert "requirements-dev.txt" in installed[-1]
    assert not [entry for entry in checkout.log[1:] if entry == "venv"], "the whole .venv was made anew"


def test_mlx_switch_is_remembered_and_never_mixed(checkout: Checkout) -> None:
    """mlx[cpu] and mlx[cuda] in one environment overwrite each other's libraries."""
    checkout.add_python()
    assert checkout.make("install", "MLX=cuda13").returncode == 0
    assert checkout.log[-1].endswith("-r requirements-cuda.txt")
    checkout.outdate()
    assert checkout.make("install").returncode == 0  # without retyping it
    assert checkout.log[-1].endswith("-r requirements-cuda.txt")
    assert "make clean" in checkout.refuse("install", "MLX=default")
    assert "MLX=cuda13" in checkout.refuse("install", "MLX=cuda99")
    checkout.make("clean")
    assert checkout.make("install").returncode == 0
    assert checkout.log[-1].endswith("-r requirements.txt")
    assert "make clean" in checkout.refuse("demo", "MLX=cuda13")


def test_somebody_else_s_venv_is_neither_mixed_nor_deleted(checkout: Checkout) -> None:
    """A .venv made with another tool may hold hours of somebody's set-up."""
    checkout.add_python()
    packages = checkout.root / ".venv/lib/python3.12/site-packages"
    (packages / "mlx_cuda_13-0.32.4.dist-info").mkdir(parents=True)
    assert "make clean" in checkout.refuse("install")
    assert "no working pip" in checkout.refuse("install", "MLX=cuda13")
    assert packages.exists()


def test_demo_runs_the_documented_commands(checkout: Checkout) -> None:
    """The two commands of the README would do something else than what can be typed by hand, or use W&B unasked."""
    checkout.add_python()
    done = checkout.make("demo", "DEMO_SEED=3")
    assert done.returncode == 0, done.stderr
    build, train, evaluate, solve = checkout.log[2:]
    assert build == "dataset/build_mini_sudoku_dataset.py --output-dir data/sudoku-6x6 --seed 3 --overwrite"
    assert train.startswith("pretrain.py --config-name cfg_demo seed=3")
    assert train.endswith("WANDB_MODE=disabled")
    assert evaluate.startswith("evaluate.py checkpoint=checkpoints/demo/step_10 ")
    assert evaluate.endswith("q_continue_logits,step_preds]")
    command, checkpoint, puzzle, *_ = solve.split()
    assert (command, checkpoint) == ("solve.py", "checkpoint=checkpoints/demo/step_10")
    assert len(puzzle) == len("puzzle=") + 36  # the demo's model is for 6x6 boards
    shown = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert shown.pop(1) == "$ rm -rf checkpoints/demo"  # of the demo before, which pretrain.py would not overwrite
    assert "'save_outputs=[inputs," in shown[-2]  # without quotes zsh would look for files of that name
    assert [command.split(".venv/bin/python ")[1].replace("'", "") for command in shown] == [
        build,
        train.removesuffix(" WANDB_MODE=disabled"),
        evaluate,
        solve,
    ]
    assert checkout.make("demo").returncode == 0
    by_hand = (ROOT / "docs/running.md").read_text().partition("```bash\n")[2].partition("```")[0].splitlines()
    # one seed, so one accuracy
    assert checkout.log[6] == by_hand[0].removeprefix("python ") + " --overwrite"
    assert checkout.log[7].startswith("pretrain.py --config-name cfg_demo seed=0 ")
    assert checkout.log[9] == by_hand[3].partition("  #")[0].removeprefix("python ").replace("demo ", "demo/step_10 ")
    assert "pretrain.py --config-name cfg_demo " in by_hand[1]
    assert "seed=" not in by_hand[1]
    assert yaml.safe_load((ROOT / "config/cfg_pretrain.yaml").read_text())["seed"] == 0
    assert "seed" not in yaml.safe_load((ROOT / "config/cfg_demo.yaml").read_text())
    *_, checkpoint, data, predictions, _, _ = done.stdout.splitlines()
    assert checkpoint.endswith(" checkpoints/demo/step_10.")
    assert data.endswith(" data/sudoku-6x6")
    assert predictions.endswith(" checkpoints/demo/step_10_all_preds.0.")
    assert checkout.make("demo", WANDB_MODE="offline").returncode == 0
    assert checkout.log[11].endswith("WANDB_MODE=offline")
    assert len(checkout.log) == 14


def test_check_leaves_out_what_is_slow_and_test_nothing(checkout: Checkout) -> None:
    """`make check` would take minutes, or `make test` pass without the tests that take minutes."""
    checkout.add_python()
    lint = ["-m ruff check .", "-m ruff format --check .", "-m mypy"]
    assert checkout.make("check").returncode == 0
    installed = len(["venv", "pip", "pip for tests"])
    assert checkout.log[installed:] == [*lint, "-m pytest -n 2 --dist loadfile --no-loadscope-reorder -m not slow"]
    assert checkout.make("test").returncode == 0
    assert checkout.log[installed + 4 :] == [
        *lint,
        "-m tests.helpers.browser",
        "-m pytest -n 2 --dist loadfile --no-loadscope-reorder",
    ]


def test_the_device_is_tested_in_full_and_its_report_kept(checkout: Checkout) -> None:
    """What a Mac owner sends would be the quick form, or nothing."""
    checkout.add_python()
    found = checkout.make("test-gpu")
    assert found.returncode == 0
    assert "The report is device-report.json." in found.stdout
    assert checkout.log[-1] == "-m pytest -q -s --timeout 1200 tests/test_device.py full device-report.json"


def test_bench_takes_peers_as_a_variable_of_make_too(checkout: Checkout) -> None:
    """`make bench peers=true` would measure without PyTorch, and say nothing."""
    for given, arguments in (("BENCH=quick=true peers=true", "quick=true peers=true"), ("peers=true", "peers=true")):
        printed = checkout.make("--dry-run", "bench", given).stdout.splitlines()
        assert printed[-1].split() == [".venv/bin/python", "-m", "utils.bench", *arguments.split()]


def test_clean_keeps_what_the_user_made(checkout: Checkout) -> None:
    """`make clean` would delete data sets and checkpoints that took days."""
    mine = [checkout.root / name for name in ("data/mine/x", "checkpoints/mine/x", "wandb/x", "notes.txt")]
    made = [
        checkout.root / name for name in ("data/sudoku-6x6/x", "checkpoints/demo/x", ".venv/x", "utils/__pycache__/x")
    ]
    for path in mine + made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert checkout.make("clean").returncode == 0
    assert all(path.exists() for path in mine)
    assert not any(path.parent.exists() for path in made)
