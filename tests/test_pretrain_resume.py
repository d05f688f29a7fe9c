"""pretrain.py taken up again in one process: what is said, what is refused, and what a change of mind leads to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pretrain
from tests.helpers.checkpoints import names
from tests.helpers.tiny_data import finished_run, make_tiny_data, train_arguments

pytestmark = pytest.mark.slow

RunHere = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data") / "sudoku-4x4")


@pytest.fixture
def run_here(call_script: Callable[..., Any]) -> RunHere:
    """Call pretrain.py in this process; returns (exit status, stdout, stderr)."""
    return partial(call_script, pretrain)


@pytest.fixture(scope="module")
def made_once(data: Path) -> Path:
    return finished_run(data)


@pytest.fixture
def finished(made_once: Path, tmp_path: Path) -> Path:
    """The folder of a run of 16 steps, with checkpoints every 4."""
    return Path(shutil.copytree(made_once, tmp_path / "run"))


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(step_folder: Path) -> bytes:
    return (step_folder / "model.safetensors").read_bytes()


def test_a_finished_run_has_nothing_left_to_do(data: Path, finished: Path, run_here: RunHere) -> None:
    """A job scheduler that starts it once more must not train on, nor log anything twice."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and path.suffix != ".yaml"}
    status, out, _ = run_here(*train_arguments(data, finished, "checkpoint_interval=4", "resume=auto"))
    assert status == 0
    assert f"resuming {finished / 'step_16'}" in out
    assert "nothing left to do: all 2 epochs are done" in out
    assert "changed since then" not in out
    assert {path: path.read_bytes() for path in before} == before


def test_a_longer_run_goes_on_and_says_what_has_changed(data: Path, finished: Path, run_here: RunHere) -> None:
    changes = ["epochs=3", "lr=1e-3", "micro_batch_size=3"]
    status, out, err = run_here(*train_arguments(data, finished, *changes, "resume=auto"))
    assert status == 0, err
    said = [line for line in out.splitlines() if line.startswith("changed since then")]
    assert said == [
        "changed since then: checkpoint_interval: 4 → None",
        "changed since then: epochs: 2 → 3",
        "changed since then: lr: 0.002 → 0.001",
        "changed since then: micro_batch_size: None → 3",
    ]
    assert names(finished)[-5:] == ["step_12", "step_16", "step_24", "step_4", "step_8"]
    assert [row["step"] for row in history(finished) if "train/lr" in row] == list(range(1, 25))
    assert [row["step"] for row in history(finished) if "eval/accuracy" in row] == [8, 16, 24]


def test_a_resume_that_is_refused_changes_nothing(data: Path, finished: Path, run_here: RunHere) -> None:
    """Steps that were set aside for it would not be found by the next resume=auto."""
    before = names(finished)
    arguments = train_arguments(data, finished, f"resume={finished / 'step_4'}", "arch.hidden_size=64")
    status, _, err = run_here(*arguments)
    assert (status, err.count("\n")) == (1, 1)
    assert "step_4 can't be continued, because this differs: arch.hidden_size: 32 → 64" in err
    assert names(finished) == before


def test_an_earlier_step_is_taken_up_again(data: Path, finished: Path, run_here: RunHere) -> None:
    """The same steps give the same weights, and the ones that were there before are kept under another name."""
    status, out, err = run_here(
        *train_arguments(data, finished, "checkpoint_interval=4", f"resume={finished / 'step_8'}")
    )
    assert status == 0, err
    assert f"resuming {finished / 'step_8'}" in out
    assert f"{finished / 'step_12'} is renamed to step_12.superseded" in out
    for step in ("step_12", "step_16"):
        assert weights(finished / step) == weights(finished / f"{step}.superseded")
    assert [row["step"] for row in history(finished) if "train/lr" in row] == list(range(1, 17))


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    data: Path, finished: Path, run_here: RunHere
) -> None:
    path = finished / "step_16" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    status, out, err = run_here(*train_arguments(data, finished, "checkpoint_interval=4", "resume=auto"))
    assert status == 0, err
    assert f"warning: {path} is damaged" in err
    assert f"resuming {finished / 'step_12'}" in out
    assert weights(finished / "step_16") == weights(finished / "step_16.damaged")


def test_a_run_that_stopped_in_the_middle_of_an_iteration_can_go_on_from_there(
    data: Path, finished: Path, tmp_path: Path, run_here: RunHere
) -> None:
    """The rest of the iteration, which may be a tenth of all data, would be left out, and the run end too early."""
    stop = ["stop_when.metric=train/lm_loss", "stop_when.at_most=100", "stop_when.window=3"]
    status, out, err = run_here(*train_arguments(data, tmp_path / "stopped", *stop))
    assert status == 0, err
    assert "over 3 steps, stopping" in out
    assert [name for name in names(tmp_path / "stopped") if "step" in name] == ["step_3"]
    status, out, _ = run_here(*train_arguments(data, tmp_path / "stopped", *stop, "resume=auto"))
    assert (status, "nothing left to do: train/lm_loss = " in out) == (0, True)

    status, out, err = run_here(*train_arguments(data, tmp_path / "stopped", "resume=auto"))
    assert status == 0, err
    assert weights(tmp_path / "stopped" / "step_16") == weights(finished / "step_16")


