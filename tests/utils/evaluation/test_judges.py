"""The choice among the answers of samples: by the rule that its name promises, and never by the label."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.thinking import (
    MAX_STEPS,
    Thought,
    all_rows,
    literal_choice,
    literal_movement,
    literal_steps,
    make_mazes,
    make_sudoku,
    opened,
    random_hrm,
    solver,
    think,
    write_dataset,
)
from utils.evaluation.judges import Judge, Sample, Verdict
from utils.evaluation.search import Search
from utils.evaluation.thinking import Choose, Thinking
from utils.evaluation.validity import rules_of

CHOICES: list[Choose] = ["rules", "auto", "q", "vote", "settled"]
BLANKS = [4, 7, 8, 9, 10, 10, 11, 11, 12, 12, 13, 13]
SAMPLES, NOISE = 6, 0.25
NONE, VALID = Verdict(), Verdict(holds=True, is_best=True)


def sample(
    number: int, q: float = 0.0, verdict: Verdict = NONE, answer: int = 0, movement: float = 1.0, exact: float = 0.0
) -> Sample:
    outputs = {
        "preds": np.array([answer], np.int32),
        "q_halt_logits": np.float32(q),
        "movement": np.float32(movement),
        "steps": np.int32(1),
    }
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    return Sample(number, arrays, arrays["preds"], verdict, {"exact": exact})


def chosen(choose: Choose, *samples: Sample) -> list[int]:
    """The sample that is chosen after each one."""
    judge, found = Judge(choose), []
    for one in samples:
        judge.add(one)
        found.append(judge.best.number)
    return found


def path(length: int, *, is_best: bool = False) -> Verdict:
    return Verdict(holds=True, is_best=is_best, cost=length)


def test_the_first_verified_answer_is_chosen_and_ends_the_search() -> None:
    """Compute would go on for a puzzle that is solved, or a later answer would replace one that is right."""
    for choose in ("rules", "auto"):
        judge = Judge(choose)
        judge.add(sample(0, q=9.0))
        assert not judge.is_satisfied
        judge.add(sample(1, q=-9.0, verdict=VALID))
        assert (judge.best.number, judge.is_satisfied) == (1, True)
        judge.add(sample(2, q=9.0, verdict=VALID))
        assert judge.best.number == 1


def test_without_a_verified_answer_rules_keep_the_plain_one_and_auto_takes_the_highest_q() -> None:
    """`rules` would make a puzzle worse than a plain evaluation does; `auto` would waste what Q knows."""
    samples = [sample(0, q=1.0), sample(1, q=3.0), sample(2, q=2.0)]
    assert chosen("rules", *samples) == [0, 0, 0]
    assert chosen("auto", *samples) == [0, 1, 1]


@pytest.mark.parametrize("choose", ["rules", "auto"])
def test_of_paths_the_shortest_wins_and_the_first_of_equals(choose: Choose) -> None:
    """A detour would stay the answer though a later sample found a better way; or answers would flicker between
    equals."""
    samples = [sample(0, 5.0), sample(1, verdict=path(9)), sample(2, verdict=path(7)), sample(3, 8.0, path(7))]
    samples += [sample(4, 9.0, path(8)), sample(5, -9.0, path(6, is_best=True))]
    assert chosen(choose, *samples) == [0, 1, 2, 2, 2, 5]
    judge = Judge(choose)
    satisfied = [judge.add(one) or judge.is_satisfied for one in samples]
    assert satisfied == [False] * 5 + [True]


def test_q_takes_the_highest_and_the_first_of_equals() -> None:
    assert chosen("q", sample(0, 1.0), sample(1, 1.0), sample(2, 1.5), sample(3, 1.5), sample(4, -2.0)) == [
        0,
        0,
        2,
        2,
        2,
    ]


@pytest.mark.parametrize("choose", ["q", "auto", "vote"])
def test_a_sample_that_diverged_loses_against_any_other(choose: Choose) -> None:
    """Every comparison with NaN is false: one NaN would stay the best, or crash the vote."""
    assert chosen(choose, sample(0, math.nan, answer=1), sample(1, -5.0, answer=2)) == [0, 1]
    assert chosen(choose, sample(0, -5.0, answer=1), sample(1, math.nan, answer=2)) == [0, 0]
    assert chosen(choose, sample(0, math.nan, answer=1), sample(1, math.nan, answer=2)) == [0, 0]


def test_settled_takes_the_least_movement() -> None:
    """Logits that are NaN, or have been seen only once, have not settled."""
    samples = [sample(n, movement=m) for n, m in enumerate([math.inf, math.nan, 2.0, 0.5, 0.5, math.nan, 0.1])]
    assert chosen("settled", *samples) == [0, 0, 2, 3, 3, 3, 6]


def test_the_vote_is_of_answers_and_a_tie_goes_to_the_mean_probability() -> None:
    """One sure sample would outvote two others; by logits, it would also decide between answers with equal votes."""
    assert chosen("vote", sample(0, 9.0, answer=1), sample(1, answer=2), sample(2, answer=2)) == [0, 0, 1]
    # mean probabilities 0.5 and 0.51; mean logits 0 and -9
    tie = [sample(0, 0.0, answer=1), sample(1, 0.0, answer=1), sample(2, -30.0, answer=2), sample(3, 12.0, answer=2)]
    assert chosen("vote", *tie) == [0, 0, 0, 0]
    tie[3] = sample(3, 0.1, answer=2)
    tie[2] = sample(2, 0.1, answer=2)
    assert chosen("vote", *tie) == [0, 0, 0, 2]
    assert chosen("vote", sample(0, 50.0, answer=1), sample(1, 60.0, answer=2)) == [0, 0]  # both quite sure


def test_labels_do_not_matter_to_any_judge() -> None:
    """A judge that saw them would report what no user can have."""
    rng = np.random.default_rng(0)
    verdicts = [NONE, path(3), path(2)]
    for choose in CHOICES:
        for _ in range(20):
            drawn = rng.integers(3, size=(8, 4)).tolist()
            with_exact, without = (
                [sample(n, q, verdicts[v], a, m, exact=e) for n, (q, v, a, m) in enumerate(drawn)] for e in (1.0, 0.0)
            )
            assert chosen(choose, *with_exact[:4], *without[4:]) == chosen(choose, *without[:4], *with_exact[4:])


@pytest.mark.parametrize("kind", ["sudoku", "maze"])
@pytest.mark.parametrize("choose", CHOICES)
def test_the_files_of_an_evaluation_hold_what_a_slow_judge_chooses(kind: str, choose: Choose, tmp_path: Path) -> None:
    """Of all samples, on the puzzle's own board. Solvers by rules verify answers, at different samples; the answers of
    a random HRM are all wrong, and differ, or agree, in part."""
    make = {"sudoku": lambda: make_sudoku(tmp_path / "data", BLANKS), "maze": lambda: make_mazes(tmp_path / "data", 12)}
    data = opened(make[kind]())
    by_rules = choose in ("rules", "auto")
    ways: dict[str, Any] = {"noise": NOISE, "relabel": True} if by_rules else {"noise": 0.02}
    head = solver(data.metadata) if by_rules else random_hrm(data.metadata)
    thought = think(data, tmp_path, head, samples=SAMPLES, max_steps=7, choose=choose, **ways)
    rules = rules_of(data.metadata)
    assert rules is not None
    inputs = np.load(data.path / "test" / "all__inputs.npy")
    files, choices = thought.files, []
    for row, preds in enumerate(files["sample_preds"].astype(np.int64)):
        boards = np.tile(inputs[row], (SAMPLES, 1))
        verdicts = rules.holds(boards, preds), rules.is_best(boards, preds), rules.cost(preds)
        q, movement, steps = (files[f"sample_{name}"][row] for name in ("q_halt_logits", "movement", "steps"))
        choice, needed = literal_choice(choose, *verdicts, preds, q, movement)
        np.testing.assert_array_equal(steps > 0, np.arange(SAMPLES) < needed)
        np.testing.assert_array_equal(files["preds"][row], preds[choice])
        assert files["q_halt_logits"][row] == q[choice]
        choices.append(choice)
    assert len(set(choices)) > 1, "or the plain sample was always the best, and this would say little"


def test_the_samples_of_a_split_are_those_of_each_alone(tmp_path: Path) -> None:
    """A sample that found a trace of another in its seat, or took another number of steps, would not be what the key
    of the sample says; movement is measured over three steps, and is infinite where there is one."""
    data = opened(make_sudoku(tmp_path / "data", BLANKS[:6]), batch=4)
    head, arrays = solver(data.metadata), all_rows(data)
    (whole,) = opened(data.path, batch=6).eval_batches()
    for steps in (1, 2, 3, 4, 6):
        thinking = Thinking(samples=3, noise=NOISE, random_init=True, max_steps=steps, choose="settled")
        files = think(data, tmp_path, **thinking.options).files
        np.testing.assert_array_equal(files["sample_steps"], steps)
        search = Search(thinking, data.metadata)
        for number in range(3):
            rows = [search.sample(whole, row, number)[0] for row in range(6)]
            alone = {name: np.stack([row[name] for row in rows]) for name in [*arrays, "_sample_key"]}
            outputs = list(literal_steps(head, alone, steps, NOISE, random_init=True))
            np.testing.assert_array_equal(files["sample_preds"][:, number], outputs[-1]["preds"])
            np.testing.assert_array_equal(files["sample_q_halt_logits"][:, number], outputs[-1]["q_halt_logits"])
            movement = literal_movement([output["logits"] for output in outputs])
            np.testing.assert_allclose(files["sample_movement"][:, number], movement, rtol=1e-6)


@pytest.mark.parametrize("choose", CHOICES)
def test_other_labels_change_no_prediction(choose: Choose, tmp_path: Path) -> None:
    """A judge that looked at labels would find other answers with others; what is measured by them does change."""
    data = opened(make_sudoku(tmp_path / "data", BLANKS))
    arrays = all_rows(data)
    found: list[Thought] = []
    for name, labels in (("as-they-are", arrays["labels"]), ("others", arrays["labels"][::-1])):
        folder = write_dataset(tmp_path / name, arrays["inputs"], labels, 6, kind="sudoku", box=(2, 2))
        found.append(think(opened(folder), tmp_path, samples=4, noise=NOISE, choose=choose))
    for name in itertools.chain(
        ("preds", "q_halt_logits"), (key for key in found[0].files if key.startswith("sample"))
    ):
        np.testing.assert_array_equal(found[0].files[name], found[1].files[name], err_msg=name)
    assert found[0].metrics["eval/row_steps"] == found[1].metrics["eval/row_steps"] <= 4 * MAX_STEPS
    assert found[0].metrics["eval/any_exact"] > found[1].metrics["eval/any_exact"]
