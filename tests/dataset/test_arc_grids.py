"""ARC grids: every augmentation can be undone, names say which, and tokens are the published ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import arc_grids
from dataset.arc_grids import END, FIRST_COLOUR, PAD, SIDE, restore_grid, tokens_to_grid
from dataset.symmetries import dihedral, inverse_dihedral
from tests.helpers.arc_grids import augment_grid, grid_to_tokens

sides = st.integers(1, SIDE)
seeds = st.integers(0, 2**32 - 1)
transforms = st.integers(0, 7)
colour_maps = st.permutations(range(1, 10)).map(lambda order: np.array([0, *order], np.uint8))


def random_grid(rows: int, cols: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(10, size=(rows, cols), dtype=np.uint8)


def test_transforms_are_the_published_ones() -> None:
    """Names in data sets and checkpoints made elsewhere would mean other transforms: predictions map back wrongly."""
    grid = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    expected = [
        [[1, 2, 3], [4, 5, 6]],
        [[3, 6], [2, 5], [1, 4]],
        [[6, 5, 4], [3, 2, 1]],
        [[4, 1], [5, 2], [6, 3]],
        [[3, 2, 1], [6, 5, 4]],
        [[4, 5, 6], [1, 2, 3]],
        [[1, 4], [2, 5], [3, 6]],
        [[6, 3], [5, 2], [4, 1]],
    ]
    for k, result in enumerate(expected):
        assert dihedral(grid, k).tolist() == result
        many = np.stack([grid, grid + 1])
        assert dihedral(many, k)[1].tolist() == (np.array(result) + 1).tolist(), "a stack of grids differs"
    for k in (-1, 8):
        for function in (dihedral, inverse_dihedral):
            with pytest.raises(ValueError, match=f"transform is {k}, expected 0 to 7"):
                function(grid, k)


@settings(deadline=None)
@given(sides, sides, seeds, transforms, colour_maps)
def test_every_augmentation_can_be_undone(rows: int, cols: int, seed: int, k: int, colours: np.ndarray) -> None:
    """A right answer to an augmented task would be counted as a vote for a wrong one."""
    grid = random_grid(rows, cols, seed)
    assert np.array_equal(inverse_dihedral(dihedral(grid, k), k), grid)
    moved = augment_grid(grid, k, colours)
    assert np.array_equal(moved, colours[dihedral(grid, k)])
    restored = restore_grid(moved, k, colours)
    assert np.array_equal(restored, grid)
    assert restored.dtype == moved.dtype == np.uint8


@settings(deadline=None)
@given(st.text(min_size=1), transforms, colour_maps)
def test_names_tell_the_augmentation(task_id: str, k: int, colours: np.ndarray) -> None:
    """Scoring could not map predictions back, or would mix tasks up; ids hold underscores in the wild."""
    name = arc_grids.augmentation_name(task_id, k, colours)
    assert name == f"{task_id}_t{k}_" + "".join(str(int(c)) for c in colours)
    parsed = arc_grids.parse_augmentation_name(name)
    assert parsed[:2] == (task_id, k)
    assert parsed[2].tolist() == colours.tolist()
    assert parsed[2].dtype == np.uint8


@pytest.mark.parametrize(
    "name",
    [
        "007bbfb7",
        "AboveBelow1",
        "a_t1",
        "_t1_0123456789",  # nothing before the suffix
        "a_t8_0123456789",
        "a_t12_0123456789",
        "a_t1_1023456789",  # 0 stays 0
        "a_t1_0113456789",  # not a permutation
        "a_t1_012345678",
        "a_t1_01234567891",
        "a_t1_0123456789\n",
        "a_t1_012345678٩",  # a digit of another script
    ],
)
def test_other_names_are_tasks_themselves(name: str) -> None:
    """The unaugmented copy's vote would be lost, or a task's prediction transformed that never was."""
    task_id, k, colours = arc_grids.parse_augmentation_name(name)
    assert (task_id, k, colours.tolist()) == (name, 0, list(range(10)))


def test_a_name_may_hold_what_looks_like_a_suffix() -> None:
    """Only the last suffix is the augmentation."""
    task_id, k, _ = arc_grids.parse_augmentation_name("a_t1_0123456789_t2_0987654321")
    assert (task_id, k) == ("a_t1_0123456789", 2)


def test_tokens_by_hand() -> None:
    """Models trained elsewhere would read our boards as something else."""
    grid = np.array([[0, 1], [2, 9], [3, 4]], np.uint8)
    board = grid_to_tokens(grid, 1, 2).reshape(SIDE, SIDE)
    assert board[:6, :6].tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 2, 3, 1, 0],
        [0, 0, 4, 11, 1, 0],
        [0, 0, 5, 6, 1, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert board.sum() == board[:6, :6].sum()
    assert board.dtype == np.uint8
    assert arc_grids.VOCAB_SIZE == 12
    full = grid_to_tokens(np.zeros((SIDE, SIDE), np.uint8))
    assert (full == FIRST_COLOUR).all(), "a grid of 30x30 leaves no room for the end marks"


@settings(deadline=None)
@given(sides, sides, seeds)
def test_tokens_can_be_read_back(rows: int, cols: int, seed: int) -> None:
    """A perfect prediction would be scored as wrong."""
    grid = random_grid(rows, cols, seed)
    tokens = grid_to_tokens(grid)
    back = tokens_to_grid(tokens)
    assert back.dtype == np.uint8
    assert np.array_equal(back, grid)
    assert np.array_equal(tokens_to_grid(tokens.astype(np.int32)), grid)


def largest_rectangle(board: np.ndarray) -> tuple[int, int]:
    """By trying all of them."""
    best = (0, 0)
    for rows, cols in itertools.product(range(1, SIDE + 1), repeat=2):
        piece = board[:rows, :cols]
        if rows * cols > best[0] * best[1] and ((piece >= 2) & (piece <= 11)).all():
            best = (rows, cols)
    return best


def test_crop_is_the_largest_rectangle_of_colours() -> None:
    """An answer with one wrong mark would be cut to a sliver, or wrong cells be kept; other K than published."""
    rng = np.random.default_rng(0)
    boards = []
    for density in (0.0, 0.002, 0.01, 0.05, 0.3, 1.0):
        for _ in range(8):
            rows, cols = rng.integers(1, 31, 2)
            board = grid_to_tokens(random_grid(rows, cols, seed=int(rng.integers(99))))
            noise = rng.random(900) < density
            boards.append(np.where(noise, rng.choice([PAD, END, 5, 12, 200], 900), board))
    tie = np.zeros((SIDE, SIDE), int)
    tie[0, :4], tie[1, :2] = 2, 2  # 1x4 and 2x2
    boards += [tie.ravel(), np.zeros(900, int)]
    expected = [largest_rectangle(board.reshape(SIDE, SIDE)) for board in boards]
    assert [tuple(shape) for shape in arc_grids.grid_shapes(np.stack(boards)).tolist()] == expected
    assert expected[-2:] == [(1, 4), (0, 0)]
    assert tokens_to_grid(boards[-1]).shape == (0, 0)
