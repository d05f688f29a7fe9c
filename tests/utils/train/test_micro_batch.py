"""micro_batch_size=auto: what a step takes is measured, and what is taken fits."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import pretrain
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.configs import pretrain_config
from tests.helpers.tiny_data import BATCH, make_tiny_data, train_arguments
from utils.checkpoints.record import step_folders
from utils.config import read_saved_config
from utils.memory import SHARE, DeviceMemory
from utils.train import micro_batch
from utils.train.micro_batch import measure_step
from utils.train.state import TrainState, to_device


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data") / "sudoku-4x4", identifiers=5)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Give the device another memory, in bytes that a step may take."""

    def memory_of(budget: float) -> None:
        device = DeviceMemory("pretended", round(budget / SHARE))
        monkeypatch.setattr(micro_batch, "device_memory", lambda ranks: device)

    return memory_of


def opened(data: Path, rows: int) -> PuzzleDataset:
    return PuzzleDataset(data, "train", global_batch_size=rows)


def test_a_real_step_takes_what_was_predicted(data: Path) -> None:
    """Too little, and the run ends hours later; too much, and it takes tiny slices for nothing."""
    arch = {"hidden_size": 64, "H_layers": 2, "L_layers": 2}
    config, train_set = pretrain_config(arch, global_batch_size=48), opened(data, 48)
    memory = measure_step(config, train_set, budget=1 << 40)
    batch = to_device(next(train_set.train_batches(0, epochs=1)))
    others = mx.get_active_memory()
    for rows in (4, 16, 48):
        state = TrainState(config, train_set.metadata, total_steps=10, micro_batch_size=rows)
        mx.eval(state.arrays)
        for _ in range(2):  # the first begins without states
            mx.reset_peak_memory()
            result = state.train_step(batch)
            mx.eval(state.arrays, state.carry, result)
        predicted = memory.of(rows) - memory.checkpoint  # none is being written
        assert 0.8 * predicted < mx.get_peak_memory() - others < 1.1 * predicted
        del state, result


def run(call_script: Callable[..., Any], *arguments: str) -> tuple[str, dict[str, str]]:
    """Train; returns the line that announces the run, and the checksums of its checkpoints' arrays."""
    status, out, err = call_script(pretrain, *arguments)
    assert status == 0, err
    (folder,) = [Path(argument.partition("=")[2]) for argument in arguments if argument.startswith("checkpoint_path=")]
    sums = {
        f"{step.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for step in step_folders(folder)
        for file in step.glob("*.safetensors")
    }
    return next(line for line in (out + err).splitlines() if "parameters" in line), sums


def test_auto_is_the_run_of_the_number_that_fits_and_a_resumed_one_may_take_another(
    data: Path, tmp_path: Path, call_script: Callable[..., Any], pretend: Callable[[float], None]
) -> None:
    """A measurement that left a trace would make runs differ by the machine that began them."""
    arguments = train_arguments(data, tmp_path / "auto", "micro_batch_size=auto", "resume=auto")
    pretend(1 << 40)
    line, _ = run(call_script, *arguments, "max_steps=1")
    assert taken(line) == BATCH
    memory = measure_step(read_saved_config(tmp_path / "auto"), opened(data, BATCH), 1 << 40)
    shutil.rmtree(tmp_path / "auto")

    pretend(memory.of(3))  # about: how far the streams overlap differs from time to time
    line, automatic = run(call_script, *arguments)
    assert 1 <= taken(line) < BATCH
    line, given = run(call_script, *train_arguments(data, tmp_path / "given", f"micro_batch_size={taken(line)}"))
    assert automatic == given
    assert len(given) == 4

    pretend(1 << 40)
    line, longer = run(call_script, *arguments, "epochs=3")
    assert taken(line) == BATCH
    assert longer.items() > given.items()


def taken(line: str) -> int:
    """The rows at a time that the first line of a run names."""
    return int(line.partition("micro_batch_size ")[2].partition(",")[0])


def test_where_no_row_fits_auto_says_so(
    data: Path, tmp_path: Path, call_script: Callable[..., Any], pretend: Callable[[float], None]
) -> None:
    pretend(1000)
    status, _, err = call_script(pretrain, *train_arguments(data, tmp_path / "run", "micro_batch_size=auto"))
    assert status == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "micro_batch_size = 'auto'" in line
    assert "global_batch_size" in line


@pytest.mark.parametrize(("asked", "advice"), [("null", "micro_batch_size=auto"), ("4", "micro_batch_size=2")])
def test_a_run_out_of_memory_ends_in_one_line_with_what_to_change(
    asked: str,
    advice: str,
    data: Path,
    tmp_path: Path,
    call_script: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("[malloc] Unable to allocate 68719476736 bytes.")

    monkeypatch.setattr(TrainState, "train_step", fail)
    status, _, err = call_script(pretrain, *train_arguments(data, tmp_path / "run", f"micro_batch_size={asked}"))
    assert status == 1
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: out of memory ([malloc] Unable to allocate 68719476736 bytes.)")
    assert advice in line
    assert "forecast=true" in line
