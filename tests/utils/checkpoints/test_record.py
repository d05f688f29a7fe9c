"""What a checkpoint knows besides its arrays: it comes back as it was, or the damage is noticed and named."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from tests.helpers.checkpoints import record, write_step
from utils.checkpoints.record import (
    DamagedCheckpointError,
    Evaluated,
    Progress,
    read_record,
    record_text,
    step_folders,
    step_of,
    verify,
)

FILES = ("model.safetensors", "training.safetensors")


def damage(folder: Path) -> str:
    """The message with which a step folder is refused."""
    with pytest.raises(DamagedCheckpointError) as error:
        verify(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def flip_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """Also numbers that JSON lacks: a run whose loss was infinite for a while must not lose its checkpoints by that."""
    sums = {"loss": math.nan, "lm_loss": math.inf, "count": 0.1 + 0.2, "accuracy": 1e-45}
    written = record(
        7,
        best=4,
        history_bytes=10**12,
        wandb_run_id=None,
        train_metrics={"unread": [sums], "window": [sums, sums], "skipped": 3, "skipped_in_a_row": 1},
        versions={"platform": "Größe\u2028\ud800"},
    )
    assert written.progress.best is not None
    written.progress.best.metrics["eval/lm_loss"] = math.nan
    (tmp_path / "checkpoint.json").write_text(record_text(written), encoding="utf-8")
    found = read_record(tmp_path)
    assert record_text(found) == record_text(written)  # NaN is not equal to itself, its text is
    assert found.train_metrics["unread"][0]["count"] == 0.1 + 0.2
    assert math.isnan(found.progress.best.metrics["eval/lm_loss"])


def test_a_bit_that_flips_anywhere_in_the_record_is_noticed(tmp_path: Path) -> None:
    """A run would go on from another place in the data, or with another file's checksum."""
    path = tmp_path / "checkpoint.json"
    whole = record_text(record(7)).encode()
    path.write_bytes(whole)
    expected, unnoticed = read_record(tmp_path), 0
    for bit in range(0, 8 * len(whole), 29):  # all bits of a byte in turn, somewhere in the file
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            assert read_record(tmp_path) == expected, bit
        except DamagedCheckpointError:
            continue
        unnoticed += 1  # one kind of white space for another
    assert unnoticed < 8 * len(whole) / 29 / 10


def test_a_record_that_ends_early_is_noticed(tmp_path: Path) -> None:
    whole = record_text(record(7)).encode()
    for length in [*range(0, len(whole), 13), len(whole) - 1]:
        (tmp_path / "checkpoint.json").write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpointError, match=r"checkpoint\.json is damaged: it is not valid JSON"):
            read_record(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"record"',
        b'{"record": {"step": 7}}',
        b'{"record": 1, "sha256": null}',
        b"[" * 100_000,
        b"1" * 10_000,
        b"\xff\xfe\x00",
    ],
    ids=lambda content: content[:12].decode(errors="replace") or "empty",
)
def test_other_content_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    """A traceback here would keep `resume=auto` from looking at the checkpoint before this one."""
    (tmp_path / "checkpoint.json").write_bytes(content)
    assert f"{tmp_path / 'checkpoint.json'} is damaged" in damage(tmp_path)


