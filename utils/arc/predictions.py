"""Saved predictions of ARC puzzles, read in pieces and mapped back to the tasks' own colours and orientation.

A grid is kept as bytes, its rows, its columns and then its colours row by row: equal grids are equal keys.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import expand_user
from dataset.arc_grids import FIRST_COLOUR, SEQ_LEN, SIDE, grid_shapes
from dataset.npy_file import load_npy
from dataset.symmetries import inverse_dihedral, relabel

KEYS = ("inputs", "puzzle_identifiers", "preds", "q_halt_logits")  # the arrays that scoring needs
PIECE_ROWS = 1 << 14  # rows worked on at once: bounds memory, 15 MB for each array of tokens


def encode_grid(grid: np.ndarray) -> bytes:
    """Return the key of a grid, colours `[rows, cols]` with sides of at most 30 (0 for the empty grid)."""
    return bytes(grid.shape) + grid.astype(np.uint8).tobytes()


def decode_grid(key: bytes) -> np.ndarray:
    """Return the grid of a key, colours uint8 `[rows, cols]`."""
    return np.frombuffer(key, np.uint8, offset=2).reshape(key[0], key[1])


def restored_grids(tokens: np.ndarray, k: np.ndarray, colours: np.ndarray) -> list[bytes]:
    """Cut out the grids at the top left of some boards, and undo each board's augmentation.

    A grid is the largest rectangle of colours by area, of several the one with the fewest rows, as in the PyTorch code:
    see `arc_grids.grid_shapes`. It is empty where the first token is no colour.

    Args:
        tokens: integers `[n, 900]`, a model's or the data set's.
        k: the dihedral transforms that were applied, `[n]`.
        colours: the colour permutations that were applied, uint8 `[n, 10]`; entry c is the new colour of colour c.

    Returns:
        The key of each grid.
    """
    if not len(tokens):
        return []
    boards = tokens.reshape(-1, SIDE, SIDE)
    shapes = grid_shapes(tokens)
    original_colour = np.argsort(colours, axis=1).astype(np.uint8)
    # Boards of one transform and shape are worked on together.
    kinds = (k.astype(np.int64) * (SIDE + 1) + shapes[:, 0]) * (SIDE + 1) + shapes[:, 1]
    order = np.argsort(kinds, kind="stable")
    keys = [b""] * len(boards)
    for group in np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1):
        rows, cols = shapes[group[0]]
        cells = boards[group, :rows, :cols].reshape(len(group), -1) - FIRST_COLOUR
        grids = relabel(cells, original_colour[group]).reshape(len(group), rows, cols)
        grids = inverse_dihedral(grids, int(k[group[0]]))
        packed: np.ndarray = np.empty((len(group), 2 + rows * cols), np.uint8)
        packed[:, :2] = grids.shape[1:]
        packed[:, 2:] = grids.reshape(len(group), -1)
        for row, key in zip(group.tolist(), packed.view(f"V{packed.shape[1]}").ravel().tolist(), strict=True):
            keys[row] = key
    return keys


# ---------------------------------------------------------------------------------------------------- on disk


def find_folders(patterns: Sequence[str]) -> list[Path]:
    """Find the prediction folders that paths or patterns such as `run/step_1000_all_preds.*` name, each once.

    Raises:
        UserError: if one of them names no folder, or begins with an unknown `~user`.
    """
    folders: dict[Path, Path] = {}
    for pattern in patterns:
        path = expand_user(pattern)
        if path.is_dir():
            found = [path]
        elif path.parent.is_dir():  # only the last part is a pattern: names of runs may hold brackets
            found = sorted(path.parent.glob(path.name))
        else:
            found = sorted(Path(name) for name in glob.glob(str(path)))
        found = [folder for folder in found if folder.is_dir()]
        if not found:
            raise UserError(
                f"predictions: no folder matches {pattern}; expected step_<N>_all_preds.* in the folder of a run, "
                "as evaluate.py writes them"
            )
        folders |= {folder.resolve(): folder for folder in found}
    return list(folders.values())


@dataclass(frozen=True)
class Piece:
    """Some rows of a prediction folder.

    Attributes:
        inputs: tokens, integer `[n, 900]`.
        preds: tokens, integer `[n, 900]`.
        puzzle_identifiers: integer `[n]`.
        q_halt_logits: float `[n]`.
    """

    inputs: np.ndarray
    preds: np.ndarray
    puzzle_identifiers: np.ndarray
    q_halt_logits: np.ndarray


def read_predictions(folder: Path) -> Iterator[Piece]:
    """Stream a prediction folder.

    Yields:
        Its rows, in chunks of `PIECE_ROWS`.

    Raises:
        UserError: if a file is missing, damaged, of another shape, or shorter than the others.
    """
    files = {
        key: _open(folder / f"{key}.npy", row_shape=(SEQ_LEN,) if key in ("inputs", "preds") else ()) for key in KEYS
    }
    counts = {key: len(array) for key, array in files.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise UserError(f"{folder}: files of different lengths ({found} rows); run evaluate.py again")
    for start in range(0, counts["preds"], PIECE_ROWS):
        rows = min(PIECE_ROWS, counts["preds"] - start)
        # Read rather than taken from the map, whose pages would all count as this process's memory.
        yield Piece(
            **{
                key: np.fromfile(
                    str(array.filename), array.dtype, array[:rows].size, offset=array.offset + start * array.strides[0]
                ).reshape(rows, *array.shape[1:])
                for key, array in files.items()
            }
        )


def _open(file: Path, row_shape: tuple[int, ...]) -> np.memmap:
    try:
        array = load_npy(file, "r")
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing; run evaluate.py with save_outputs=[{','.join(KEYS)}] (its default has them all)"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is truncated or not a .npy file ({error}); run evaluate.py again") from error
    kinds = "f" if file.stem == "q_halt_logits" else "iu"
    if array.shape[1:] != row_shape or array.ndim != 1 + len(row_shape) or array.dtype.kind not in kinds:
        expected = ", ".join(["rows", *map(str, row_shape)])
        raise UserError(
            f"{file} holds {array.dtype} of shape {array.shape}, expected {'numbers' if kinds == 'f' else 'integers'} "
            f"of shape ({expected}): these are not predictions of an ARC data set"
        )
    assert isinstance(array, np.memmap)
    return array
