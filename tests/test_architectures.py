"""Every architecture goes the whole way: train, stop, resume, evaluate by both rules, export, several ranks, bench.

Of a run whose weights are averaged, so that its checkpoints hold two sets of them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

import evaluate
import pretrain
from tests.helpers.rank_processes import run_ranks
from tests.helpers.tiny_data import make_tiny_data, train_arguments
from utils import export
from utils.bench import __main__ as bench
from utils.bench import measure

pytestmark = pytest.mark.slow

STEPS, EARLY = 16, 6  # of a run; at which one run is stopped by its loss, and resumed
OUTER_STEPS = 3
TOLERANCE = 1e-5  # of sums over ranks in float32
SMALL = ["arch.hidden_size=32", "arch.num_heads=2", "arch.H_cycles=2", "arch.L_cycles=1", "arch.forward_dtype=float32"]
TRM = ["arch=trm", *SMALL, f"arch.halt_max_steps={OUTER_STEPS}", "arch.L_layers=1", "arch.puzzle_emb_len=2"]
ARCHITECTURES = {
    "hrm": ["arch=hrm_v1", *SMALL, f"arch.halt_max_steps={OUTER_STEPS}", "arch.H_layers=1", "arch.L_layers=1"],
    "trm": TRM,
    "trm_mlp": [*TRM, "arch.mlp_t=True", "arch.pos_encodings=none"],
    "urm": ["arch=urm", *SMALL, f"arch.loops={OUTER_STEPS}", "arch.num_layers=1"],
}


@dataclass(frozen=True)
class Trained:
    """A run of an architecture in `folder / "run"`, left undisturbed, and the arguments that it was made with."""

    folder: Path
    data: Path
    arch: list[str]

    def arguments(self, run: Path, *more: str) -> list[str]:
        common = [a for a in train_arguments(self.data, run) if not a.startswith("arch.")]
        return [*common, *self.arch, "ema=True", "ema_rate=0.9", "checkpoint_interval=4", *more]

    def log(self, run: str = "run") -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]

    def arrays(self, step: int, file: str) -> dict[str, mx.array]:
        found = mx.load(str(self.folder / "run" / f"step_{step}" / f"{file}.safetensors"))
        assert isinstance(found, dict)
        return found


def call(script: ModuleType, *arguments: str) -> None:
    """Run a script's `main` in this process, also in a fixture of the module."""
    with mock.patch.dict(os.environ), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
        script.main()


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    data = make_tiny_data(folder / "data", identifiers=5)
    run = Trained(folder, data, ARCHITECTURES[request.param])
    call(pretrain, *run.arguments(folder / "run", "eval_save_outputs=[preds,step_preds]"))
    return run


def test_a_checkpoint_holds_the_averaged_and_the_raw_weights(trained: Trained) -> None:
    """Who evaluates or exports it gets the average, and who resumes it the weights that were trained."""
    averaged, training = trained.arrays(STEPS, "model"), trained.arrays(STEPS, "training")
    raw = {name.removeprefix("raw."): array for name, array in training.items() if name.startswith("raw.")}
    fixed = {name for name in averaged if name.endswith(("_init", "init_hidden", "puzzle_emb.weights"))}
    assert raw.keys() == averaged.keys() - fixed
    for name, array in raw.items():
        difference = mx.abs(array - averaged[name]).max().item()
        assert 0 < difference < 0.1, name


