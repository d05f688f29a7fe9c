"""Augmented copies of ARC tasks: turned, mirrored and recoloured, and in training shifted on their boards."""

from __future__ import annotations

import numpy as np

from dataset.arc_grids import NUM_COLOURS, SEQ_LEN, SIDE, place_grids
from dataset.arc_tasks import Pair
from dataset.symmetries import NUM_DIHEDRAL, dihedral, relabel

TRIES_PER_COPY = 5
TURNS_SIDEWAYS = np.array([dihedral(np.empty((1, 2)), k).shape == (2, 1) for k in range(NUM_DIHEDRAL)])

# Random weights for fingerprints: of the cells (of input and output), and of the colours in them.
_weights = np.random.default_rng(0)
CELL_WEIGHT = _weights.integers(1 << 64, size=(2, SIDE, SIDE), dtype=np.uint64)
COLOUR_WEIGHT = _weights.integers(1 << 64, size=NUM_COLOURS, dtype=np.uint64)


def fingerprints(pairs: list[Pair], transforms: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Compute a fingerprint of the augmented pairs for each of n augmentations: equal for equal sets of pairs.

    Different sets have the same one with a chance of about 1 in 2**64; then a copy is left out.

    Args:
        pairs: of the task.
        transforms: integer `[n]`.
        colours: uint8 `[n, 10]`.

    Returns:
        uint64 `[n]`.
    """
    # The weights of the cells of each colour, summed: recolouring doesn't change these sums, only where they count.
    sums = np.zeros((NUM_DIHEDRAL, len(pairs), NUM_COLOURS), np.uint64)
    for k in range(NUM_DIHEDRAL):
        for number, pair in enumerate(pairs):
            for grid, weight in zip(pair, CELL_WEIGHT, strict=True):
                moved = dihedral(grid, k)
                rows, cols = moved.shape
                np.add.at(sums[k, number], moved.ravel(), weight[:rows, :cols].ravel())
    mixed = (sums[transforms] * COLOUR_WEIGHT[colours][:, None]).sum(axis=2)  # (n, pairs), modulo 2**64
    # Scrambled before they are added up, so that the sum depends on which input belongs to which output.
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed ^ (mixed >> np.uint64(32))).sum(axis=1)


def draw_augmentations(pairs: list[Pair], num_aug: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the identity and up to `num_aug` random augmentations that all make different sets of pairs.

    Args:
        pairs: of the task.
        num_aug: how many copies are wanted.
        rng: the random generator.

    Returns:
        Transforms, integer `[n]`, and colours, uint8 `[n, 10]`, n <= 1 + num_aug. A task with few distinct copies gets
        fewer: 5 * num_aug draws are the limit.
    """
    transforms: np.ndarray = np.zeros(1, np.int64)
    colours: np.ndarray = np.arange(NUM_COLOURS, dtype=np.uint8)[None]
    tries = TRIES_PER_COPY * num_aug
    while len(transforms) <= num_aug and tries:
        n = min(tries, num_aug)
        tries -= n
        transforms = np.concatenate((transforms, rng.integers(NUM_DIHEDRAL, size=n)))
        drawn = np.tile(np.arange(NUM_COLOURS, dtype=np.uint8), (n, 1))
        drawn[:, 1:] = rng.permuted(drawn[:, 1:], axis=1)  # 0 is the background
        colours = np.concatenate((colours, drawn))
        _, first = np.unique(fingerprints(pairs, transforms, colours), return_index=True)
        kept = np.sort(first)[: 1 + num_aug]
        transforms, colours = transforms[kept], colours[kept]
    return transforms, colours


def augmented_tokens(
    pairs: list[Pair], transforms: np.ndarray, colours: np.ndarray, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the tokens of every copy of the pairs.

    Args:
        pairs: of the task.
        transforms: integer `[n]`.
        colours: uint8 `[n, 10]`.
        rng: shifts all pairs of a copy but a random one on their boards, input and output alike by a random number of
            rows and columns; None shifts none.

    Returns:
        Inputs and outputs, uint8 `[n * pairs, 900]` each, copy after copy.
    """
    n = len(transforms)
    sideways = TURNS_SIDEWAYS[transforms]
    tokens = np.empty((2, n, len(pairs), SEQ_LEN), np.uint8)
    unshifted = None if rng is None else rng.integers(len(pairs), size=n)
    for number, pair in enumerate(pairs):
        top: np.ndarray = np.zeros(n, np.int64)
        left = top
        if rng is not None:
            room_below, room_right = (SIDE - max(grid.shape[axis] for grid in pair) for axis in (0, 1))
            top = rng.integers(np.where(sideways, room_right, room_below) + 1)
            left = rng.integers(np.where(sideways, room_below, room_right) + 1)
            top, left = (np.where(unshifted == number, 0, offset) for offset in (top, left))
        for boards, grid in zip(tokens, pair, strict=True):
            moved = np.stack([dihedral(grid, k).ravel() for k in range(NUM_DIHEDRAL)])
            cells = relabel(moved[transforms], colours)  # (n, rows * cols)
            for chosen, shape in ((~sideways, grid.shape), (sideways, grid.shape[::-1])):
                grids = cells[chosen].reshape(np.count_nonzero(chosen), *shape)
                boards[chosen, number] = place_grids(grids, top[chosen], left[chosen])
    return tokens[0].reshape(-1, SEQ_LEN), tokens[1].reshape(-1, SEQ_LEN)
