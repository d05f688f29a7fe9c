"""The tasks that are scored: the same from test_puzzles.json, from raw files and from the data set's own splits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from dataset.build_arc_dataset import ArcOptions, build
from tests.helpers.arc_data import RIGHT, make_like_pytorch, predict_test_split, task
from tests.helpers.arc_source import RawTask, make_arc, write_task
from utils.arc import __main__ as arc
from utils.arc.report import format_score, format_votes
from utils.arc.scoring import ArcScore, score_predictions
from utils.arc.tasks import read_evaluation_tasks


def numbers(score: ArcScore) -> Any:
    """All that a score says, in types with a plain equality."""
    tasks = {
        task_id: (scored.task.raw(), [(result.candidates, result.rank) for result in scored.inputs])
        for task_id, scored in score.tasks.items()
    }
    return score.rates(), score.predictions, score.notes, list(tasks.items())


def built(folder: Path, num_aug: int = 20, **options: Any) -> Path:
    build(ArcOptions(dataset_dirs=[str(folder / "raw")], output_dir=str(folder / "data"), num_aug=num_aug, **options))
    return folder / "data"


def test_a_data_set_of_the_pytorch_code_scores_the_same(tmp_path: Path) -> None:
    """An official ARC checkpoint needs just such a data set: `test_puzzles.json` is this code's own."""
    make_arc(tmp_path / "raw", evaluation=6)
    data = built(tmp_path)
    predictions = predict_test_split(data, tmp_path / "step_1_all_preds.0", wrong=0.95)
    expected = numbers(score_predictions([predictions], data))
    assert 0 < expected[0]["pass@1"] < expected[0]["pass@1_outputs"] < 1
    shutil.copy(data / "test_puzzles.json", tmp_path / "tasks.json")
    make_like_pytorch(data)
    assert numbers(score_predictions([predictions], data)) == expected
    for source in (tmp_path / "tasks.json", tmp_path / "raw" / "evaluation"):
        assert numbers(score_predictions([predictions], data, source)) == expected


def test_tasks_are_read_from_whichever_copy_comes_first(tmp_path: Path) -> None:
    """Then the order of the puzzles, which other programs may choose, changes no score."""
    tasks = make_arc(tmp_path / "raw", evaluation=3)
    data = built(tmp_path, num_aug=3)
    make_like_pytorch(data)
    for split in ("train", "test"):  # the first puzzle of a group is now a copy
        sizes = np.diff(np.load(data / split / "all__puzzle_indices.npy"))
        puzzles = np.arange(len(sizes)).reshape(-1, 4)[:, ::-1].ravel()
        starts = np.cumsum(sizes) - sizes
        rows = np.concatenate([np.arange(starts[puzzle], starts[puzzle] + sizes[puzzle]) for puzzle in puzzles])
        for kind, order in (("inputs", rows), ("labels", rows), ("puzzle_identifiers", puzzles)):
            path = data / split / f"all__{kind}.npy"
            np.save(path, np.load(path)[order])
    predictions = predict_test_split(data, tmp_path / "step_1_all_preds.0")
    score = score_predictions([predictions], data)
    assert score.pass_at[1] == 1.0
    assert {task_id: scored.task.raw() for task_id, scored in score.tasks.items()} == {
        task_id: tasks[task_id] for task_id in ("e0", "e1", "e2")
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda data: edit(data, kind="maze"), "{data} holds no ARC puzzles (kind maze)"),
        (lambda data: edit(data, vocab_size=13), "{data} holds no ARC puzzles (kind None)"),
        (lambda data: (data / "identifiers.json").unlink(), "{data}/identifiers.json is missing"),
        (
            lambda data: (data / "identifiers.json").write_text('["<blank>", "a"]'),
            "{data}/identifiers.json holds 2 names, expected 21",
        ),
        (lambda data: shutil.rmtree(data / "test"), "{data}/test_puzzles.json is missing"),
        (lambda data: shutil.rmtree(data / "train"), "{data} has no split 'train'"),
        (
            lambda data: np.save(data / "test" / "all__puzzle_identifiers.npy", np.zeros(8, np.int32)),
            "names none of the puzzles in its test split; give their tasks as test_puzzles=<file or folder>",
        ),
    ],
)
def test_why_there_is_no_score_is_one_line(tmp_path: Path, change: Callable[[Path], Any], complaint: str) -> None:
    make_arc(tmp_path / "raw")
    data = built(tmp_path, num_aug=3)
    make_like_pytorch(data)
    predictions = predict_test_split(data, tmp_path / "step_1_all_preds.0")
    change(data)
    with pytest.raises(UserError) as error:
        score_predictions([predictions], data)
    assert complaint.format(data=data) in str(error.value)
    assert "\n" not in str(error.value)


