"""ARC scores: predictions for a task's augmented copies are mapped back, vote for an answer, and are ranked.

The rules are the published ones. Candidates of a test input rank by (votes, mean halting probability), highest first;
an output is right with K attempts if one of the first K is the answer. pass@K is counted in two ways: over tasks, where
all outputs of a task must be right, as in HRM's notebook; and over outputs, as in the ARC Prize. Tasks without answers
are counted in neither. Left open by the rules: of candidates equal in votes and probability, the one that the lowest
puzzle identifier voted for comes first (the task itself before its augmentations, as in the order of the data set),
then the one with fewer rows, then columns, then lower colours. Equal test inputs of a task share their predictions, and
each has an output of its own. An empty grid is a candidate like others, and never right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from dataset.arc_grids import parse_augmentation_name
from dataset.arc_tasks import Pair, Task
from utils.arc.predictions import Piece, decode_grid, encode_grid, find_folders, read_predictions, restored_grids
from utils.arc.tasks import PADDING_IDENTIFIER, evaluation_tasks, read_names

PASS_K = (1, 2, 10, 100, 1000)
NAMED_TASKS = 10  # in a note
# Halting probabilities are summed as integers of this unit, so that the order of rows, and with it the number of ranks,
# changes no sum.
_UNIT = 2.0**-40


@dataclass(frozen=True)
class Candidate:
    """An answer that some predictions agree on.

    Attributes:
        key: of the grid, see `encode_grid`.
        votes: the number of these predictions.
        mean_q_halt: the mean of sigmoid(q_halt) over them.
    """

    key: bytes
    votes: int
    mean_q_halt: float

    @property
    def grid(self) -> np.ndarray:
        """Colours uint8 `[rows, cols]`; `[0, 0]` if the predictions hold no grid."""
        return decode_grid(self.key)


@dataclass(frozen=True)
class InputScore:
    """The score of a test input.

    Attributes:
        input: colours uint8 `[rows, cols]`.
        answer: colours uint8 `[rows, cols]`; `[0, 0]` if it is not known.
        candidates: best first.
        rank: the answer's place among them, from 1, or None.
    """

    input: np.ndarray
    answer: np.ndarray
    candidates: list[Candidate]
    rank: int | None

    @property
    def predictions(self) -> int:
        """Number of predictions that voted."""
        return sum(candidate.votes for candidate in self.candidates)

    def share(self, candidate: Candidate) -> float:
        """Return a candidate's share of the votes, from 0 to 1."""
        return candidate.votes / self.predictions

    def solved(self, k: int) -> bool:
        """Return whether one of the first k candidates is right."""
        return self.rank is not None and self.rank <= k


@dataclass(frozen=True)
class TaskScore:
    """A task and the scores of its test inputs, in order."""

    task: Task
    inputs: list[InputScore]

    def solved(self, k: int) -> bool:
        """Return whether one of the first k candidates is right, for every test input."""
        return all(test.solved(k) for test in self.inputs)


@dataclass(frozen=True)
class ArcScore:
    """The score of all tasks, in two conventions.

    Tasks without answers are in neither; where all are such, both are empty.

    Attributes:
        pass_at: over tasks, as in HRM's notebook: for each K the share of tasks of which all test outputs are right
            with K attempts.
        pass_at_outputs: over outputs, as in the ARC Prize: for each K the share of the tasks' test outputs that are
            right with K attempts.
        tasks: by id.
        predictions: number of predictions that voted.
        notes: a line for each irregularity of the predictions.
    """

    pass_at: dict[int, float]
    pass_at_outputs: dict[int, float]
    tasks: dict[str, TaskScore]
    predictions: int
    notes: list[str]

    def rates(self) -> dict[str, float]:
        """Return the entries of a line of JSON: `pass@<K>`, over tasks, and `pass@<K>_outputs`."""
        over_tasks = {f"pass@{k}": rate for k, rate in self.pass_at.items()}
        return over_tasks | {f"pass@{k}_outputs": rate for k, rate in self.pass_at_outputs.items()}


