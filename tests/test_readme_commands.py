"""Each pretrain.py line of the README composes, validates and takes a first step; the documented defaults hold."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml

import pretrain
from tests.helpers.tiny_data import ROOT, make_tiny_data
from utils.config import read_saved_config
from utils.train.state import TrainState, count_parameters

# As people know them from the PyTorch project and from earlier versions of this README.
KNOWN_COMMANDS = [
    "python pretrain.py data_path=data/sudoku-extreme-1k-aug-1000 epochs=20000 eval_interval=2000 "
    "global_batch_size=384 lr=7e-5 puzzle_emb_lr=7e-5 weight_decay=1.0 puzzle_emb_weight_decay=1.0",
    "python pretrain.py",
    "python pretrain.py data_path=data/arc-2-aug-1000",
    "python pretrain.py data_path=data/sudoku-extreme-1k-aug-1000 epochs=20000 eval_interval=2000 "
    "lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0",
    "python pretrain.py data_path=data/maze-30x30-hard-1k epochs=20000 eval_interval=2000 "
    "lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0",
    "python pretrain.py data_path=data/sudoku-hard-full epochs=100 eval_interval=10 lr_min_ratio=0.1 "
    "global_batch_size=2304 lr=3e-4 puzzle_emb_lr=3e-4 weight_decay=0.1 puzzle_emb_weight_decay=0.1 "
    "arch.loss.loss_type=softmax_cross_entropy arch.L_cycles=8 arch.halt_max_steps=8 arch.pos_encodings=learned",
]


def readme_commands() -> list[str]:
    """The pretrain.py lines in the README's code blocks, without environment variables, launchers and comments."""
    blocks = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line[line.index(start) :] for line in lines if (start := "python pretrain.py") in line and line[0] != "#"]


class FirstStep(BaseException):
    """Ends a run after its first step; not an Exception, so that nothing on the way out handles it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def uncompiled() -> Iterator[None]:
    # Compiling the kernels of two more architectures takes longer than the steps; the compiled step has its own tests.
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_the_readme_has_the_known_commands() -> None:
    """Somebody's notes from the PyTorch project would no longer be found here."""
    missing = set(KNOWN_COMMANDS) - set(readme_commands())
    assert not missing


@pytest.mark.usefixtures("uncompiled")
def test_every_command_takes_its_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real entry point with the documented architectures, up to the first training step on a tiny data set.

    Forward pass, target and losses are computed for every command; backward pass and optimisers, which take most of the
    time and depend on nothing else, once for each architecture.
    """
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    train_step = TrainState.train_step
    trained: set[str] = set()
    steps: list[tuple[TrainState, float]] = []

    def first_step(state: TrainState, batch: dict[str, mx.array], flag: float) -> Any:
        before = state.head.model.inner.lm_head.weight
        metrics, _ = train_step(state, batch, flag)
        arch = state.config.arch.model_dump_json()
        if arch not in trained:
            trained.add(arch)
            mx.eval(state.arrays)
            after = state.head.model.inner.lm_head.weight
            assert mx.isfinite(after).all().item()
            assert not mx.array_equal(before, after).item()
        steps.append((state, metrics["loss"].item()))
        raise FirstStep

    monkeypatch.setattr(TrainState, "train_step", first_step)
    commands, of_the_paper = readme_commands(), 0
    for number, command in enumerate(commands):
        program, script, *arguments = shlex.split(command)
        assert (program, script) == ("python", "pretrain.py")
        overrides = [f"data_path={data}", "global_batch_size=8", f"checkpoint_path=run-{number}"]
        monkeypatch.setattr(sys, "argv", [script, *arguments, *overrides])
        try:
            pretrain.main()
        except FirstStep:
            capsys.readouterr()
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")
        state, loss = steps[-1]
        assert 0 < loss < 8 * 10  # a sum over 8 rows
        assert read_saved_config(tmp_path / f"run-{number}") == state.config
        given = dict(argument.split("=") for argument in arguments if "=" in argument)
        if "--config-name" not in arguments:
            assert state.config.lr == float(given.get("lr", 1e-4))
            assert state.config.weight_decay == float(given.get("weight_decay", 0.1))
            assert state.config.epochs == int(given.get("epochs", 100_000))
        if "--config-name" not in arguments and "arch.hidden_size" not in given:
            # 5 · 512 weights fewer in embedding and head than with Sudoku's 11 tokens; `learned` adds 17 positions.
            learned = given.get("arch.pos_encodings") == "learned"
            assert count_parameters(state.head) == 27_275_266 - 2 * 5 * 512 + learned * 17 * 512
            of_the_paper += 1
    assert len(steps) == len(commands)
    assert of_the_paper >= len(KNOWN_COMMANDS)
    assert len(trained) >= 3  # of the paper, of full Sudoku, of the demo


def test_defaults_are_the_documented_ones() -> None:
    """Whoever leaves a key out would train something else than with the PyTorch code."""
    config = yaml.safe_load((ROOT / "config/cfg_pretrain.yaml").read_text())
    documented = {
        "data_path": "data/arc-aug-1000",
        "global_batch_size": 768,
        "epochs": 100_000,
        "eval_interval": 10_000,
        "checkpoint_every_eval": True,
        "lr": 1e-4,
        "lr_min_ratio": 1.0,
        "lr_warmup_steps": 2000,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "puzzle_emb_weight_decay": 0.1,
        "puzzle_emb_lr": 1e-2,
        "project_name": None,
        "run_name": None,
        "checkpoint_path": None,
        "seed": 0,
        "eval_save_outputs": [],
    }
    # YAML 1.1 takes 1e-4 for text; Hydra, which reads these files, for a number.
    found = {key: float(config[key]) if isinstance(value, float) else config[key] for key, value in documented.items()}
    assert found == documented
    assert config["defaults"][0] == {"arch": "hrm_v1"}
    assert config["defaults"][-1] == "_self_"
    assert config["hydra"]["output_subdir"] is None
    off = {"eval_max_examples": None, "log_interval": 1, "log_examples": 0, "load_weights": None}
    off |= {
        "eval_halt": "max",
        "resume": None,
        "checkpoint_interval": None,
        "keep_checkpoints": None,
        "on_nonfinite": "stop",
        "rank_timeout": 300,
    }
    assert {key: config[key] for key in off} == off
    assert config["stop_when"]["metric"] is None
    assert config.keys() == documented.keys() | off.keys() | {"defaults", "hydra", "stop_when"}

    arch = yaml.safe_load((ROOT / "config/arch/hrm_v1.yaml").read_text())
    assert arch | {"rms_norm_eps": float(arch["rms_norm_eps"])} == {
        "name": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
        "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
        "halt_exploration_prob": 0.1,
        "halt_max_steps": 16,
        "H_cycles": 2,
        "L_cycles": 2,
        "H_layers": 4,
        "L_layers": 4,
        "hidden_size": 512,
        "num_heads": 8,
        "expansion": 4,
        "puzzle_emb_ndim": "${.hidden_size}",
        "pos_encodings": "rope",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "forward_dtype": None,  # bfloat16 on a GPU, as in the PyTorch code; float32 on a CPU
    }