def test_step_predictions_are_those_of_its_own_rule(trained: Trained) -> None:
    folder = trained.folder / "run" / f"step_{STEPS}_all_preds.0"
    found = {path.stem: np.load(path) for path in folder.iterdir()}
    assert found["step_preds"].shape == (20, OUTER_STEPS, 16)
    np.testing.assert_array_equal(found["step_preds"][:, -1], found["preds"])
    of_hrm = "arch=hrm_v1" in trained.arch
    assert ("step_q_continue_logits" in found) == of_hrm  # the others do not train it
    q_continue = found["step_q_continue_logits"] if of_hrm else 0
    np.testing.assert_array_equal(found["step_halted"], found["step_q_halt_logits"] > q_continue)


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The record that evaluate.py prints."""
    capsys.readouterr()
    call(evaluate, *arguments)
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(record, dict)
    return record


def test_it_is_evaluated_as_it_was_logged(trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the averaged weights, since those were evaluated in training."""
    found = evaluated(capsys, f"checkpoint={trained.folder / 'run' / f'step_{STEPS}'}", f"output_path={tmp_path}")
    logged = next(line for line in trained.log() if line["step"] == STEPS and "eval/lm_loss" in line)
    expected = {name: value for name, value in logged.items() if name.startswith("eval/")}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_evaluation_by_q_ends_where_its_rule_halts(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With Q values that differ from example to example, as they do later in training."""
    arrays = trained.arrays(STEPS, "model")
    weight, table = (f"model.inner.{name}" for name in ("q_head.weight", "puzzle_emb.weights"))
    arrays[weight] = mx.random.normal(arrays[weight].shape, key=mx.random.key(0))
    arrays["model.inner.q_head.bias"] = mx.zeros((2,))
    arrays[table] = mx.random.normal(arrays[table].shape, key=mx.random.key(1))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    shutil.copy(trained.folder / "run" / "all_config.yaml", tmp_path)
    arguments = [f"checkpoint={tmp_path / 'model.safetensors'}", "save_outputs=[preds,step_preds]"]
    evaluated(capsys, *arguments)
    halted = np.load(tmp_path / "step_0_all_preds.0" / "step_halted.npy")
    halted[:, -1] = True
    steps = 1 + halted.argmax(axis=1)
    assert len(set(steps.tolist())) > 1, "all halt together, which tests too little"
    found = evaluated(capsys, arguments[0], "eval_halt=q", "save_outputs=[preds]")
    assert found["eval/steps"] == pytest.approx(steps.mean())


def test_a_run_stopped_by_its_loss_is_resumed_bit_for_bit(trained: Trained) -> None:
    run = trained.folder / "resumed"
    stop = ["stop_when.metric=train/lm_loss", "stop_when.at_least=0", f"stop_when.window={EARLY}"]
    call(pretrain, *trained.arguments(run, *stop))
    assert trained.log("resumed")[-1]["step"] == EARLY
    call(pretrain, *trained.arguments(run, "resume=auto"))
    for step in (8, 12, STEPS):
        for file in ("model", "training"):
            found, expected = (
                (folder / f"step_{step}" / f"{file}.safetensors").read_bytes()
                for folder in (run, trained.folder / "run")
            )
            assert found == expected, (step, file)


def test_what_a_checkpoint_depends_on_can_not_change(trained: Trained, call_script: Callable[..., Any]) -> None:
    """Raw weights without an average, or an average without raw weights, are no state to go on from."""
    arguments = [a for a in trained.arguments(trained.folder / "run", "resume=auto") if a != "ema=True"]
    status, _, err = call_script(pretrain, *arguments)
    assert status == 1
    assert "can't be continued, because this differs: ema: True → False" in err


def test_it_is_exported_as_it_is_evaluated(trained: Trained, tmp_path: Path) -> None:
    checkpoint = trained.folder / "run" / f"step_{STEPS}"
    call(export, f"checkpoint={checkpoint}", f"out={tmp_path / 'a.safetensors'}")
    exported, saved = mx.load(str(tmp_path / "a.safetensors")), trained.arrays(STEPS, "model")
    assert isinstance(exported, dict)
    assert exported.keys() == saved.keys()
    assert all(mx.array_equal(exported[name], saved[name]) for name in saved)


def test_two_ranks_train_it_as_one_does(trained: Trained, tmp_path: Path) -> None:
    run_ranks("pretrain.py", trained.arguments(tmp_path / "run"), tmp_path, 2)
    ours = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for found, expected in zip(ours, trained.log(), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    for file in ("model", "training"):
        found = mx.load(str(tmp_path / "run" / f"step_{STEPS}" / f"{file}.safetensors"))
        assert isinstance(found, dict)
        for name, array in trained.arrays(STEPS, file).items():
            if name.startswith(("model.", "raw.")):
                np.testing.assert_allclose(np.array(found[name]), np.array(array), atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("arch", ["trm", "urm"])
def test_it_is_benched(arch: str, monkeypatch: pytest.MonkeyPatch, call_script: Callable[..., Any]) -> None:
    """With the published widths, and the fewest rows and tokens."""
    monkeypatch.setattr(measure, "SHAPES", {"sudoku": (4, 6, 2)})
    monkeypatch.setattr(bench, "QUICK_ROUNDS", 1)
    status, printed, err = call_script(bench, f"arch={arch}", "quick=true", "shapes=sudoku")
    assert status == 0, err
    assert f"{arch}, sudoku: 2 rows of 4 tokens" in printed
    assert "training step" in printed
