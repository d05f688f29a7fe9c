"""Resuming, with real processes: killed, interrupted, out of room, numerically broken. What counts is that the run ends
as if nothing had happened, and that no checkpoint that was there is lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.kill_runs import lines_of, start, train_under_fire, wait_for_lines
from tests.helpers.tiny_data import make_tiny_data, run_script, train_arguments
from tests.helpers.wandb_files import read_wandb_file

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("HRM_KILLS", "24"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data") / "sudoku-4x4", identifiers=5)


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """The folder of a run that nothing happened to."""
    run = data.parent / "whole"
    done = run_script("pretrain.py", arguments_of(data, run), data.parent)
    assert done.returncode == 0, done.stderr
    return run


def arguments_of(data: Path, checkpoint_path: Path, *overrides: str) -> list[str]:
    """60 steps, evaluations after 20, 40 and 60; metrics read every 2 steps, so that some are under way at a kill."""
    return train_arguments(
        data,
        checkpoint_path,
        "global_batch_size=16",
        "epochs=15",
        "eval_interval=5",
        "checkpoint_interval=3",
        "log_interval=2",
        "eval_save_outputs=[logits,preds]",
        "arch.hidden_size=128",  # slow enough to be killed somewhere in particular
        "arch.H_layers=2",
        "arch.L_layers=2",
        *overrides,
    )


def contents(checkpoint_path: Path) -> dict[str, Any]:
    """Everything that a run leaves, but what differs from start to start: configuration and time of saving."""
    files: dict[str, Any] = {
        str(path.relative_to(checkpoint_path)): path.read_bytes()
        for path in sorted(checkpoint_path.rglob("*"))
        if path.is_file() and path.name != "all_config.yaml"
    }
    for name in files:
        if name.endswith("checkpoint.json"):
            record = json.loads(files[name])["record"]
            files[name] = {key: record[key] for key in ("step", "progress", "train_metrics", "history_bytes", "files")}
    return files


def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_the_same(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """Parameters, optimiser, carry, random state of every checkpoint, logged metrics, evaluations and predictions."""
    rng = random.Random(0)
    kills = while_writing = 0
    while kills < KILLS:
        killed = tmp_path / f"killed-{kills}"
        done = train_under_fire(arguments_of(data, killed), killed, tmp_path, most=KILLS - kills, rng=rng)
        kills, while_writing = kills + done.total, while_writing + done.while_writing
        print(f"{done.total} kills, {done.while_writing} of them while writing; from {sorted(done.resumed_from)}")
        assert_same_run(killed, whole)
        shutil.rmtree(killed)
    assert while_writing >= KILLS // 10


def assert_same_run(found: Path, expected: Path) -> None:
    ours, theirs = contents(found), contents(expected)
    assert {f"step_{step}/training.safetensors" for step in (3, 20, 60)} <= theirs.keys()
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_goes_on_as_if_nothing_had_been(
    data: Path, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C in a terminal, which reaches all processes of the group, and SIGTERM from a job scheduler."""
    arguments = [a for a in arguments_of(data, tmp_path / "run") if not a.startswith("checkpoint_interval")]
    process = start([*arguments, "resume=auto"], tmp_path)
    wait_for_lines(process, tmp_path / "run" / "metrics.jsonl", 8)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert f"ended by {number.name}" in output
    assert "Traceback" not in output
    (step,) = [path.name for path in (tmp_path / "run").glob("step_*") if path.suffix == ""]
    assert f"saved {tmp_path / 'run' / step}" in output

    rest = run_script("pretrain.py", [*arguments, "resume=auto"], tmp_path)
    assert f"resuming {tmp_path / 'run' / step}" in rest.stdout + rest.stderr
    assert rest.returncode == 0, rest.stderr
    shutil.rmtree(tmp_path / "run" / step)  # the run that was left alone may not have saved there
    ours, theirs = contents(tmp_path / "run"), contents(whole)
    assert {"metrics.jsonl", *(f"step_{n}/training.safetensors" for n in (20, 40, 60))} <= ours.keys()
    assert ours.keys() <= theirs.keys()  # which was saved more often
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_wandb_gets_one_run_of_both_halves(data: Path, tmp_path: Path) -> None:
    """Recorded offline here: `wandb sync` joins folders whose runs have the same id."""
    arguments = [*arguments_of(data, tmp_path / "run", "log_interval=1"), "resume=auto"]
    process = start(arguments, tmp_path, WANDB_MODE="offline")
    wait_for_lines(process, tmp_path / "run" / "metrics.jsonl", 24)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    rest = run_script("pretrain.py", arguments, tmp_path, WANDB_MODE="offline")
    assert rest.returncode == 0, rest.stderr

    halves = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({path.name for path in halves}) == 1  # run-<id>.wandb
    steps = [{row["_step"] for row in read_wandb_file(path)["history"]} for path in halves]
    assert len(steps) == 2
    assert steps[0] | steps[1] == set(range(61))
    assert len(steps[0] & steps[1]) <= 1  # what was logged is not logged again


def test_an_interrupt_during_evaluation_does_not_wait_for_its_end(data: Path, tmp_path: Path) -> None:
    """A full Sudoku test set takes hours on a laptop; the evaluation is done again after resuming."""
    process = start(
        arguments_of(data, tmp_path / "run", "epochs=5", "arch.halt_max_steps=1000", "eval_batch_size=2"), tmp_path
    )
    wait_for_lines(process, tmp_path / "run" / "metrics.jsonl", 11)  # num_params and 10 reads: training is over
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    record = json.loads((tmp_path / "run" / "step_20" / "checkpoint.json").read_text())["record"]
    assert (record["progress"]["epochs_done"], record["progress"]["batches"]) == (0, 20)
    assert not list((tmp_path / "run").glob("*all_preds*"))
    assert not any("eval/" in line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


def test_a_second_ctrl_c_leaves_at_once(data: Path, tmp_path: Path) -> None:
    """Also in the middle of a step, which takes minutes on a large batch."""
    slow = ["arch.H_cycles=50", "global_batch_size=64", "log_interval=1", "checkpoint_interval=null"]
    process = start(arguments_of(data, tmp_path / "run", *slow), tmp_path)
    wait_for_lines(process, tmp_path / "run" / "metrics.jsonl", 2)  # the first step, which MLX compiles, is over
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    logged = lines_of(tmp_path / "run" / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert lines_of(tmp_path / "run" / "metrics.jsonl") == logged  # the step did not come to its end
    assert not list((tmp_path / "run").glob("step_*"))
