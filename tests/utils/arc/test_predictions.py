"""Saved ARC predictions: read back whole, mapped back exactly, and refused where they are something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from dataset.arc_grids import restore_grid, tokens_to_grid
from tests.helpers.arc_data import RIGHT, ArcFiles, Row, plain, random_augmentation, task
from tests.helpers.arc_grids import grid_to_tokens
from utils.arc import predictions as arc_predictions
from utils.arc.predictions import decode_grid, encode_grid, find_folders, read_predictions, restored_grids


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_boards_are_cropped_and_restored_as_one_by_one(seed: int) -> None:
    """Right answers would vote for wrong grids. Boards are worked on by the thousand, in groups of equal shape."""
    rng = np.random.default_rng(seed)
    boards, augmentations = [], []
    for _ in range(40):
        grid = rng.integers(10, size=rng.integers(1, 31, 2) if rng.random() < 0.3 else (2, 3), dtype=np.uint8)
        board = grid_to_tokens(grid)
        noise = rng.random(900) < rng.choice([0.0, 0.01, 0.5])
        boards.append(np.where(noise, rng.integers(13, size=900), board))
        augmentations.append(random_augmentation(rng))
    k, colours = np.array([k for k, _ in augmentations]), np.array([order for _, order in augmentations], np.uint8)
    expected = [
        restore_grid(tokens_to_grid(board), k, np.array(order))
        for board, (k, order) in zip(boards, augmentations, strict=True)
    ]
    for dtype in (np.uint8, np.int32):
        keys = restored_grids(np.array(boards, dtype), k, colours)
        assert keys == [encode_grid(grid) for grid in expected]
    for key, grid in zip(keys, expected, strict=True):
        np.testing.assert_array_equal(decode_grid(key), grid)
    assert restored_grids(np.array(boards[:0]), k[:0], colours[:0]) == []


def test_equal_cells_in_other_shapes_are_other_grids() -> None:
    """A row of four and a square of four would be one candidate; a trailing background cell must count too."""
    grids = [np.zeros(shape, np.uint8) for shape in ((1, 4), (4, 1), (2, 2), (2, 1), (30, 30), (0, 0))]
    keys = restored_grids(
        np.stack([grid_to_tokens(grid) if grid.size else np.zeros(900, np.uint8) for grid in grids]),
        np.zeros(6, int),
        np.tile(np.arange(10, dtype=np.uint8), (6, 1)),
    )
    assert len(set(keys)) == 6
    assert [decode_grid(key).shape for key in keys] == [grid.shape for grid in grids]


def test_rows_are_read_in_pieces_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last, shorter piece of 420,000 rows would go missing, or a piece's arrays would not belong together."""
    monkeypatch.setattr(arc_predictions, "PIECE_ROWS", 4)
    rows = [Row(f"p{i}", np.full(900, i), np.full(900, i + 100), float(i)) for i in range(10)]
    folder = ArcFiles(tmp_path, {"a": task(([[1]], RIGHT))}).predict(rows)
    pieces = list(read_predictions(folder))
    assert [len(piece.preds) for piece in pieces] == [4, 4, 2]
    numbers = np.arange(10)
    for key, expected in (("inputs", numbers), ("preds", numbers + 100), ("q_halt_logits", numbers)):
        array = np.concatenate([getattr(piece, key) for piece in pieces])
        np.testing.assert_array_equal(array.reshape(10, -1)[:, -1], expected)
    np.testing.assert_array_equal(np.concatenate([piece.puzzle_identifiers for piece in pieces]), numbers + 1)


def test_a_rank_without_rows_is_no_mistake(tmp_path: Path) -> None:
    """With more ranks than batches some have nothing to write."""
    folder = ArcFiles(tmp_path, {"a": task(([[1]], RIGHT))}).predict([])
    assert list(read_predictions(folder)) == []


def test_patterns_name_folders_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Votes would be counted twice; names of runs may hold spaces and brackets; a stray file is no folder."""
    run = tmp_path / "Arc [2] ACT-mlx"
    for name in ("step_5_all_preds.0", "step_5_all_preds.1", "step_50_all_preds.0"):
        (run / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(run / "step_5_all_preds.0")
    (tmp_path / "step_7_all_preds.txt").write_text("")
    monkeypatch.chdir(run)
    both = find_folders(["step_5_all_preds.*", str(run / "step_5_all_preds.1"), str(tmp_path / "link")])
    assert [folder.name for folder in both] == ["link", "step_5_all_preds.1"]
    assert len(find_folders([str(run / "step_*")])) == 3
    assert len(find_folders([str(tmp_path / "*" / "step_5_*")])) == 2
    for pattern in (str(run / "step_6_all_preds.0"), "step_6*", str(tmp_path / "step_7*")):
        with pytest.raises(UserError, match=r"no folder matches .*; expected step_<N>_all_preds"):
            find_folders(["step_5_all_preds.*", pattern])


def test_what_is_no_prediction_of_arc_is_refused(tmp_path: Path) -> None:
    """Each ends in one line that names the file, rather than a traceback or a score of nonsense."""
    folder = ArcFiles(tmp_path, {"a": task(([[1]], RIGHT))}).predict([plain("a", [[1]], RIGHT)] * 3)
    preds = folder / "preds.npy"
    whole, tokens = preds.read_bytes(), np.load(preds)

    def complaint() -> str:
        with pytest.raises(UserError) as error:
            list(read_predictions(folder))
        return str(error.value)

    np.save(preds, tokens[:, :81])
    assert f"{preds} holds uint8 of shape (3, 81), expected integers of shape (rows, 900)" in complaint()
    np.save(preds, tokens.astype(np.float32))
    assert "preds.npy holds float32 of shape (3, 900), expected integers" in complaint()
    np.save(preds, tokens[:2])
    assert "files of different lengths (inputs 3, puzzle_identifiers 3, preds 2, q_halt_logits 3 rows)" in complaint()
    for content in (whole[:1000], b"", b"text"):
        preds.write_bytes(content)
        assert f"{preds} is truncated or not a .npy file" in complaint()
    preds.unlink()
    assert complaint().startswith(f"{preds} is missing; run evaluate.py with save_outputs=[inputs,puzzle_identifiers,")
    preds.write_bytes(whole)
    np.save(folder / "q_halt_logits.npy", np.zeros(3, np.int32))
    assert "q_halt_logits.npy holds int32 of shape (3,), expected numbers" in complaint()
