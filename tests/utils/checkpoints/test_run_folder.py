"""The folder of a run: one process at a time works in it, and finds in order what a killed one left."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

import models
from common.errors import UserError
from tests.helpers.checkpoints import names, write_step
from tests.helpers.disks import read_only
from tests.helpers.tiny_data import ROOT
from utils.checkpoints.record import step_folders, verify
from utils.checkpoints.run_folder import RunFolder, set_aside

HOLD = """
import sys, time
from pathlib import Path
from utils.checkpoints.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])) as folder:
    folder.claim()
    print("held", flush=True)
    time.sleep(60)
"""


def test_nothing_is_made_before_the_claim(tmp_path: Path) -> None:
    """A run that ends over a mistake in its configuration would leave an empty folder behind."""
    run = tmp_path / "project" / "run"
    with RunFolder(run) as folder:
        assert names(tmp_path) == []
        folder.claim()
        assert names(run) == [".lock"]
        folder.claim()  # once is enough


@pytest.mark.slow
def test_a_second_process_is_kept_out_until_the_first_is_dead(tmp_path: Path) -> None:
    """Two runs would mix their checkpoints. A lock that outlives kill -9 would keep resume=auto out for good."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with RunFolder(tmp_path / "run") as folder:
            with pytest.raises(UserError, match=r"checkpoint_path .*run is in use by another run; wait for it, or"):
                folder.claim()
            process.kill()
            process.wait()
            folder.claim()
    finally:
        process.kill()
        process.communicate()


def test_leaving_lets_the_next_one_in(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as first:
        first.claim()
        with RunFolder(tmp_path) as second:
            for _ in range(2):  # asking again does not help
                with pytest.raises(UserError, match="in use by another run"):
                    second.claim()
        with RunFolder(tmp_path) as third, pytest.raises(UserError, match="in use by another run"):
            third.claim()  # the second has not taken the lock away with it
    with RunFolder(tmp_path) as fourth:
        fourth.claim()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none; training there must be possible."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with RunFolder(tmp_path) as folder:
        folder.claim()


def test_a_folder_that_can_t_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "file").touch()

    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as error, RunFolder(path) as folder:
            folder.claim()
        assert "\n" not in str(error.value)
        return str(error.value)

    with read_only(tmp_path / "run") as complaint:
        for path in (tmp_path / "run", tmp_path / "run" / "deeper"):
            # where a read-only folder can't be had, a file stands in its place
            reason = "File exists" if (path.is_file()) else complaint
            assert refusal(path) == f"checkpoint_path {path} can't be used: {reason}"
    for path, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        assert refusal(path) == f"checkpoint_path {path} can't be used: {reason}"


def test_steps_of_an_earlier_run_are_not_mixed_with_others(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.claim()
        folder.refuse_earlier_steps()
        write_step(tmp_path, 5)
        write_step(tmp_path, 10)
        with pytest.raises(UserError, match=r"holds step_10 of an earlier run; continue it with resume=auto, choose"):
            folder.refuse_earlier_steps()


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_what_was_whole_when_the_run_was_killed_gets_its_name(tmp_path: Path, replacing: bool) -> None:
    """All of it is on the disk, and only the renaming was cut off."""
    if replacing:
        write_step(tmp_path, 5, history_bytes=1).rename(tmp_path / ".step_5.replaced")
    write_step(tmp_path, 5, history_bytes=2).rename(tmp_path / ".step_5.partial")
    with RunFolder(tmp_path) as folder:
        folder.claim()
    assert names(tmp_path) == [".lock", "step_5"]
    assert verify(tmp_path / "step_5").history_bytes == 2


def test_a_half_written_replacement_gives_way_to_what_it_was_to_replace(tmp_path: Path) -> None:
    """A loss of power can leave both: the older one under another name, and the newer one with a file cut short."""
    write_step(tmp_path, 5).rename(tmp_path / ".step_5.replaced")
    half = write_step(tmp_path, 5).rename(tmp_path / ".step_5.partial")
    (half / "training.safetensors").write_bytes(b"")
    with RunFolder(tmp_path) as folder:
        folder.claim()
    assert names(tmp_path) == [".lock", "step_5"]
    verify(tmp_path / "step_5")


def test_only_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    """Somebody's own files lie there as well."""
    own = ["notes.partial", ".notes.pruned", ".step_x.replaced", "step_5.damaged", "step_9_all_preds.0"]
    for name in own:
        (tmp_path / name).mkdir()
    (tmp_path / ".step_3.pruned").mkdir()
    (tmp_path / ".step_4.partial").mkdir()
    with RunFolder(tmp_path) as folder:
        folder.claim()
    assert names(tmp_path) == sorted([*own, ".lock"])


def test_what_is_set_aside_is_no_checkpoint_any_more_and_nothing_is_lost(tmp_path: Path) -> None:
    """The run may reach the same step again, and lose that one too."""
    for number, expected in enumerate(("step_5.damaged", "step_5.damaged-2", "step_5.damaged-3")):
        folder = write_step(tmp_path, 5, history_bytes=number)
        assert set_aside(folder, "damaged") == tmp_path / expected
        assert step_folders(tmp_path) == []
    assert [verify(tmp_path / name).history_bytes for name in names(tmp_path)] == [0, 1, 2]


def test_the_source_is_saved_with_the_weights(tmp_path: Path) -> None:
    """Years later the weights can still be run, whatever became of the repository."""
    package = Path(str(models.__file__)).parent
    kinds = {".py", ".cpp", ".h"}
    sources = {str(p.relative_to(package)): p.read_bytes() for p in package.rglob("*") if p.suffix in kinds}
    copy = tmp_path / "code" / "models"
    for _ in range(2):  # a resumed run saves it again, in place of the older one
        RunFolder(tmp_path).save_code()
        found = {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        assert found == sources
        (copy / "removed_since.py").touch()
