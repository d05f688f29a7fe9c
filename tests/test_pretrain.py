"""pretrain.py as users run it: real processes, a real offline W&B run read back, and mistakes that end in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import yaml

import pretrain
from tests.helpers.configs import random_batch, train_state
from tests.helpers.tiny_data import (
    BATCH,
    NUM_TRAIN,
    RUN_FILES,
    make_tiny_data,
    run_script,
    split_test_set,
    train_arguments,
)
from tests.helpers.wandb_files import read_wandb
from utils.config import read_saved_config
from utils.train.metrics import TrainMetrics
from utils.train.run import Run
from utils.train.schedule import learning_rate
from utils.train.state import TrainState

TRAIN_METRICS = (
    "count", "accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss", "q_halt_loss", "q_continue_loss",
    "lr",
)  # fmt: skip
EVAL_METRICS = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss", "q_halt_loss")
STEPS = 2 * NUM_TRAIN // BATCH


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data") / "sudoku-4x4")


@pytest.fixture(scope="module")
def offline_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run was made: `run/` is its checkpoint path, `wandb/` its offline record."""
    folder = tmp_path_factory.mktemp("offline")
    arguments = train_arguments(data, folder / "run", "log_examples=2", "+run_name=first", "arch.forward_dtype=null")
    result = run_script("pretrain.py", arguments, folder, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    assert "" not in result.stdout.splitlines(), "blank lines in a log"
    assert "\r" not in result.stdout + result.stderr
    return folder


@pytest.mark.slow
def test_a_run_leaves_checkpoints_configuration_and_code_and_nothing_else(offline_run: Path) -> None:
    run = offline_run / "run"
    assert {path.name for path in offline_run.iterdir()} == {"run", "wandb"}
    assert {path.name for path in run.iterdir()} == RUN_FILES
    for step in ("step_8", "step_16"):
        found = {path.name for path in (run / step).iterdir()}
        assert found == {"checkpoint.json", "model.safetensors", "training.safetensors"}
    assert (run / "code" / "models" / "hrm" / "hrm_act_v1.py").is_file()
    assert not list(run.rglob("*.pyc"))

    weights = mx.load(str(run / "step_16" / "model.safetensors"))
    layer = [f"layers.0.{name}.weight" for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj")]
    layer.append("layers.0.mlp.down_proj.weight")
    expected = {f"model.inner.{level}_level.{name}" for level in "HL" for name in layer}
    expected |= {f"model.inner.{name}" for name in ("H_init", "L_init", "lm_head.weight", "puzzle_emb.weights")}
    expected |= {f"model.inner.{name}" for name in ("embed_tokens.embedding_weight", "q_head.weight", "q_head.bias")}
    assert weights.keys() == expected

    config = read_saved_config(run)
    assert config.run_name == "first"
    assert config.project_name == "Sudoku-4x4 ACT-mlx"
    # the dtype in use is recorded even where it was left to the device
    assert yaml.safe_load((run / "all_config.yaml").read_text())["arch"]["forward_dtype"] in ("float32", "bfloat16")


@pytest.mark.slow
def test_wandb_history_has_every_metric_at_its_step(offline_run: Path) -> None:
    record = read_wandb(offline_run)
    history = {row["_step"]: row for row in record["history"]}
    assert set(history) == {0, *range(1, STEPS + 1)}
    assert history[0]["num_params"] == 57_794
    for step in range(1, STEPS + 1):
        assert {f"train/{name}" for name in TRAIN_METRICS} <= history[step].keys()
        rate = learning_rate(step, base=2e-3, warmup_steps=4, total_steps=STEPS, min_ratio=1.0)
        assert history[step]["train/lr"] == pytest.approx(rate)
        assert history[step]["train/count"] == (step % 3 == 0)  # all rows halt together at the limit of 3 steps
    for step in (8, 16):
        assert {f"eval/{name}" for name in EVAL_METRICS} <= history[step].keys()
        assert history[step]["eval/steps"] == 3
        assert history[step]["eval/examples/count"] == 2
    assert not any(key.startswith("eval/") for step in history for key in history[step] if step not in (8, 16))
    assert history[16]["train/lm_loss"] < history[1]["train/lm_loss"]

    assert (record["project"], record["name"]) == ("Sudoku-4x4 ACT-mlx", "first")
    assert record["config"]["global_batch_size"] == BATCH
    assert record["config"]["arch"]["hidden_size"] == 32
    code = {path for kind, path in record["artifacts"] if kind == "code"}
    assert {"all_config.yaml", "code/models/losses.py", "code/models/hrm/hrm_act_v1.py"} <= code


@pytest.mark.slow
def test_a_second_run_does_not_mix_with_the_first(data: Path, offline_run: Path) -> None:
    result = run_script("pretrain.py", train_arguments(data, offline_run / "run"), offline_run)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "holds step_16 of an earlier run; continue it with resume=auto, choose another folder" in result.stderr


@pytest.mark.slow
def test_log_interval_logs_the_means_of_its_steps(data: Path, offline_run: Path, tmp_path: Path) -> None:
    arguments = train_arguments(data, tmp_path / "run", "log_interval=3", "checkpoint_every_eval=False")
    result = run_script("pretrain.py", arguments, tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    every = {row["_step"]: row for row in read_wandb(offline_run)["history"]}
    third = {row["_step"]: row for row in read_wandb(tmp_path)["history"] if "train/lr" in row}
    assert set(third) == {3, 6, 9, 12, 15, STEPS}  # the last step is alone
    last = third.pop(STEPS)
    assert last["train/lm_loss"] == pytest.approx(every[STEPS]["train/lm_loss"], rel=1e-5)
    for step, row in third.items():
        for loss in ("lm_loss", "q_halt_loss", "q_continue_loss"):
            mean = np.mean([every[s][f"train/{loss}"] for s in (step - 2, step - 1, step)])
            assert row[f"train/{loss}"] == pytest.approx(mean, rel=1e-5)
        # rows are counted when they halt, all at every third step
        assert row["train/accuracy"] == pytest.approx(every[step]["train/accuracy"])
    assert {path.name for path in (tmp_path / "run").glob("step_*")} == {"step_16"}


def test_the_device_is_waited_for_once_an_interval() -> None:
    state = train_state()
    metrics = TrainMetrics(BATCH, window=100)
    for step in range(6):
        result = state.train_step(random_batch(step))
        metrics.add(step, result.metrics, result.finite)
    waiting = metrics._pending
    assert len(waiting) == 6
    assert all(isinstance(value, mx.array) for _, sums, finite in waiting for value in (*sums.values(), finite))
    metrics.read()
    assert not metrics._pending


def test_a_run_reads_from_the_device_once_an_interval(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., Any]
) -> None:
    """Every other wait would let a GPU stand idle; looking for numbers that are not finite must not add one."""
    events: list[str] = []

    def record(owner: Any, name: str, event: str, *, and_all_within: bool = False) -> None:
        original = getattr(owner, name)

        def recorded(*arguments: Any) -> Any:
            events.append(event)
            before = len(events)
            result = original(*arguments)
            if and_all_within:  # an evaluation and a checkpoint wait for the device as they please
                del events[before:]
            return result

        monkeypatch.setattr(owner, name, recorded)

    record(TrainState, "train_step", "step")
    record(TrainMetrics, "read", "read")
    record(mx, "eval", "wait")
    record(pretrain, "evaluate_and_log", "evaluation", and_all_within=True)
    record(Run, "save", "save", and_all_within=True)
    status, _, err = run_here(*train_arguments(data, tmp_path / "run", "log_interval=4"))
    assert status == 0, err
    stretch = [*["step"] * 4, "read", "wait"] * (STEPS // 8)
    assert events == [*stretch, "evaluation", "save"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "3"},
    ],
    ids=["no-login", "no-server"],
)
def test_without_login_or_server_a_run_goes_offline_and_says_so(
    data: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    overrides = ["epochs=1", "eval_max_examples=8", "checkpoint_every_eval=False"]
    home = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none")}
    (tmp_path / "home").mkdir()
    arguments = train_arguments(data, tmp_path / "run", *overrides)
    result = run_script("pretrain.py", arguments, tmp_path, WANDB_MODE=None, **home, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("this run is recorded offline") == 1
    assert "Traceback" not in result.stderr
    assert {row["_step"] for row in read_wandb(tmp_path)["history"]} >= {0, 8}


@pytest.fixture
def run_here(call_script: Callable[..., Any]) -> Callable[..., Any]:
    """Call pretrain.py in this process; returns (exit status, stdout, stderr)."""
    return partial(call_script, pretrain)


def test_training_stops_when_a_metric_is_reached(data: Path, tmp_path: Path, run_here: Callable[..., Any]) -> None:
    stop = ["stop_when.metric=train/lm_loss", "stop_when.at_most=1.5", "stop_when.window=2", "epochs=20"]
    status, out, _ = run_here(*train_arguments(data, tmp_path / "a", *stop))
    assert status == 0
    (line,) = [line for line in out.splitlines() if "stopping" in line]
    assert "train/lm_loss" in line
    (folder,) = (tmp_path / "a").glob("step_*")  # evaluated and saved where it stopped, in the first epoch
    assert int(folder.name.removeprefix("step_")) < NUM_TRAIN // BATCH

    stop = ["stop_when.metric=eval/steps", "stop_when.at_least=3", "epochs=20"]
    status, out, _ = run_here(*train_arguments(data, tmp_path / "b", *stop))
    assert status == 0
    assert sum("eval/steps = 3.0000, stopping" in line for line in out.splitlines()) == 1
    assert [path.name for path in (tmp_path / "b").glob("step_*")] == ["step_8"]


@pytest.mark.slow
def test_load_weights_starts_from_a_checkpoint(
    data: Path, offline_run: Path, tmp_path: Path, run_here: Callable[..., Any]
) -> None:
    still = [f"load_weights={offline_run / 'run' / 'step_16'}", "lr=0", "puzzle_emb_lr=0", "epochs=1"]
    status, _, err = run_here(*train_arguments(data, tmp_path / "run", *still))
    assert status == 0, err
    before: Any = mx.load(str(offline_run / "run" / "step_16" / "model.safetensors"))
    after: Any = mx.load(str(tmp_path / "run" / "step_8" / "model.safetensors"))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)


def test_predictions_are_written_at_each_evaluation_if_asked_for(
    data: Path, tmp_path: Path, run_here: Callable[..., Any]
) -> None:
    options = ["eval_save_outputs=[preds,q_halt_logits]", "eval_max_examples=10"]
    status, _, err = run_here(*train_arguments(data, tmp_path / "run", *options))
    assert status == 0, err
    for step in (8, 16):
        folder = tmp_path / "run" / f"step_{step}_all_preds.0"
        assert {path.name for path in folder.iterdir()} == {"preds.npy", "q_halt_logits.npy"}
        assert np.load(folder / "preds.npy").shape == (10, 16)


def test_several_test_sets_are_reported_apart(data: Path, tmp_path: Path, run_here: Callable[..., Any]) -> None:
    two_sets = make_tiny_data(tmp_path / "two")
    split_test_set(two_sets)
    _, together, _ = run_here(*train_arguments(data, tmp_path / "a", "epochs=1"))
    status, apart, err = run_here(*train_arguments(two_sets, tmp_path / "b", "epochs=1"))
    assert status == 0, err

    def value(text: str, name: str) -> float:
        return float(text.split(f"{name} ")[1].split()[0])

    easy, hard = value(apart, "eval/easy/accuracy"), value(apart, "eval/hard/accuracy")
    assert value(together, "eval/accuracy") == pytest.approx((8 * easy + 12 * hard) / 20, abs=2e-4)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["epoch=3"], "unknown key 'epoch'"),
        (["arch.hidden=3"], "unknown key 'arch.hidden'"),
        (["+epoch=3"], "unknown key 'epoch'"),
        (["lr=fast"], "lr = 'fast'"),
        (["lr=-1"], "lr = -1"),
        (["lr=[1"], "'lr=[1' can't be read"),
        (["data_path=data/a (b)"], """as in 'data_path="data/a (b)"'"""),
        (["data_path="], "data_path = ''"),
        (["seed=18446744073709551616"], "seed = 18446744073709551616"),
        (["arch.puzzle_emb_ndim=null"], "'arch.puzzle_emb_ndim' is missing"),
        (["arch=hrm_v9"], "hrm_v9"),
        (["epochs=3", "eval_interval=2"], "epochs = 3 is not a multiple of eval_interval = 2; try epochs=4"),
        (["arch.num_heads=5"], "num_heads = 5 does not divide hidden_size = 32"),
        (["arch.hidden_size=30"], "hidden_size / num_heads = 15 is odd"),
        (["arch.name=os@system"], "arch"),
        (["arch.loss.loss_type=hinge"], "arch.loss.loss_type = 'hinge': models.losses defines no hinge"),
        (["data_path=data/x"], "no data set at data/x: there is no such folder; build it with a script in dataset/"),
        (["global_batch_size=65"], "don't fill one batch of 65"),
        (["eval_save_outputs=[prediction]"], "'prediction'"),
        (["stop_when.metric=train/lm_loss"], "stop_when.at_least"),
        (
            ["stop_when.metric=train/nothing", "stop_when.at_least=1"],
            "stop_when.metric = 'train/nothing': unknown metric; choose one of train/accuracy",
        ),
        (
            ["stop_when.metric=eval/nothing", "stop_when.at_least=1"],
            "stop_when.metric = 'eval/nothing': unknown metric",
        ),
        (["stop_when.at_least=1"], "set stop_when.metric too"),
        (["load_weights=nowhere"], "nowhere is neither a folder or file here"),
        (["load_puzzle_emb=mean"], "load_puzzle_emb = 'mean' is about the puzzle embeddings in load_weights, which is"),
        (["load_puzzle_emb=none"], "load_puzzle_emb = 'none'"),
        (["checkpoint_path=/dev/null/run"], "checkpoint_path /dev/null/run can't be used"),
        (["arch.loss.name=hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1"], "is not a loss head"),
        (["arch.name=losses@ACTLossHead"], "is not a model"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line_that_names_them(
    data: Path, tmp_path: Path, run_here: Callable[..., Any], overrides: list[str], expected: str
) -> None:
    status, _, err = run_here(*train_arguments(data, tmp_path / "run", *overrides))
    complaint = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1
    assert len(complaint) == 1
    assert expected in complaint[0]
    assert "Traceback" not in err


def test_a_run_without_a_step_is_a_mistake(data: Path, tmp_path: Path, run_here: Callable[..., Any]) -> None:
    """It ended with status 0, untrained."""
    other = shutil.copytree(data, tmp_path / "other")
    metadata = json.loads((other / "train" / "dataset.json").read_text())
    (other / "train" / "dataset.json").write_text(json.dumps(metadata | {"mean_puzzle_examples": 0.01}))
    status, _, err = run_here(*train_arguments(other, tmp_path / "run"))
    assert status == 1
    assert "error: epochs = 2 is no whole step: 64 groups of 0.01 examples on average" in err
    assert not (tmp_path / "run").exists()


def test_a_tilde_means_home(
    data: Path, tmp_path: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder called `~` was made in the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(data, tmp_path / "home" / "my data's")
    arguments = train_arguments(Path("~/my data's"), Path("~/run"), "epochs=1", "checkpoint_every_eval=false")
    status, _, err = run_here(*arguments)
    assert status == 0, err
    assert (tmp_path / "home" / "run" / "step_8").is_dir()
    status, out, err = run_here(*arguments, "resume=~/run/step_8")
    assert status == 0, err
    assert "nothing left to do" in out + err
    assert not (tmp_path / "~").exists()


@pytest.mark.slow
def test_a_mistake_prints_nothing_else(data: Path, tmp_path: Path) -> None:
    for override in ("lr=fast", "epoch=3", "arch.num_heads=5"):
        result = run_script("pretrain.py", train_arguments(data, tmp_path / "run", override), tmp_path)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_a_run_without_a_traceback(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., Any]
) -> None:
    train_step = TrainState.train_step

    def interrupted(state: TrainState, batch: dict[str, mx.array], flag: float) -> Any:
        if state.step == 3:
            raise KeyboardInterrupt
        return train_step(state, batch, flag)

    monkeypatch.setattr(TrainState, "train_step", interrupted)
    status, _, err = run_here(*train_arguments(data, tmp_path / "run"))
    assert status == 130
    assert err.endswith("\ninterrupted\n")
    assert "Traceback" not in err
    assert not list((tmp_path / "run").glob("step_*"))


def test_an_impossible_stop_is_told_before_training(data: Path, tmp_path: Path, run_here: Callable[..., Any]) -> None:
    # evaluations are hours apart: the first must not be where the run ends
    stop = ["stop_when.metric=eval/exact", "stop_when.at_least=1"]
    status, out, _ = run_here(*train_arguments(data, tmp_path / "run", *stop))
    assert (status, out) == (1, "")
    assert not (tmp_path / "run").exists()


def test_splits_of_different_sizes_are_refused(tmp_path: Path, run_here: Callable[..., Any]) -> None:
    odd = make_tiny_data(tmp_path / "odd")
    path = odd / "test" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 7}))
    status, _, err = run_here(*train_arguments(odd, tmp_path / "run"))
    assert status == 1
    assert "vocab_size is 6 in train and 7 in test" in err


