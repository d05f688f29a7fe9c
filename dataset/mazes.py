"""The rules of mazes: values of cells, distances from the start, and valid paths, for many mazes at once.

A maze is uint8 `[rows, cols]` of the values below: a question has no PATH, an answer has a path from START to GOAL
in steps to the four neighbours. A token is value + 1, since token 0 is padding.
"""

from __future__ import annotations

import math

import numpy as np

ALPHABET = "# SGo"
WALL, OPEN, START, GOAL, PATH = range(len(ALPHABET))
VOCAB_SIZE = 1 + len(ALPHABET)


def distances(passable: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Count the steps from the start to every cell, breadth-first, in all mazes at the same time.

    Args:
        passable: bool `[n, rows, cols]`.
        start: row * cols + column of a passable cell of each maze, integer `[n]`.

    Returns:
        int32 `[n, rows, cols]`, -1 for cells that can't be reached.
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
    """Find the cells between start and goal on a shortest path, a random one if there are several.

    Args:
        distance: what `distances` returns, `[n, rows, cols]`.
        goal: row * cols + column of a cell that can be reached in each maze, integer `[n]`.
        rng: decides between paths of the same length.

    Returns:
        bool `[n, rows, cols]`.
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


def steps_to_goal(mazes: np.ndarray, passable: np.ndarray) -> np.ndarray:
    """Count the steps from START to GOAL over passable cells.

    Args:
        mazes: values `[n, rows, cols]`, one START and one GOAL in each maze.
        passable: bool `[n, rows, cols]`.

    Returns:
        int32 `[n]`, -1 where the goal can't be reached.
    """
    n, rows, cols = mazes.shape
    cells = mazes.reshape(n, rows * cols)
    start, goal = (np.argmax(cells == value, axis=1) for value in (START, GOAL))
    return distances(passable, start).reshape(cells.shape)[np.arange(n), goal]


def is_path(answers: np.ndarray) -> np.ndarray:
    """Check which answers show one path from START to GOAL.

    It must use every PATH cell, and touch itself nowhere, so that it can be walked in only one way.

    Args:
        answers: values `[n, rows, cols]`, one START and one GOAL in each.

    Returns:
        bool `[n]`.
    """
    return steps_to_goal(answers, answers >= START) == (answers == PATH).sum(axis=(1, 2)) + 1


def is_valid_path(inputs: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """Check which answers lead from start to goal.

    The maze must be kept (walls, start and goal where they were, only path on open cells), and path cells must join
    start and goal in steps to the four neighbours. Path cells elsewhere, such as a dead end, are allowed.

    Args:
        inputs: tokens `[b, S]` of square mazes.
        preds: tokens `[b, S]` of the answers.

    Returns:
        bool `[b]`.
    """
    mazes, answers = _to_values(inputs), _to_values(preds)
    kept = np.where(mazes == OPEN, (answers == OPEN) | (answers == PATH), mazes == answers).all(axis=(1, 2))
    valid = kept & ((mazes == START).sum(axis=(1, 2)) == 1) & ((mazes == GOAL).sum(axis=(1, 2)) == 1)
    answers = answers[valid]
    valid[valid] = steps_to_goal(answers, (answers != WALL) & (answers != OPEN)) > 0
    return valid


def is_shortest_path(inputs: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """Check which answers are valid paths with as many path cells as a shortest path.

    So there are no detours and no stray cells. A maze may have many shortest paths, of which the label is one.

    Args:
        inputs: tokens `[b, S]` of square mazes.
        preds: tokens `[b, S]` of the answers.

    Returns:
        bool `[b]`.
    """
    shortest = is_valid_path(inputs, preds)
    mazes, answers = _to_values(inputs[shortest]), _to_values(preds[shortest])
    shortest[shortest] = (answers == PATH).sum(axis=(1, 2)) == steps_to_goal(mazes, mazes != WALL) - 1
    return shortest


def _to_values(tokens: np.ndarray) -> np.ndarray:
    """Return the values of square mazes, int64 `[b, side, side]`, from tokens `[b, S]`."""
    side = math.isqrt(tokens.shape[1])
    return tokens.reshape(-1, side, side).astype(np.int64) - 1


# Mazes are laid one after the other in one flat array, each with a line of walls below and to the right of it. That
# line also bounds the next row and the next maze on their other sides; before the first cell, index -1 is the last one.


def _fenced(cells: np.ndarray, wall: object) -> np.ndarray:
    return np.pad(cells, ((0, 0), (0, 1), (0, 1)), constant_values=wall).ravel()  # type: ignore[call-overload]


def _fenced_index(cell: np.ndarray, rows: int, cols: int) -> np.ndarray:
    row, col = np.divmod(cell, cols)
    return (np.arange(len(cell)) * (rows + 1) + row) * (cols + 1) + col


def _steps(cols: int) -> np.ndarray:
    return np.array([1, -1, cols + 1, -cols - 1])
