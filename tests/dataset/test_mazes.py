"""Mazes: distances, shortest paths, and what counts as a path, for many mazes side by side in one array."""

from __future__ import annotations

import math
import time
from collections import deque

import numpy as np
import pytest

from dataset.mazes import distances, is_shortest_path, is_valid_path, shortest_paths, steps_to_goal


def maze(*rows: str) -> np.ndarray:
    """Tokens `[1, seq_len]` of a maze in the builder's characters."""
    return np.array([["# SGo".index(cell) + 1 for cell in "".join(rows)]], np.uint8)


MAZE = maze("S  #", " # #", "   #", "##G#")


@pytest.mark.parametrize(
    ("name", "answer", "valid", "optimal"),
    [
        ("shortest", ("S  #", "o# #", "ooo#", "##G#"), True, True),
        ("the other shortest", ("Soo#", " #o#", "  o#", "##G#"), True, True),
        ("a stray cell", ("S o#", "o# #", "ooo#", "##G#"), True, False),
        ("all open cells", ("Soo#", "o#o#", "ooo#", "##G#"), True, False),
        ("a gap", ("S  #", "o# #", "o o#", "##G#"), False, False),
        ("diagonal", ("S  #", "o# #", " oo#", "##G#"), False, False),
        ("over a wall", ("S  #", "oo #", " oo#", "##G#"), False, False),
        ("a wall added", ("S  #", "o###", "ooo#", "##G#"), False, False),
        ("a wall removed", ("S  #", "o# #", "ooo ", "##G#"), False, False),
        ("goal moved", ("S  #", "o# #", "ooG#", "##G#"), False, False),
        ("start overwritten", ("o  #", "o# #", "ooo#", "##G#"), False, False),
        ("goal overwritten", ("S  #", "o# #", "ooo#", "##o#"), False, False),
        ("nothing", ("S  #", " # #", "   #", "##G#"), False, False),
    ],
)
def test_paths(name: str, answer: tuple[str, ...], valid: bool, optimal: bool) -> None:
    """A model would be credited for walking through walls, or not for a path that is as good as the label's."""
    preds = maze(*answer)
    assert is_valid_path(MAZE, preds).tolist() == [valid]
    assert is_shortest_path(MAZE, preds.astype(np.uint32)).tolist() == [optimal]


def test_mazes_at_the_edges_of_what_is_possible() -> None:
    """Neighbours need no path between them; without start or goal nothing is a path; moves don't wrap around rows."""
    for answer, optimal in ((("SG", "  "), True), (("SG", "oo"), False)):
        assert is_valid_path(maze("SG", "  "), maze(*answer)).tolist() == [True]
        assert is_shortest_path(maze("SG", "  "), maze(*answer)).tolist() == [optimal]
    detour = maze("S   ", "### ", "    ", "G###")
    walked = maze("Sooo", "###o", "oooo", "G###")
    assert is_shortest_path(detour, walked).tolist() == [True]
    for broken in (maze("S ", "  "), maze("G ", "  "), maze("SS", " G"), maze("SG", " G"), np.zeros((1, 4), np.uint8)):
        assert is_valid_path(broken, broken).tolist() == [False]
    wrapping = maze("  S", "o  ", "G  ")
    assert is_valid_path(np.where(wrapping == 5, 2, wrapping), wrapping).tolist() == [False]


def path_length(board: np.ndarray, passable: np.ndarray) -> int:
    """Moves from start to goal, one maze at a time."""
    side = math.isqrt(len(board))
    start, goal = (divmod(int(np.flatnonzero(board == token)[0]), side) for token in (3, 4))
    seen, queue = {start: 0}, deque([start])
    while queue:
        row, col = queue.popleft()
        for there in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
            if min(there) >= 0 and max(there) < side and passable[there[0] * side + there[1]] and there not in seen:
                seen[there] = seen[(row, col)] + 1
                queue.append(there)
    return seen.get(goal, -1)


@pytest.mark.parametrize("side", [2, 5, 12])
def test_steps_are_those_of_a_search_maze_by_maze(side: int) -> None:
    """Boards are searched side by side in one array: a leak from one to the next would shorten paths."""
    rng = np.random.default_rng(side)
    mazes = np.where(rng.random((200, side * side)) < 0.35, 1, 2)
    for row in mazes:
        row[rng.choice(side * side, 2, replace=False)] = 3, 4
    passable = mazes != 1
    expected = [path_length(row, free) for row, free in zip(mazes, passable, strict=True)]
    boards = (array.reshape(-1, side, side) for array in (mazes - 1, passable))
    assert steps_to_goal(*boards).tolist() == expected
    assert {-1, 1} < set(expected)


def test_a_thousand_mazes_are_searched_side_by_side() -> None:
    """The check runs at every evaluation. A serpentine is the longest search that a 30x30 maze can ask for."""
    rows = [" " * 30 if row % 2 == 0 else "#" * 29 + " " if row % 4 == 1 else " " + "#" * 29 for row in range(30)]
    rows[0], rows[29] = "S" + rows[0][1:], rows[29].replace(" ", "G")

    def seconds(n: int) -> float:
        mazes = np.repeat(maze(*rows), n, axis=0)
        paths = np.where(mazes == 2, 5, mazes)
        started = time.process_time()
        assert is_shortest_path(mazes, paths).all()
        return time.process_time() - started

    one = min(seconds(1) for _ in range(5))
    assert min(seconds(1000) for _ in range(2)) < 100 * one  # 14 where this was written


def test_several_shortest_paths_are_all_shown() -> None:
    """A model could learn that ways turn right before they turn down, which no maze says."""
    distance = distances(np.ones((2000, 3, 3), bool), np.zeros(2000, int))
    assert distance[0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    paths = shortest_paths(distance, np.full(2000, 8), np.random.default_rng(0))
    kinds, counts = np.unique(paths.reshape(2000, 9), axis=0, return_counts=True)
    assert (kinds.sum(axis=1) == 3).all()
    assert len(kinds) == 6
    assert counts.min() > 150, "some of the six ways is rare"


def test_distances_stop_at_walls_and_borders() -> None:
    """Mazes are worked on side by side in one array: a way through the border would lead into the next maze."""
    rng = np.random.default_rng(0)
    passable = rng.random((40, 6, 9)) < 0.7
    passable[:, 2, 3] = True
    found = distances(passable, np.full(40, 2 * 9 + 3))
    for grid, distance in zip(passable, found, strict=True):
        expected = np.full((6, 9), -1)
        queue = deque([(2, 3)])
        expected[2, 3] = 0
        while queue:
            r, c = queue.popleft()
            for a, b in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                if 0 <= a < 6 and 0 <= b < 9 and grid[a, b] and expected[a, b] < 0:
                    expected[a, b] = expected[r, c] + 1
                    queue.append((a, b))
        assert distance.tolist() == expected.tolist()