def test_a_folder_that_cannot_be_written_is_named(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_here: Callable[..., Any]
) -> None:
    (tmp_path / "file").touch()
    status, _, err = run_here(*train_arguments(data, tmp_path / "file" / "run"))
    assert (status, err.count("\n")) == (1, 1)
    assert str(tmp_path / "file" / "run") in err

    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", read_only)  # as root, no folder is read-only
    status, _, err = run_here(*train_arguments(data, tmp_path / "run"))
    assert (status, err.count("\n")) == (1, 1)
    assert ".all_config.yaml.partial: Permission denied" in err


def test_values_and_folder_of_hydra_s_job_are_those_of_each_run(
    tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    """A sweep would write all its runs to one folder, or stop at a key that only Hydra knows."""
    data = make_tiny_data(tmp_path / "data")
    arguments = [a for a in train_arguments(data, tmp_path / "x", "epochs=1") if not a.startswith("checkpoint_path=")]
    sweep = ["seed=1,2", "hydra.sweep.dir=sweep", "hydra.job.chdir=True"]
    sweep.append("checkpoint_path=run-${hydra:job.num}")
    status, _, err = call_script(pretrain, "--multirun", *arguments, *sweep)
    assert status == 0, err
    assert {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("all_config.yaml")} == {
        "sweep/0/run-0",
        "sweep/1/run-1",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "evaluated"),
    [
        (["min_eval_interval=2"], [24, 32]),
        (["min_eval_interval=2", "max_steps=12"], [12]),  # its last step, in the middle of an iteration
        (["min_eval_interval=9", "max_steps=16"], [16]),
        (["min_eval_interval=9", "stop_when.metric=train/lm_loss", "stop_when.at_least=0", "stop_when.window=8"], [8]),
    ],
    ids=["last-two", "in-the-middle", "at-an-end", "stopped"],
)
def test_the_first_evaluations_can_be_left_out(
    data: Path, tmp_path: Path, call_script: Callable[..., Any], overrides: list[str], evaluated: list[int]
) -> None:
    """With their checkpoints; never the last one, without which a run would end with nothing."""
    run = tmp_path / "run"
    status, _, err = call_script(pretrain, *train_arguments(data, run, "epochs=4", *overrides))
    assert status == 0, err
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "eval/lm_loss" in line] == evaluated
    assert sorted(int(path.name.split("_")[1]) for path in run.glob("step_*")) == evaluated
    assert log[-1]["step"] == evaluated[-1]


@pytest.mark.slow
def test_a_run_without_its_first_evaluations_is_resumed_between_two_iterations(
    data: Path, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    """At step 16 an iteration ends, and nothing was evaluated."""
    run = tmp_path / "run"
    arguments = train_arguments(data, run, "epochs=4", "min_eval_interval=3", "checkpoint_interval=8")
    assert call_script(pretrain, *arguments)[0] == 0
    expected = [(run / "step_32" / f"{file}.safetensors").read_bytes() for file in ("model", "training")]
    for step in (24, 32):
        shutil.rmtree(run / f"step_{step}")
    status, out, err = call_script(pretrain, *arguments, "resume=auto")
    assert status == 0, err
    assert f"resuming {run / 'step_16'}" in out
    assert [(run / "step_32" / f"{file}.safetensors").read_bytes() for file in ("model", "training")] == expected