def edit(data: Path, **changes: Any) -> None:
    file = data / "test" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_is_given_as_tasks_and_is_none_is_named(tmp_path: Path) -> None:
    """Before the evaluation, too, where it would cost hours."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no \.json files; expected ARC tasks"):
        read_evaluation_tasks(tmp_path / "empty")
    write_task(tmp_path / "bad", "a", {"train": []})
    with pytest.raises(UserError, match=r"bad/a\.json has a list of 0 as 'train'"):
        read_evaluation_tasks(tmp_path / "bad")
    with pytest.raises(UserError, match="nowhere is missing"):
        read_evaluation_tasks(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------------------- without answers


def without_answers(raw: RawTask) -> RawTask:
    return raw | {"test": [{"input": pair["input"]} for pair in raw["test"]]}


def test_tasks_without_answers_are_submitted_and_not_counted(tmp_path: Path, call_script: Callable[..., Any]) -> None:
    """A pass@K over tasks that nobody can check would be too low; and what is handed in must have them all."""
    tasks = make_arc(tmp_path / "raw", evaluation=3)
    for task_id in ("e1", "e2"):
        write_task(tmp_path / "raw" / "evaluation", task_id, without_answers(tasks[task_id]))
    data = built(tmp_path, allow_unsolved=True)
    predictions = predict_test_split(data, tmp_path / "step_1_all_preds.0")
    score = score_predictions([predictions], data)
    assert score.pass_at[1] == score.pass_at_outputs[1] == 1.0
    assert score.notes == ["2 tasks have no answers and don't count: e1, e2"]
    assert [result.rank for task_id in ("e1", "e2") for result in score.tasks[task_id].inputs] == [None] * 3
    assert "the answer is not known" in format_votes(score.tasks["e1"])
    expected = numbers(score)
    run_here = partial(call_script, arc, f"predictions={predictions}", f"data_path={data}")
    status, out, err = run_here("submission=s.json", "table=t.csv")
    assert status == 0, err
    assert "  2 tasks have no answers and don't count: e1, e2" in out.splitlines()
    submission = json.loads((tmp_path / "s.json").read_text())
    assert {task_id: len(attempts) for task_id, attempts in submission.items()} == {"e0": 1, "e1": 2, "e2": 1}
    assert [line.split(",")[2] for line in (tmp_path / "t.csv").read_text().splitlines()[1:]] == ["1", "", ""]
    make_like_pytorch(data)
    assert numbers(score_predictions([predictions], data)) == expected


def test_nothing_but_tasks_without_answers_has_no_score(tmp_path: Path, call_script: Callable[..., Any]) -> None:
    """The submission is written all the same, and the JSON line holds no number that means nothing."""
    raw = {f"t{number:02}": without_answers(task(([[number % 10, 1]], RIGHT))) for number in range(12)}
    for task_id, content in raw.items():
        write_task(tmp_path / "raw" / "test", task_id, content)
    data = built(tmp_path, num_aug=1, allow_unsolved=True)
    predictions = predict_test_split(data, tmp_path / "step_1_all_preds.0")
    score = score_predictions([predictions], data)
    assert score.pass_at == score.pass_at_outputs == {}
    assert format_score(score).splitlines()[1:] == [
        "  12 tasks have no answers and don't count: t00, t01, t02, t03, t04, t05, t06, t07, t08, t09 and 2 more"
    ]
    status, out, err = call_script(arc, f"predictions={predictions}", f"data_path={data}", "submission=s.json")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1]) == {"predictions": [str(predictions)], "num_tasks": 12}
    assert list(json.loads((tmp_path / "s.json").read_text())) == list(raw)