def test_max_steps_ends_a_run_on_the_way_of_a_longer_one(
    data: Path, finished: Path, tmp_path: Path, run_here: RunHere
) -> None:
    """Where time is short, a piece of a long run would need another schedule, and then could not be continued."""
    run = tmp_path / "short"
    for steps, said in ((3, "3 steps"), (11, "11 steps"), (99, "16 steps")):
        status, out, err = run_here(*train_arguments(data, run, f"max_steps={steps}", "resume=auto"))
        assert status == 0, err
        assert f" parameters, {said}, BLAS" in out
        assert "nothing left" not in out
        if steps == 11:
            status, out, _ = run_here(*train_arguments(data, run, "max_steps=11", "resume=auto"))
            assert (status, "nothing left to do: max_steps = 11 is reached" in out) == (0, True)
    assert {path.name for path in run.glob("step_*")} == {"step_3", "step_8", "step_11", "step_16"}
    assert [row["step"] for row in history(run) if "eval/accuracy" in row] == [3, 8, 11, 16]
    assert weights(run / "step_16") == weights(finished / "step_16")


def test_the_first_line_says_how_many_steps_the_data_has(data: Path, tmp_path: Path, run_here: RunHere) -> None:
    """Incomplete batches at the end of an iteration are dropped: the second schedule has 3 steps, its data 2."""
    status, out, err = run_here(*train_arguments(data, tmp_path / "run", "global_batch_size=32", "lr_warmup_steps=0"))
    assert (status, " parameters, 4 steps, BLAS" in out) == (0, True), err
    status, out, err = run_here(*train_arguments(data, tmp_path / "run2", "global_batch_size=36", "lr_warmup_steps=0"))
    assert (status, " parameters, 2 steps, BLAS" in out) == (0, True), err
    assert [row["step"] for row in history(tmp_path / "run2") if "train/lr" in row] == [1, 2]


def test_a_vanished_history_and_code_are_no_obstacle(data: Path, finished: Path, run_here: RunHere) -> None:
    """Checkpoints copied to another machine without the rest go on there."""
    for path in (finished / "metrics.jsonl", finished / ".lock", finished / "all_config.yaml"):
        path.unlink()
    shutil.rmtree(finished / "code")
    status, out, err = run_here(*train_arguments(data, finished, "resume=auto", "epochs=3"))
    assert status == 0, err
    assert f"resuming {finished / 'step_16'}" in out
    assert [row["step"] for row in history(finished)] == [*range(17, 25), 24]


def test_a_run_that_was_cut_short_in_an_iteration_and_then_extended_does_all_its_steps(
    data: Path, tmp_path: Path, run_here: RunHere
) -> None:
    run, long = tmp_path / "run", ["eval_interval=2", "checkpoint_interval=4"]
    status, _, err = run_here(*train_arguments(data, run, *long))
    assert status == 0, err
    for step in (8, 12, 16):
        shutil.rmtree(run / f"step_{step}")
    assert run_here(*train_arguments(data, run, "epochs=1", "resume=auto"))[0] == 0
    assert names(run)[-1] == "step_8"
    status, out, err = run_here(*train_arguments(data, run, *long, "resume=auto"))
    assert status == 0, err
    assert "nothing left" not in out
    assert [row["step"] for row in history(run) if "train/lr" in row] == list(range(1, 17))


def test_a_run_stopped_at_the_end_of_an_iteration_is_not_evaluated_twice(
    data: Path, tmp_path: Path, run_here: RunHere
) -> None:
    """An evaluation of a full test set takes hours."""
    stop = ["stop_when.metric=train/lm_loss", "stop_when.at_most=100", "stop_when.window=8"]
    assert run_here(*train_arguments(data, tmp_path / "run", *stop))[0] == 0
    assert run_here(*train_arguments(data, tmp_path / "run", "resume=auto"))[0] == 0
    assert [row["step"] for row in history(tmp_path / "run") if "eval/accuracy" in row] == [8, 16]


def test_the_best_is_saved_where_only_few_are_kept(data: Path, tmp_path: Path, run_here: RunHere) -> None:
    few = ["checkpoint_every_eval=False", "keep_checkpoints=1", "lr=0", "puzzle_emb_lr=0", "epochs=3"]
    status, _, err = run_here(*train_arguments(data, tmp_path / "run", *few, "checkpoint_interval=5"))
    assert status == 0, err
    kept = {path.name for path in (tmp_path / "run").glob("step_*")}
    assert kept == {"step_8", "step_24"}  # without learning, the first evaluation remains the best
