"""Predictions on disk: real rows only, in order, in types that hold them, complete or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from dataset.puzzle_dataset import Batch
from utils.evaluation.predictions import PredictionWriter, predictions_folder, remove_surplus, to_numpy

KEYS = ["inputs", "labels", "puzzle_identifiers", "preds", "logits", "q_halt_logits", "q_continue_logits"]
ROWS, SEQ_LEN, VOCAB_SIZE = 4, 3, 6


def batch(first: int, num_examples: int) -> tuple[Batch, dict[str, mx.array]]:
    """Rows that hold their own number, and 77 in padding rows."""
    number = np.where(np.arange(ROWS) < num_examples, first + np.arange(ROWS), 77).astype(np.int32)
    tokens = np.repeat(number[:, None], SEQ_LEN, axis=1)
    outputs = {
        "preds": mx.array(tokens).astype(mx.uint32),
        "logits": mx.array(np.repeat(tokens[..., None], VOCAB_SIZE, axis=2)).astype(mx.bfloat16),
        "q_halt_logits": mx.array(number).astype(mx.float32),
        "q_continue_logits": -mx.array(number).astype(mx.float32),
        "halts": mx.array(number % 3 == 0),
    }
    arrays = {"inputs": tokens, "labels": np.where(tokens % 2, tokens, -100), "puzzle_identifiers": number}
    return Batch("all", arrays, num_examples), outputs


def write(folder: Path, keys: list[str] = KEYS, vocab_size: int = VOCAB_SIZE) -> None:
    """Two full batches of 4 rows and one of 2."""
    with PredictionWriter(folder, keys, vocab_size) as writer:
        for first, num_examples in ((0, 4), (4, 4), (8, 2)):
            writer.write(*batch(first, num_examples))


def test_rows_stand_in_order_and_padding_is_left_out(tmp_path: Path) -> None:
    """Row i must be example i: everything that scores predictions relies on it."""
    folder = predictions_folder(tmp_path, 12)
    assert folder.name == "step_12_all_preds.0"
    write(folder)
    numbers = np.arange(10)
    arrays = {key: np.load(folder / f"{key}.npy") for key in KEYS}
    assert {path.name for path in folder.iterdir()} == {f"{key}.npy" for key in KEYS}
    shapes = {key: array.shape for key, array in arrays.items()}
    assert shapes == dict.fromkeys(("inputs", "labels", "preds"), (10, SEQ_LEN)) | {
        "puzzle_identifiers": (10,),
        "logits": (10, SEQ_LEN, VOCAB_SIZE),
        "q_halt_logits": (10,),
        "q_continue_logits": (10,),
    }
    for key in ("inputs", "preds"):
        np.testing.assert_array_equal(arrays[key][:, 0], numbers)
        assert arrays[key].dtype == np.uint8
    np.testing.assert_array_equal(arrays["labels"][:, 1], np.where(numbers % 2, numbers, -100))
    np.testing.assert_array_equal(arrays["puzzle_identifiers"], numbers)
    np.testing.assert_array_equal(arrays["logits"][:, 2, 5], numbers)
    np.testing.assert_array_equal(arrays["q_continue_logits"], -numbers)
    assert {arrays[key].dtype for key in ("logits", "q_halt_logits")} == {np.dtype(np.float32)}


def test_only_the_named_keys_and_each_once(tmp_path: Path) -> None:
    write(tmp_path / "p", ["preds", "preds"])
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["preds.npy"]


def test_step_preds_hold_every_outer_step_of_every_example(tmp_path: Path) -> None:
    """The viewer would show another puzzle's thinking, or its steps in another order."""
    with PredictionWriter(tmp_path / "p", ["step_preds"], VOCAB_SIZE) as writer:
        for first, num_examples in ((0, 4), (4, 4), (8, 2)):
            for step in range(3):
                data, outputs = batch(first, num_examples)
                halts = mx.array(data.puzzle_identifiers % 3 == step)
                writer.write_step({key: array + 20 * step for key, array in outputs.items()} | {"halts": halts})
            writer.write(data, outputs)
    found = {path.name: np.load(path) for path in (tmp_path / "p").iterdir()}
    names = ("step_preds", "step_q_halt_logits", "step_q_continue_logits", "step_halted")
    assert found.keys() == {f"{name}.npy" for name in names}
    preds, q_halt = found["step_preds.npy"], found["step_q_halt_logits.npy"]
    assert (preds.dtype, preds.shape) == (np.uint8, (10, 3, SEQ_LEN))
    assert (q_halt.dtype, q_halt.shape) == (np.float32, (10, 3))
    expected = np.arange(10)[:, None] + 20 * np.arange(3)
    np.testing.assert_array_equal(preds[:, :, 1], expected)
    np.testing.assert_array_equal(q_halt, expected)
    np.testing.assert_array_equal(found["step_q_continue_logits.npy"][:, 0], -np.arange(10))
    assert found["step_halted.npy"].dtype == np.bool_
    np.testing.assert_array_equal(found["step_halted.npy"], np.arange(10)[:, None] % 3 == np.arange(3))