def test_a_record_that_is_missing_or_no_file_is_named(tmp_path: Path) -> None:
    assert damage(tmp_path) == f"{tmp_path / 'checkpoint.json'} is missing"
    (tmp_path / "checkpoint.json").mkdir()
    assert damage(tmp_path) == f"{tmp_path / 'checkpoint.json'} can't be read: Is a directory"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, "format = 2 in "),
        ({"optimizer": "muon"}, "unknown key 'optimizer'"),
        ({"progress": None}, "progress = None"),
        ({"step": -1}, "step = -1"),
    ],
    ids=str,
)
def test_a_record_of_another_version_says_so(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    """Intact, but of a format that this code does not know: half understood, it would lead a run astray."""
    values = record(7).model_dump() | change
    checksum = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (tmp_path / "checkpoint.json").write_text(json.dumps({"sha256": checksum, "record": values}))
    message = damage(tmp_path)
    assert expected in message
    assert "written by another version" in message


@pytest.mark.parametrize("name", FILES)
def test_damage_to_either_file_is_found_and_named(tmp_path: Path, name: str) -> None:
    """The weights alone would look fine in an evaluation, and the run go on with a broken optimiser."""
    folder = write_step(tmp_path, 7, size=1000)
    path = folder / name
    whole = path.read_bytes()
    assert set(verify(folder).files) == set(FILES)

    for bit in (0, 8 * 100 + 3, 8 * len(whole) - 1):  # in the count of the header, the header, the last number
        flip_bit(path, bit)
        assert damage(folder) == f"{path} is damaged: its checksum is not the one that was written"
        flip_bit(path, bit)
    for content in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"):
        path.write_bytes(content)
        assert damage(folder) == f"{path} is damaged: {len(content)} bytes, {len(whole)} were written"
    path.unlink()
    assert damage(folder) == f"{path} is missing"
    path.mkdir()
    assert damage(folder) == f"{path} can't be read: Is a directory"
    path.rmdir()
    path.write_bytes(whole)
    assert verify(folder).step == 7


def test_a_folder_of_another_step_than_its_name_says_is_noticed(tmp_path: Path) -> None:
    """A copy of step_7 named step_9 would be continued as the newest, and step_8 set aside for nothing."""
    shutil.copytree(write_step(tmp_path, 7), tmp_path / "step_9")
    message = damage(tmp_path / "step_9")
    assert message.startswith(f"{tmp_path / 'step_9'} holds step 7")
    assert "rename" in message


def test_step_folders_are_found_by_number_newest_first(tmp_path: Path) -> None:
    for name in ("step_9", "step_100", "step_20"):
        (tmp_path / name).mkdir()
    for name in ("step_200.damaged", ".step_300.partial", "step_400_all_preds.0", "step_", "step_x", "mystep_500"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_600").touch()  # a file of the PyTorch code
    assert [folder.name for folder in step_folders(tmp_path)] == ["step_100", "step_20", "step_9"]
    assert step_folders(tmp_path / "nowhere") == []
    assert step_of(tmp_path / "step_100") == 100
    with pytest.raises(UserError, match=r"step_200\.damaged is not a step folder; expected a name such as step_1000"):
        step_of(tmp_path / "step_200.damaged")


# ------------------------------------------------------------------------------------------ progress and the best


def iterations(progress: Progress, epochs_per_iteration: int, epochs: int) -> list[tuple[int, int, int]]:
    """Number, first epoch and length of each iteration up to the end of a run."""
    found = []
    while not progress.finished(epochs):
        found.append((progress.iteration, progress.epochs_done, progress.iteration_epochs))
        progress.next_iteration(epochs_per_iteration, epochs)
    return found


def test_iterations_follow_one_another_to_the_last_epoch() -> None:
    """Data would be left out, seen twice, or trained on beyond the end of the schedule."""
    assert iterations(Progress(iteration_epochs=5), 5, 15) == [(0, 0, 5), (1, 5, 5), (2, 10, 5)]
    assert iterations(Progress(iteration_epochs=15), 15, 15) == [(0, 0, 15)]
    # the evaluation interval was 5 and is 4 from the second iteration on; the last one is shorter
    resumed = Progress(iteration=1, epochs_done=5, iteration_epochs=4)
    assert iterations(resumed, 4, 15) == [(1, 5, 4), (2, 9, 4), (3, 13, 2)]
    # an iteration that was under way with a length of 5 keeps it
    resumed = Progress(iteration=1, epochs_done=5, iteration_epochs=5, batches=3)
    assert iterations(resumed, 4, 15) == [(1, 5, 5), (2, 10, 4), (3, 14, 1)]


def test_the_next_iteration_begins_with_its_first_batch() -> None:
    progress = Progress(iteration_epochs=5, batches=20)
    progress.next_iteration(5, 15)
    assert progress.batches == 0


def test_a_run_is_finished_by_its_epochs_or_by_stop_when() -> None:
    assert not Progress(iteration_epochs=1, epochs_done=14).finished(15)
    assert Progress(iteration_epochs=1, epochs_done=15).finished(15)
    assert Progress(iteration_epochs=1, epochs_done=15).finished(10)  # epochs=10 after 15 were done
    assert Progress(iteration_epochs=1, epochs_done=1, stopped="train/lm_loss = 0.1").finished(15)


def evaluated(**metrics: float) -> Evaluated:
    return Evaluated(step=1, metrics={f"eval/{name.replace('__', '/')}": value for name, value in metrics.items()})


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (evaluated(exact_accuracy=0.6, lm_loss=9.0), evaluated(exact_accuracy=0.5, lm_loss=1.0)),
        (evaluated(exact_accuracy=0.0, lm_loss=1.0), evaluated(exact_accuracy=0.0, lm_loss=2.0)),
        (
            evaluated(easy__exact_accuracy=0.2, easy__lm_loss=1.0, hard__exact_accuracy=0.4, hard__lm_loss=1.0),
            evaluated(easy__exact_accuracy=0.5, easy__lm_loss=1.0, hard__exact_accuracy=0.0, hard__lm_loss=1.0),
        ),
        (
            evaluated(exact_accuracy=0.5, accuracy=0.1, q_halt_accuracy=0.1, lm_loss=1.0, q_halt_loss=9.0),
            evaluated(exact_accuracy=0.4, accuracy=0.9, q_halt_accuracy=0.9, lm_loss=1.0, q_halt_loss=0.0),
        ),
        (evaluated(exact_accuracy=0.0, lm_loss=9.0), evaluated(exact_accuracy=0.0, lm_loss=math.nan)),
        (evaluated(exact_accuracy=0.0, lm_loss=9.0), evaluated(exact_accuracy=0.0, lm_loss=math.inf)),
    ],
    ids=["accuracy", "loss-at-equal-accuracy", "mean-of-sets", "nothing-else", "nan-is-worst", "inf-is-worst"],
)
def test_the_best_evaluation(better: Evaluated, worse: Evaluated) -> None:
    """keep_checkpoints would remove the checkpoint that the user wanted to keep."""
    assert better.quality > worse.quality
    assert not worse.quality > better.quality


def test_equally_good_keeps_the_first() -> None:
    """Otherwise the best would be whatever came last: a run's newest is kept anyhow."""
    assert not evaluated(exact_accuracy=0.5, lm_loss=1.0).quality > evaluated(exact_accuracy=0.5, lm_loss=1.0).quality
