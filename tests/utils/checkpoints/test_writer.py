"""Writing checkpoints: whole or not there whenever the process or the machine dies, and never at another's expense."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from common.errors import UserError
from tests.helpers.checkpoints import names, record, snapshot, write_step
from tests.helpers.disks import DISK_BYTES, read_only, small_disk
from utils.checkpoints import safetensors_file
from utils.checkpoints import writer as checkpoint
from utils.checkpoints.record import step_folders, verify
from utils.checkpoints.run_folder import RunFolder
from utils.checkpoints.safetensors_file import read_safetensors
from utils.checkpoints.stored_tensors import HostTensor, host_tensor
from utils.checkpoints.writer import CheckpointWriter, Snapshot, prune, write_checkpoint


def claim(path: Path) -> None:
    """What the next run does first."""
    with RunFolder(path) as folder:
        folder.claim()


def value_of(folder: Path) -> float:
    """What the arrays of a checkpoint by `tests.helpers.checkpoints.snapshot` hold; both files agree, or it is none."""
    verify(folder)
    weights, training = (read_safetensors(folder / name) for name in ("model.safetensors", "training.safetensors"))
    (value,) = {tensor.read()[0].item() for tensor in (*weights.values(), *training.values())}
    assert isinstance(value, float | int)
    return value


def test_a_checkpoint_is_three_files_that_others_can_read(tmp_path: Path) -> None:
    folder = write_step(tmp_path, 7, value=2.5)
    assert folder == tmp_path / "step_7"
    assert names(tmp_path) == ["step_7"]
    assert names(folder) == ["checkpoint.json", "model.safetensors", "training.safetensors"]
    weights, metadata = mx.load(str(folder / "model.safetensors"), return_metadata=True)
    assert weights["weight"].tolist() == [2.5] * 4
    assert metadata == {"format": "mlx", "step": "7"}
    assert mx.load(str(folder / "training.safetensors")).keys() == {"carry.steps", "random.key"}
    assert verify(folder).model_copy(update={"files": {}}) == record(7)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    """After an evaluation the same step is saved once more, now with what was found."""
    write_step(tmp_path, 7, value=1.0)
    assert value_of(write_step(tmp_path, 7, value=2.0)) == 2.0
    assert names(tmp_path) == ["step_7"]


# ------------------------------------------------------------------------------------------ killed at any moment


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(moment: int) -> Iterator[list[str]]:
    """End the process, as it were, right before the file operation of that number: from then on nothing changes the
    disk, whatever handlers of exceptions attempt. Yields the names of the operations so far.

    Files are written in pieces here and folders removed file by file, so that there are moments within.
    """
    done: list[str] = []

    def operate(what: str) -> None:
        if len(done) >= moment:
            raise Killed
        done.append(what)

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            operate(name)
            return function(*arguments, **options)

        return operation

    def remove(folder: Path, **_: Any) -> None:
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            operate("remove file")
            path.unlink()
        operate("remove folder")
        if folder.is_dir():
            folder.rmdir()

    def open_(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode[0] != "w":
            return open(path, mode, **options)
        operate("open")
        file = open(path, mode, **options)  # noqa: SIM115 - a part of the context manager below
        write = file.write

        class InPieces:
            """A file that takes half of what it is given at a time."""

            def __enter__(self) -> InPieces:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def write(self, data: Any) -> int:
                half = len(data) // 2
                for piece in (data[:half], data[half:]):
                    operate("write")
                    write(piece)
                    file.flush()
                return len(data)

        return InPieces()

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Path, "mkdir"), (Path, "rename"), (os, "fsync")):
            patch.setattr(owner, name, wrapped(name, getattr(owner, name)))
        patch.setattr(shutil, "rmtree", remove)
        for module in (checkpoint, safetensors_file):
            patch.setattr(module, "open", open_, raising=False)
        yield done


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_killed_at_any_moment_a_step_is_there_once_and_whole(tmp_path: Path, replacing: bool) -> None:
    """And killed again while the next run puts the folder in order. resume=auto would find half a checkpoint, or none
    where there had been one: a day's training."""
    outcomes = set()
    for moment in itertools.count():
        run = tmp_path / f"run-{moment}"
        run.mkdir()
        write_step(run, 3, value=3.0)
        if replacing:
            write_step(run, 5, value=1.0)
        with killed_at(moment) as operations:
            with suppress(Killed):
                write_step(run, 5, value=2.0)
        for folder in step_folders(run):  # what bears the name is whole also before anything is put in order
            verify(folder)
        with killed_at(1 + moment % 9):
            with suppress(Killed):
                claim(run)
        claim(run)
        assert names(run) in ([".lock", "step_3"], [".lock", "step_3", "step_5"]), moment
        assert value_of(run / "step_3") == 3.0
        outcomes.add(value_of(run / "step_5") if (run / "step_5").exists() else None)
        if replacing:
            assert (run / "step_5").exists(), moment
        assert value_of(write_step(run, 5, value=4.0)) == 4.0
        assert names(run) == [".lock", "step_3", "step_5"]
        if len(operations) < moment:  # it was not killed any more
            break

    assert outcomes == {1.0 if replacing else None, 2.0}
    assert operations.count("rename") == (2 if replacing else 1)
    assert {"mkdir", "open", "write", "fsync"} <= set(operations)


