"""python -m utils.arc as users run it: the score on the screen, files where asked, mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.arc_data import RIGHT, WRONG, ArcFiles, Row, augmented, plain, task
from tests.helpers.configs import pretrain_config
from tests.helpers.tiny_data import ROOT
from utils.arc import __main__ as arc
from utils.arc.report import format_votes
from utils.arc.scoring import score_predictions
from utils.config import write_saved_config

INPUT, OTHER_INPUT = [[1, 0]], [[2, 0, 7]]


@pytest.fixture
def files(tmp_path: Path) -> ArcFiles:
    """Two ranks' predictions: task a is right at the first attempt, b at the second, of c one of two outputs."""
    tasks = {name: task((INPUT, RIGHT)) for name in "ab"} | {"c": task((INPUT, RIGHT), (OTHER_INPUT, RIGHT))}
    files = ArcFiles(tmp_path / "arc files", tasks)
    files.predict([plain("a", INPUT, RIGHT), plain("b", INPUT, WRONG), plain("b", INPUT, RIGHT, q_halt=-1.0)])
    files.predict([plain("c", INPUT, WRONG), plain("c", OTHER_INPUT, RIGHT)], rank=1)
    return files


@pytest.fixture
def run_here(call_script: Callable[..., Any]) -> Callable[..., Any]:
    return partial(call_script, arc)


@pytest.mark.slow
def test_prints_a_table_and_one_json_line_and_writes_what_is_asked(files: ArcFiles, tmp_path: Path) -> None:
    """From the repository's root, as the README says."""
    out = tmp_path / "out"
    pattern = files.root / "run" / "step_1_all_preds.*"
    arguments = [f"predictions={pattern}", f"data_path={files.data}", f"submission={out}/s.json", f"table={out}/t.csv"]
    result = subprocess.run(
        [sys.executable, "-m", "utils.arc", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "ARC: 3 tasks, 4 test inputs, 5 predictions"
    assert lines[1].startswith("  1 predictions are further votes of the same puzzles: ")
    assert lines[2:-1] == [
        "               tasks  outputs",
        "  pass@1      0.3333   0.5000",
        "  pass@2      0.6667   0.7500",
        "  pass@10     0.6667   0.7500",
        "  pass@100    0.6667   0.7500",
        "  pass@1000   0.6667   0.7500",
    ]
    record = json.loads(lines[-1])
    assert record["num_tasks"] == 3
    assert (record["pass@2"], record["pass@2_outputs"]) == (pytest.approx(2 / 3), pytest.approx(3 / 4))
    assert record["predictions"] == [str(pattern)[:-1] + rank for rank in "01"]
    assert {path.name for path in out.iterdir()} == {"s.json", "t.csv"}
    assert result.stderr == ""


def test_a_list_of_folders_and_the_runs_own_data_set(files: ArcFiles, run_here: Callable[..., Any]) -> None:
    """Without data_path the score is over the data that the run was trained on; all_config.yaml names it."""
    run = files.root / "run"
    write_saved_config(pretrain_config(data_path=str(files.data)), run)
    status, out, err = run_here(f"predictions=[{run / 'step_1_all_preds.0'},{run / 'step_1_all_preds.1'}]")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["pass@1"] == pytest.approx(1 / 3)
    status, out, _ = run_here(f"predictions={run / 'step_1_all_preds.0'}")
    assert "  1 tasks lack predictions and count as unsolved, such as c" in out.splitlines()
    assert json.loads(out.splitlines()[-1])["pass@1"] == pytest.approx(1 / 3)


def test_votes_are_listed_for_every_test_input(tmp_path: Path) -> None:
    """Near misses are found here: which place the answer has, and how far the first ones are apart."""
    files = ArcFiles(tmp_path, {"a": task((INPUT, RIGHT), (WRONG, RIGHT))})
    rows = [augmented("a", k, range(10), INPUT, WRONG, 1.0) for k in range(5)]
    rows += [augmented("a", k, range(10), INPUT, RIGHT) for k in range(5, 7)]
    rows += [Row("a_t7_0123456789", augmented("a", 7, range(10), INPUT, RIGHT).inputs, np.zeros(900))]
    score = score_predictions([files.predict(rows)], files.data).tasks["a"]
    assert format_votes(score).splitlines() == [
        "a, test input 1: 8 predictions, 3 candidates, the answer is candidate 2",
        "  1.     5 votes   62.5%  q_halt 0.731  1x2",
        "  2.     2 votes   25.0%  q_halt 0.500  2x2  answer",
        "  3.     1 votes   12.5%  q_halt 0.500  no grid",
        "a, test input 2: 0 predictions, 0 candidates, the answer is not among the candidates",
    ]
    assert len(format_votes(score, candidates=1).splitlines()) == 3


@pytest.mark.slow
def test_scoring_needs_neither_mlx_nor_matplotlib() -> None:
    """Predictions are often scored on another machine than the one with the GPU; the pictures are the notebook's."""
    code = "import sys, utils.arc.__main__\n"
    code += "print(sorted({'mlx', 'matplotlib'} & {name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "usage: python -m utils.arc predictions=<folder or pattern> [data_path=…] [submission=…] [table=…]"),
        (["data_path={data}"], "usage: python -m utils.arc"),
        (["{run}"], "is not key=value; usage: python -m utils.arc"),
        (["predictions={run}/step_9*"], "no folder matches {run}/step_9*"),
        (["predictions=[]"], "predictions = []"),
        (["predictions={run}/step_1*", "data=x"], "unknown key 'data'"),
        (["predictions={run}/step_1*"], "{run}/all_config.yaml is missing"),
        (["predictions={run}/step_1*", "data_path=nowhere"], "nowhere/identifiers.json is missing"),
        (["predictions={run}", "data_path={data}"], "{run}/inputs.npy is missing; run evaluate.py"),
        (
            ["predictions={run}/step_1*", "data_path={data}", "table={data}"],
            "{data} is a folder; name the file to write",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line(
    files: ArcFiles, run_here: Callable[..., Any], arguments: list[str], expected: str
) -> None:
    places = {"run": files.root / "run", "data": files.data}
    status, out, err = run_here(*(argument.format(**places) for argument in arguments))
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert expected.format(**places) in err