def test_what_a_model_does_not_give_is_left_out(tmp_path: Path) -> None:
    """A model without Q-continue, evaluated with the default keys, would end in a KeyError or an empty file."""
    with PredictionWriter(tmp_path / "p", [*KEYS, "step_preds"], VOCAB_SIZE) as writer:
        for first, num_examples in ((0, 4), (4, 2)):
            data, outputs = batch(first, num_examples)
            del outputs["q_continue_logits"]
            writer.write_step(outputs)
            writer.write(data, outputs)
    found = {path.stem: np.load(path) for path in (tmp_path / "p").iterdir()}
    assert found.keys() == {*KEYS, "step_preds", "step_q_halt_logits", "step_halted"} - {"q_continue_logits"}
    assert {len(array) for array in found.values()} == {6}


def test_large_vocabularies_keep_their_tokens(tmp_path: Path) -> None:
    """In a byte, token 300 would come back as 44."""
    with PredictionWriter(tmp_path / "p", ["inputs", "preds"], 301) as writer:
        data, outputs = batch(300, 1)
        writer.write(data, outputs)
    for key in ("inputs", "preds"):
        assert np.load(tmp_path / "p" / f"{key}.npy").max() == 300


def test_a_writer_that_fails_leaves_the_older_predictions(tmp_path: Path) -> None:
    """Neither half a folder under the final name nor the loss of what an earlier evaluation wrote."""
    folder = tmp_path / "step_1_all_preds.0"

    def fail(writer: PredictionWriter) -> Any:
        with writer:
            writer.write(*batch(0, 4))
            assert not {path.name for path in tmp_path.iterdir()} - {folder.name, writer._partial.name}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(PredictionWriter(folder, KEYS, VOCAB_SIZE))
    assert not list(tmp_path.iterdir())

    write(folder)
    with pytest.raises(KeyboardInterrupt):
        fail(PredictionWriter(folder, ["preds"], VOCAB_SIZE))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert len(list(folder.iterdir())) == len(KEYS)


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """After kill -9 nobody cleans up: what is left must not pass for predictions, nor stop the next evaluation."""
    folder = tmp_path / "step_1_all_preds.0"
    killed = PredictionWriter(folder, KEYS, VOCAB_SIZE)
    killed.__enter__()
    killed.write(*batch(0, 4))
    for file in killed._files.values():  # as the system does for a process that is gone
        file.file.close()
    assert not list(tmp_path.glob("step_*"))
    write(folder, ["preds"])
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert [path.name for path in folder.iterdir()] == ["preds.npy"]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32, mx.int32, mx.uint32, mx.bool_], ids=str)
def test_every_dtype_gets_to_numpy(dtype: mx.Dtype) -> None:
    found = to_numpy(mx.array([0, 1]).astype(dtype))
    assert found.tolist() == [0, 1]
    assert found.dtype == (np.float32 if dtype == mx.bfloat16 else np.dtype(str(dtype).removeprefix("mlx.core.")))


def test_predictions_of_more_ranks_than_now_are_removed(tmp_path: Path) -> None:
    """`step_<N>_all_preds.*`, which ARC scoring reads, would mix two evaluations. Other steps and names stay."""
    names = [f"step_5_all_preds.{end}" for end in ("0", "1", "2", "10", "old")] + ["step_50_all_preds.2", "step_5"]
    for name in names:
        (tmp_path / name).mkdir()
    remove_surplus(tmp_path, 5, num_ranks=2)
    assert {path.name for path in tmp_path.iterdir()} == set(names) - {"step_5_all_preds.2", "step_5_all_preds.10"}