def score_predictions(
    folders: Sequence[str | Path], data_path: str | Path, test_puzzles: str | Path | None = None
) -> ArcScore:
    """Score saved predictions of an ARC data set.

    Args:
        folders: prediction folders, one for each rank, or patterns such as `run/step_1000_all_preds.*`. Those of
            several evaluations vote together.
        data_path: the data set, which holds `identifiers.json`.
        test_puzzles: the tasks, a file or folder; None means those of the data set, as in `evaluation_tasks`.

    Raises:
        UserError: if a folder or file is missing or damaged, or the predictions are of another data set.
    """
    names = read_names(Path(data_path))
    tasks, origin = evaluation_tasks(Path(data_path), names, test_puzzles)
    ballot = _Ballot(names, tasks)
    for folder in find_folders([str(folder) for folder in folders]):
        for piece in read_predictions(folder):
            low, high = int(piece.puzzle_identifiers.min()), int(piece.puzzle_identifiers.max())
            if low < 0 or high >= len(names):
                raise UserError(
                    f"{folder / 'puzzle_identifiers.npy'}: identifier {low if low < 0 else high}, expected 0 to "
                    f"{len(names) - 1} as in {data_path}: these are predictions of another data set; set data_path"
                )
            ballot.count(piece)

    ranked = [_rank(entries) for entries in ballot.votes]
    scores = {}
    for task_id, task in tasks.items():
        inputs = [score_input(pair, ranked[ballot.slot(task_id, pair)]) for pair in task.test]
        scores[task_id] = TaskScore(task, inputs)
    return score_tasks(scores, ballot.voters, _notes(scores, ballot, origin))


def score_tasks(tasks: dict[str, TaskScore], predictions: int, notes: list[str]) -> ArcScore:
    """Compute pass@K over tasks.

    Args:
        tasks: by id.
        predictions: number of predictions that voted.
        notes: a line for each irregularity of the predictions.
    """
    with_answers = [score for score in tasks.values() if score.task.has_answers]
    return ArcScore(
        pass_at=_shares(with_answers),
        pass_at_outputs=_shares([test for score in with_answers for test in score.inputs]),
        tasks=tasks,
        predictions=predictions,
        notes=notes,
    )


class _Ballot:
    """The votes for each slot. A slot is a distinct test input of a task; equal test inputs share one."""

    def __init__(self, names: list[str], tasks: dict[str, Task]):
        self._names, self._tasks = names, tasks
        copies = Counter(_slot_key(task_id, pair) for task_id, task in tasks.items() for pair in task.test)
        self._slots = {key: slot for slot, key in enumerate(copies)}
        self._copies = np.array(list(copies.values()))  # per slot: for how many test inputs it stands
        # per slot: grid -> number of votes, sum of the halting probabilities, lowest puzzle identifier
        self.votes: list[dict[bytes, list[int]]] = [{} for _ in self._slots]
        self._voters: list[np.ndarray] = []  # for each vote identifier * slots + slot, to find those cast twice
        self.of_other_tasks = self.of_other_inputs = 0

    def slot(self, task_id: str, pair: Pair) -> int:
        """Return the slot of a task's test pair."""
        return self._slots[_slot_key(task_id, pair)]

    def count(self, piece: Piece) -> None:
        """Count the votes of some predictions. Padding rows have none."""
        # The names are parsed once for each puzzle; `puzzle` is the index of a row's puzzle.
        identifiers, puzzle = np.unique(piece.puzzle_identifiers, return_inverse=True)
        task_ids, transforms, colours = zip(
            *(parse_augmentation_name(self._names[identifier]) for identifier in identifiers), strict=True
        )
        of_task = np.array([task_id in self._tasks for task_id in task_ids])[puzzle]
        padding = piece.puzzle_identifiers == PADDING_IDENTIFIER
        self.of_other_tasks += int(np.count_nonzero(~of_task & ~padding))

        rows = np.flatnonzero(of_task & ~padding)
        puzzle = puzzle[rows]
        augmentation = np.array(transforms)[puzzle], np.stack(colours)[puzzle]
        inputs = restored_grids(piece.inputs[rows], *augmentation)
        answers = restored_grids(piece.preds[rows], *augmentation)
        slots = [self._slots.get((task_ids[i], key), -1) for i, key in zip(puzzle.tolist(), inputs, strict=True)]
        q_halt = _probabilities(piece.q_halt_logits[rows])
        voters = piece.puzzle_identifiers[rows].astype(np.int64)
        for slot, answer, q, identifier in zip(slots, answers, q_halt, voters.tolist(), strict=True):
            if slot >= 0:
                entry = self.votes[slot].setdefault(answer, [0, 0, identifier])
                entry[0] += 1
                entry[1] += q
                entry[2] = min(entry[2], identifier)

        slot_of_row = np.array(slots, np.int64)
        matched = slot_of_row >= 0
        self.of_other_inputs += int(np.count_nonzero(~matched))
        self._voters.append(voters[matched] * len(self._slots) + slot_of_row[matched])

    @property
    def voters(self) -> int:
        """Number of predictions that have voted."""
        return sum(map(len, self._voters))

    def repeated(self) -> int:
        """Count the votes of puzzles beyond one for each test input."""
        if not self._voters:
            return 0
        distinct, counts = np.unique(np.concatenate(self._voters), return_counts=True)
        return int(np.maximum(counts - self._copies[distinct % len(self._slots)], 0).sum())


