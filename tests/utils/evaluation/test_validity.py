"""Answers judged without their label: which checks a data set gets, and what evaluation makes of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from common.errors import UserError
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import PuzzleDataset
from dataset.writer import DatasetWriter
from pretrain import known_metrics
from tests.helpers.configs import pretrain_config, train_state
from utils.evaluation.evaluate import Evaluator, evaluate
from utils.evaluation.validity import answer_checks

SOLVED_6 = np.array([(3 * row + row // 2 + col) % 6 + 2 for row in range(6) for col in range(6)], np.uint8)


def metadata(seq_len: int, vocab_size: int, **more: Any) -> PuzzleDatasetMetadata:
    return PuzzleDatasetMetadata(
        pad_id=0,
        ignore_label_id=0,
        blank_identifier_id=0,
        vocab_size=vocab_size,
        seq_len=seq_len,
        num_puzzle_identifiers=1,
        total_groups=1,
        mean_puzzle_examples=1.0,
        sets=["all"],
        **more,
    )


def test_checks_are_chosen_by_kind() -> None:
    """Numbers that mean nothing would be logged for ARC or somebody's own puzzles."""
    names = {
        "sudoku 9x9": (metadata(81, 11, kind="sudoku", box=(3, 3)), ["valid"]),
        "sudoku 6x6": (metadata(36, 8, kind="sudoku", box=(2, 3)), ["valid"]),
        "sudoku without box": (metadata(16, 6, kind="sudoku"), ["valid"]),
        "sudoku whose boxes nobody knows": (metadata(36, 8, kind="sudoku"), []),
        "maze": (metadata(49, 6, kind="maze"), ["valid_path", "optimal"]),
        "maze that is no square": (metadata(48, 6, kind="maze"), []),
        "arc": (metadata(900, 12, kind="arc"), []),
        "own": (metadata(81, 11, kind="own"), []),
        "old 9x9 sudoku": (metadata(81, 11), ["valid"]),
        "old 30x30 maze": (metadata(900, 6), ["valid_path", "optimal"]),
        "old arc": (metadata(900, 12), []),
        "old 4x4, sudoku or maze": (metadata(16, 6), []),
    }
    for name, (data, expected) in names.items():
        assert list(answer_checks(data)) == expected, name
    check = answer_checks(metadata(36, 8, kind="sudoku", box=(2, 3)))["valid"]
    assert check(np.ones((1, 36), np.uint8), SOLVED_6[None]).all(), "the box shape of dataset.json is not used"
    for box in ((3, 3), (0, 6), (-2, -3)):
        with pytest.raises(UserError, match=r"dataset.json: box is \[.*\], expected rows and columns .* seq_len = 36"):
            answer_checks(metadata(36, 8, kind="sudoku", box=box))


def test_evaluation_reports_them_as_means_over_the_examples(tmp_path: Path) -> None:
    """Padding rows, here 6 of the last batch's 8, must not count, and rows without labels must; the names must be those
    that stop_when may use."""
    solutions = [
        np.array(grid) for grid in itertools.product((2, 3, 4, 5), repeat=4) if len(set(grid)) == 4
    ]  # first rows; the others follow by shifts
    boards = np.stack([np.concatenate([np.roll(row, -shift) for shift in (0, 2, 1, 3)]) for row in solutions[:10]])
    blanked = np.where(np.arange(16) < 8, 1, boards)
    blanked[:3] = boards[:3]  # nothing to solve: an answer that copies the input is valid
    labels = np.where(np.arange(10)[:, None] == 9, 0, boards)  # the last has no label
    with DatasetWriter(tmp_path / "4x4", seq_len=16, vocab_size=6, kind="sudoku", box=(2, 2)) as writer:
        for split in ("train", "test"):
            ones = np.ones(10, np.int32)
            writer.add(
                split,
                blanked.astype(np.uint8),
                labels.astype(np.uint8),
                puzzle_identifiers=0 * ones,
                examples_per_puzzle=ones,
                puzzles_per_group=ones,
            )
    data = PuzzleDataset(tmp_path / "4x4", "test", global_batch_size=8)

    class Copies(Evaluator):
        """Answers every puzzle with itself, and padding with a valid grid; all else is the model's."""

        def outer_steps(self, batch: Any) -> Any:
            preds = mx.where(batch["inputs"] == 0, mx.array(boards[0]), batch["inputs"])
            for carry, metrics, outputs in super().outer_steps(batch):
                yield carry, metrics, outputs | {"preds": preds}

    state = train_state(pretrain_config(), data.metadata)
    result = evaluate(Copies(state.head), data)
    assert result.metrics["eval/valid"] == pytest.approx(0.3)
    assert list(result.metrics) == [name for name in known_metrics(state, data) if name.startswith("eval/")]
