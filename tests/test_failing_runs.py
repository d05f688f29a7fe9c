"""Runs that meet trouble: no room on the disk, a folder that vanishes, damaged checkpoints, numbers that go wrong. Each
ends in one line that says what to do, and with the checkpoints that it had."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest

import evaluate
import pretrain
from tests.helpers.kill_runs import start, wait_for_lines
from tests.helpers.tiny_data import finished_run, make_tiny_data, run_script, train_arguments
from utils.checkpoints.record import step_folders, verify
from utils.checkpoints.weights import find_weights

pytestmark = pytest.mark.slow

CallScript = Callable[..., tuple[int, str, str]]  # status, stdout, stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data") / "sudoku-4x4", identifiers=5)


@pytest.fixture(scope="module")
def made_once(data: Path) -> Path:
    return finished_run(data)


@pytest.fixture
def finished(made_once: Path, tmp_path: Path) -> Path:
    """The folder of a run of 16 steps, with checkpoints every 4."""
    return Path(shutil.copytree(made_once, tmp_path / "finished"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for about three checkpoints of the tiny model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2600k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root; the same without a mount: a limit on the size of files")
    yield folder
    subprocess.run(["umount", folder], check=True)


def error_line(output: str) -> str:
    """The one line that a failed run says, its progress bars and tables aside; fails on a traceback."""
    assert "Traceback" not in output
    (line,) = [line for line in output.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    return line


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_full_disk_leaves_the_earlier_checkpoints_and_the_run_goes_on_after_it(
    data: Path, tmp_path: Path, small_disk: Path, finished: Path, call_script: CallScript
) -> None:
    arguments = train_arguments(data, small_disk / "run", "checkpoint_interval=2", "resume=auto")
    result = run_script("pretrain.py", arguments, tmp_path)
    assert result.returncode == 1
    line = error_line(result.stderr)
    assert "No space left on device" in line
    steps = step_folders(small_disk / "run")
    assert f"{steps[0].name} is intact" in line
    assert "resume=auto" in line
    for folder in steps:
        verify(folder)
    assert not list((small_disk / "run").glob(".step_*"))

    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    status, out, err = call_script(pretrain, *arguments)
    assert status == 0, err
    assert f"resuming {steps[0]}" in out
    assert log_of(small_disk / "run") == log_of(finished)


def test_a_limit_on_the_size_of_files_is_met_like_a_full_disk(data: Path, tmp_path: Path) -> None:
    """The same way out, where no small disk can be mounted: the file of weights fits, that of the moments does not."""
    process = start(train_arguments(data, tmp_path / "run"), tmp_path, largest_file=400_000)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    line = error_line(output)
    assert "step_8 can't be written" in line
    assert "File too large; there is no earlier one" in line
    assert not list((tmp_path / "run").glob("*step_*"))


def test_a_run_whose_folder_vanishes_says_so(data: Path, tmp_path: Path) -> None:
    """Made anew in silence, the folder would hold a checkpoint without its configuration."""
    arguments = train_arguments(data, tmp_path / "run", "epochs=400", "eval_interval=400", "checkpoint_interval=50")
    process = start(arguments, tmp_path)
    wait_for_lines(process, tmp_path / "run" / "metrics.jsonl", 60)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the folder has vanished" in error_line(output)
    assert not (tmp_path / "run").exists()
    for folder in step_folders(tmp_path / "elsewhere"):
        verify(folder)


def test_a_folder_that_can_t_be_written_to_ends_the_run_before_it_begins(
    data: Path, small_disk: Path, call_script: CallScript
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    status, _, err = call_script(pretrain, *train_arguments(data, small_disk / "run"))
    assert status == 1
    assert "run can't be used: Read-only file system" in error_line(err)


def test_predictions_on_a_full_disk_end_in_one_line(finished: Path, tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=4k", small_disk], check=True)
    # In a process of its own, which ends with the files that could not be written still open.
    result = run_script("evaluate.py", [f"checkpoint={finished}", f"output_path={small_disk}"], tmp_path)
    assert result.returncode == 1
    line = error_line(result.stderr)
    assert line.startswith(f"error: {small_disk}/")
    assert "No space left on device; free some space, or choose a folder on another disk" in line


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "missing file", "record"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    data: Path, finished: Path, damage: str, call_script: CallScript
) -> None:
    run, log = finished, log_of(finished)
    arguments = train_arguments(data, run, "checkpoint_interval=4")
    name = {"record": "checkpoint.json", "flipped bit": "training.safetensors"}.get(damage, "model.safetensors")
    path = run / "step_16" / name
    content = bytearray(path.read_bytes())
    if damage == "missing file":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    status, _, err = call_script(evaluate, f"checkpoint={run / 'step_16'}")
    if name == "training.safetensors":
        assert status == 0  # the weights are whole
    else:
        assert status == 1
        assert str(path) in error_line(err)

    status, _, err = call_script(pretrain, *arguments, f"resume={run / 'step_16'}")
    assert status == 1
    assert str(path) in error_line(err)

    status, out, err = call_script(pretrain, *arguments, "resume=auto")
    assert status == 0, err
    assert f"warning: {path} is" in out + err
    assert f"resuming {run / 'step_12'}" in out
    assert log_of(run) == log
    assert (run / "step_16.damaged").is_dir()
    verify(run / "step_16")


def test_a_run_with_numbers_that_go_wrong_stops_with_advice(
    data: Path, tmp_path: Path, call_script: CallScript
) -> None:
    """With a learning rate of 1e20 the squares of the weights overflow in the second step."""
    wild = ["lr=1e20", "weight_decay=0", "lr_warmup_steps=0", "epochs=4"]
    arguments = train_arguments(data, tmp_path / "run", *wild, "checkpoint_interval=1")
    status, _, err = call_script(pretrain, *arguments)
    assert status == 1
    line = error_line(err)
    assert "error: at step " in line
    newest = step_folders(tmp_path / "run")[0]
    assert f"{newest.name} is the last good checkpoint" in line
    assert "on_nonfinite=skip" in line
    for name, tensor in find_weights(str(newest)).tensors().items():
        assert mx.isfinite(tensor.read()).all(), name


def test_a_run_that_skips_them_counts_them_and_gives_up_when_nothing_else_comes(
    data: Path, tmp_path: Path, call_script: CallScript
) -> None:
    wild = ["lr=1e20", "weight_decay=0", "lr_warmup_steps=0", "on_nonfinite=skip"]
    status, _, err = call_script(pretrain, *train_arguments(data, tmp_path / "few", *wild))
    assert status == 0, err
    counts = [line["train/skipped_steps"] for line in log_of(tmp_path / "few") if "train/skipped_steps" in line]
    assert counts == sorted(counts)
    assert 0 < counts[-1] < len(counts) == 16
    record = verify(tmp_path / "few" / "step_16")
    assert record.train_metrics["skipped"] == counts[-1]

    status, _, err = call_script(pretrain, *train_arguments(data, tmp_path / "many", *wild, "epochs=40"))
    assert status == 1
    assert "as in all of the last 100 steps" in error_line(err)


def test_two_runs_do_not_work_in_one_folder(data: Path, tmp_path: Path, call_script: CallScript) -> None:
    """A scheduler that starts a job twice must not interleave two runs; a kill -9 frees the folder."""
    arguments = train_arguments(data, tmp_path / "run", "epochs=4000", "eval_interval=4000", "resume=auto")
    first = start(arguments, tmp_path)
    wait_for_lines(first, tmp_path / "run" / "metrics.jsonl", 2)
    status, _, err = call_script(pretrain, *arguments)
    assert status == 1
    assert "is in use by another run" in error_line(err)
    first.kill()
    first.communicate()
    shutil.rmtree(tmp_path / "run" / "code")
    status, _, err = call_script(pretrain, *train_arguments(data, tmp_path / "run", "resume=auto"))
    assert status == 0, err