def _slot_key(task_id: str, pair: Pair) -> tuple[str, bytes]:
    return task_id, encode_grid(pair[0])


def _probabilities(logits: np.ndarray) -> list[int]:
    """Compute sigmoid(logits) in units of 2^-40; NaN, of a model that diverged, counts as 0."""
    numbers = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    return np.rint(np.exp(-np.logaddexp(0.0, -numbers)) / _UNIT).astype(np.int64).tolist()


def _rank(entries: dict[bytes, list[int]]) -> list[Candidate]:
    order = sorted((-votes, -q_halt, identifier, key) for key, (votes, q_halt, identifier) in entries.items())
    return [Candidate(key, -votes, -q_halt * _UNIT / -votes) for votes, q_halt, _, key in order]


def count_votes(answers: list[bytes], q_halt_logits: np.ndarray) -> list[Candidate]:
    """Rank the answers to one test input, of which each has a vote.

    Args:
        answers: of `restored_grids`, in the order of their puzzle identifiers.
        q_halt_logits: of each, `[n]`.

    Returns:
        The candidates, best first.
    """
    entries: dict[bytes, list[int]] = {}
    for voter, (answer, q) in enumerate(zip(answers, _probabilities(q_halt_logits), strict=True)):
        entry = entries.setdefault(answer, [0, 0, voter])
        entry[0] += 1
        entry[1] += q
    return _rank(entries)


def score_input(pair: Pair, candidates: list[Candidate]) -> InputScore:
    """Find the place of a test pair's answer among the candidates, best first."""
    places = {candidate.key: place for place, candidate in enumerate(candidates, start=1)}
    rank = places.get(encode_grid(pair[1])) if pair[1].size else None  # an unknown answer is no empty candidate
    return InputScore(*pair, candidates, rank)


def _shares(scores: Sequence[TaskScore] | Sequence[InputScore]) -> dict[int, float]:
    """Return for each K the share that is solved; nothing if there are none."""
    return {k: sum(score.solved(k) for score in scores) / len(scores) for k in PASS_K} if scores else {}


def _notes(scores: dict[str, TaskScore], ballot: _Ballot, origin: str) -> list[str]:
    """List what may make the score another than expected."""
    notes = []
    if ballot.of_other_tasks:
        notes.append(f"{ballot.of_other_tasks:,} predictions left out: they belong to no task of {origin}")
    if ballot.of_other_inputs:
        notes.append(f"{ballot.of_other_inputs:,} predictions left out: their inputs are no test inputs of their tasks")
    if repeated := ballot.repeated():
        notes.append(
            f"{repeated:,} predictions are further votes of the same puzzles: several evaluations vote together, "
            "or the same predictions are there twice"
        )
    if missing := [task_id for task_id, score in scores.items() if not all(test.candidates for test in score.inputs)]:
        notes.append(f"{len(missing):,} tasks lack predictions and count as unsolved, such as {missing[0]}")
    if unknown := [task_id for task_id, score in scores.items() if not score.task.has_answers]:
        more = f" and {len(unknown) - NAMED_TASKS:,} more" if len(unknown) > NAMED_TASKS else ""
        notes.append(
            f"{len(unknown):,} tasks have no answers and don't count: {', '.join(unknown[:NAMED_TASKS])}{more}"
        )
    return notes