def test_killed_while_pruning_no_half_of_a_checkpoint_is_left(tmp_path: Path) -> None:
    for moment in itertools.count():
        run = tmp_path / f"run-{moment}"
        run.mkdir()
        for step in (1, 2, 3):
            write_step(run, step)
        with killed_at(moment) as operations:
            with suppress(Killed):
                prune(run, 1, None)
        claim(run)
        assert set(names(run)) <= {".lock", "step_1", "step_2", "step_3"}
        assert (run / "step_3").exists()
        for folder in step_folders(run):
            verify(folder)
        if len(operations) < moment:
            break
    assert names(run) == [".lock", "step_3"]
    assert operations.count("rename") == 2


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss of power a step folder would be there, and its files empty."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        (path,) = [path for path in (tmp_path, *tmp_path.rglob("*")) if path.stat().st_ino == inode]
        events.append(path.name)
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        events.append(f"-> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    write_step(tmp_path, 5)
    files = ["model.safetensors", "training.safetensors", "checkpoint.json"]
    assert events == [*files, ".step_5.partial", "-> step_5", tmp_path.name]


# ------------------------------------------------------------------------------------------ disks and folders


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path: Path) -> None:
    """Neither is room wasted on a half of the new one, without which the disk might not be full."""
    run = tmp_path / "run"
    with small_disk(run) as complaint:
        write_step(run, 3, value=3.0)
        for step in (5, 3):  # also if the step that is there was to be replaced
            with pytest.raises(OSError, match=complaint):
                write_step(run, step, size=DISK_BYTES // 4)
            assert names(run) == ["step_3"]
            assert value_of(run / "step_3") == 3.0
        write_step(run, 5, value=5.0)
        assert value_of(run / "step_5") == 5.0


def test_a_read_only_folder_costs_no_earlier_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_step(run, 3, value=3.0)
    with read_only(run) as complaint, pytest.raises(OSError, match=complaint):
        write_step(run, 5)
    assert names(run) == ["step_3"]
    assert value_of(run / "step_3") == 3.0


def test_a_folder_that_has_vanished_is_not_made_anew(tmp_path: Path) -> None:
    """A disk that is not mounted any more: the checkpoint would lie hidden below its mount point."""
    with pytest.raises(FileNotFoundError):
        write_step(tmp_path / "run", 3)
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------ pruning


@pytest.mark.parametrize(
    ("keep", "best", "expected"),
    [
        (1, None, [20]),
        (2, None, [9, 20]),
        (1, 3, [3, 20]),
        (2, 20, [9, 20]),
        (2, 9, [9, 20]),
        (9, 1, [1, 3, 9, 20]),
        (1, 7, [20]),  # the best was never saved
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int, best: int | None, expected: list[int]) -> None:
    for step in (1, 3, 9, 20):
        write_step(tmp_path, step)
    for other in ("step_2.damaged", "step_4.superseded", "step_20_all_preds.0", "code"):
        (tmp_path / other).mkdir()
    removed = prune(tmp_path, keep, best)
    assert sorted(int(folder.name.removeprefix("step_")) for folder in step_folders(tmp_path)) == expected
    assert {folder.name for folder in removed} == {f"step_{step}" for step in {1, 3, 9, 20} - set(expected)}
    assert {"step_2.damaged", "step_4.superseded", "step_20_all_preds.0", "code"} < set(names(tmp_path))


# ------------------------------------------------------------------------------------------ in the background


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds every checkpoint up until the event is set."""
    event = threading.Event()
    write = checkpoint.write_checkpoint

    def waiting(snapshot: Snapshot, checkpoint_path: Path) -> Path:
        assert event.wait(30)
        return write(snapshot, checkpoint_path)

    monkeypatch.setattr(checkpoint, "write_checkpoint", waiting)
    yield event
    event.set()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, held: threading.Event) -> None:
    with CheckpointWriter(tmp_path, None) as writer:
        writer.save(snapshot(3))
        writer.check()  # does not wait either
        assert names(tmp_path) == []
        held.set()
        writer.wait()
        assert names(tmp_path) == ["step_3"]


def test_leaving_in_peace_waits_for_the_last_checkpoint(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, None) as writer:
        for step in (3, 4, 5):
            writer.save(snapshot(step, size=100_000))
    assert names(tmp_path) == ["step_3", "step_4", "step_5"]
    for folder in step_folders(tmp_path):
        verify(folder)


def test_a_process_about_to_end_gives_the_checkpoint_time_but_not_for_ever(
    tmp_path: Path, held: threading.Event
) -> None:
    """Another rank is lost while rank 0 writes: that checkpoint is the one to go on from, if the disk answers."""
    with CheckpointWriter(tmp_path, None) as writer:
        writer.finish(0.01)  # nothing is being written
        writer.save(snapshot(1))
        with pytest.raises(concurrent.futures.TimeoutError):  # its own class until Python 3.10
            writer.finish(0.01)
        held.set()
        writer.finish(60)
        assert (tmp_path / "step_1").is_dir()


def test_no_more_than_two_snapshots_are_ever_held(tmp_path: Path, held: threading.Event) -> None:
    """Each takes as much memory as model and optimiser: a disk that is too slow must not fill the memory."""
    alive: list[weakref.ref[Snapshot]] = []

    def save(writer: CheckpointWriter, step: int) -> None:
        made = snapshot(step)
        alive.append(weakref.ref(made))
        writer.save(made)

    with CheckpointWriter(tmp_path, None) as writer:
        save(writer, 1)
        second = threading.Thread(target=save, args=(writer, 2))
        second.start()
        second.join(0.1)
        assert second.is_alive()  # until the first is written
        assert [reference() is not None for reference in alive] == [True, True]
        held.set()
        second.join(30)
        writer.wait()
        gc.collect()
        assert [reference() for reference in alive] == [None, None]
    assert names(tmp_path) == ["step_1", "step_2"]


def test_what_happens_to_the_arrays_after_saving_does_not_reach_the_checkpoint(
    tmp_path: Path, held: threading.Event
) -> None:
    """The next training step runs while the file is being written."""
    parameter = mx.ones(4)
    with CheckpointWriter(tmp_path, None) as writer:
        made = snapshot(3, value=1.0)
        writer.save(Snapshot({"weight": host_tensor(parameter)}, made.training, made.record))
        parameter[:] = 9.0
        parameter += 1.0
        mx.eval(parameter)
        held.set()
    assert value_of(tmp_path / "step_3") == 1.0


@pytest.mark.parametrize("surfaces_at", ["check", "wait", "save", "exit"])
def test_a_checkpoint_that_fails_is_told_with_the_one_that_is_intact(tmp_path: Path, surfaces_at: str) -> None:
    """Hours later the user would find that nothing has been saved since."""
    run = tmp_path / "run"

    def save() -> None:
        with CheckpointWriter(run, None) as writer:
            writer.save(snapshot(7, size=DISK_BYTES // 4))
            if surfaces_at == "check":
                end = time.monotonic() + 30
                while time.monotonic() < end:
                    writer.check()
            elif surfaces_at == "wait":
                writer.wait()
            elif surfaces_at == "save":
                writer.save(snapshot(8))
            assert surfaces_at == "exit", "the run would have gone on"

    with small_disk(run) as complaint:
        write_step(run, 3)
        with pytest.raises(UserError) as error:
            save()
        assert str(error.value) == (
            f"checkpoint step_7 can't be written to {run}: {complaint}; step_3 is intact: "
            "make room, or the folder writable, and continue with resume=auto"
        )
        assert names(run) == ["step_3"]


def test_a_failure_names_what_is_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with small_disk(run) as complaint, CheckpointWriter(run, None) as writer:
        writer.save(snapshot(7, size=DISK_BYTES // 4))
        with pytest.raises(UserError) as error:
            writer.wait()
        assert f"step_7 can't be written to {run}: {complaint}; there is no earlier one" in str(error.value)
        writer.wait()  # told once
    shutil.rmtree(run)
    with CheckpointWriter(run, None) as writer:
        writer.save(snapshot(7))
        with pytest.raises(UserError, match="the folder has vanished, and the run's checkpoints with it"):
            writer.wait()
    assert not run.exists()


def test_another_error_is_not_hidden_by_one_of_writing(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "run", None)
    writer.save(snapshot(7))  # into a folder that is not there
    with pytest.raises(RuntimeError, match="the step broke"), writer:
        raise RuntimeError("the step broke")


def test_the_writer_prunes_but_never_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with CheckpointWriter(tmp_path, 1) as writer:
        for step, best in ((1, None), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5)):
            writer.save(snapshot(step, best=best))
            writer.wait()
            assert names(tmp_path) == sorted({f"step_{step}", f"step_{best}"} - {"step_None"})
    said = "".join(capsys.readouterr())
    assert [line for line in said.splitlines() if "saved" in line] == [
        f"saved {tmp_path / f'step_{step}'}" for step in (1, 2, 3, 4, 5, 6)
    ]


def test_arrays_that_are_not_contiguous_are_written_as_they_look(tmp_path: Path) -> None:
    made = snapshot(3)
    transposed = HostTensor("float32", np.arange(6, dtype=np.float32).reshape(2, 3).T)
    folder = write_checkpoint(Snapshot({"weight": transposed}, made.training, made.record), tmp_path)
    assert mx.load(str(folder / "model.safetensors"))["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
