"""Mazes as arrays: what the cells are, how far they are from the start, and shortest paths, for many mazes at once.

A maze is uint8 `[rows, cols]` of the values below, its question without PATH, its answer with a path from START to GOAL
in steps to the four neighbours. Tokens are value + 1, since 0 is padding.
"""

from __future__ import annotations

import numpy as np

ALPHABET = "# SGo"
WALL, OPEN, START, GOAL, PATH = range(len(ALPHABET))
VOCAB_SIZE = 1 + len(ALPHABET)


def distances(passable: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Steps from the start to every cell: bool `[n, rows, cols]` -> int32 `[n, rows, cols]`, -1 where no way leads.

    `start`: integer `[n]`, row * cols + column of a passable cell. Breadth-first, in all mazes at the same time.
    """
    n, rows, cols = passable.shape
    free = _fenced(passable, False)
    steps = _steps(cols)
    distance: np.ndarray = np.full(free.shape, -1, np.int32)
    first: np.ndarray = np.empty(free.shape, np.int32)
    frontier = _fenced_index(start, rows, cols)
    free[frontier] = False
    distance[frontier] = walked = 0
    while len(frontier):
        walked += 1
        reached = (frontier[:, None] + steps).ravel()
        reached = reached[free[reached]]
        free[reached] = False
        distance[reached] = walked
        order = np.arange(len(reached), dtype=np.int32)
        first[reached] = order  # a cell reached from several sides goes on once
        frontier = reached[first[reached] == order]
    return distance.reshape(n, rows + 1, cols + 1)[:, :rows, :cols]


def shortest_paths(distance: np.ndarray, goal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The cells between start and goal on a shortest path, bool `[n, rows, cols]`; a random one if there are several.

    `distance`: of `distances`, `[n, rows, cols]`. `goal`: integer `[n]`, cells that can be reached.
    """
    n, rows, cols = distance.shape
    fenced = _fenced(distance, -1)
    on_path = np.zeros(fenced.shape, bool)
    at = _fenced_index(goal, rows, cols)
    while True:
        at = at[fenced[at] > 1]
        if not len(at):
            return on_path.reshape(n, rows + 1, cols + 1)[:, :rows, :cols]
        neighbours = at[:, None] + _steps(cols)  # (m, 4)
        nearer = fenced[neighbours] == fenced[at][:, None] - 1
        chosen = np.argmax(nearer * (1 + rng.random(nearer.shape, dtype=np.float32)), axis=1)
        at = neighbours[np.arange(len(at)), chosen]
        on_path[at] = True


def is_path(answers: np.ndarray) -> np.ndarray:
    """Which answers show one way from START to GOAL: values `[n, rows, cols]`, each with one of both -> bool `[n]`.

    It must use every PATH cell, and touch itself nowhere, so that there is only one way to walk it.
    """
    flat = answers.reshape(len(answers), -1)
    way = distances(answers >= START, np.argmax(flat == START, axis=1))
    steps = way.reshape(flat.shape)[np.arange(len(flat)), np.argmax(flat == GOAL, axis=1)]
    return steps == (flat == PATH).sum(axis=1) + 1


# Mazes are laid one after the other in one flat array, each with a line of walls below and to the right of it. That
# line also bounds the next row and the next maze on their other sides; before the first cell, index -1 is the last one.


def _fenced(cells: np.ndarray, wall: object) -> np.ndarray:
    return np.pad(cells, ((0, 0), (0, 1), (0, 1)), constant_values=wall).ravel()  # type: ignore[call-overload]


def _fenced_index(cell: np.ndarray, rows: int, cols: int) -> np.ndarray:
    row, col = np.divmod(cell, cols)
    return (np.arange(len(cell)) * (rows + 1) + row) * (cols + 1) + col


def _steps(cols: int) -> np.ndarray:
    return np.array([1, -1, cols + 1, -cols - 1])
