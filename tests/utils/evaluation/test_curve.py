"""The curve of solved puzzles against compute: each point is what an evaluation with so many samples finds."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate
from tests.helpers.thinking import MAX_STEPS, make_mazes, make_sudoku, opened, random_hrm, think, write_solver
from utils.evaluation.curve import Curve, Found, format_curve, plot_curve

BLANKS = [4, 7, 8, 9, 10, 10, 11, 11, 12, 12, 13]


@pytest.mark.parametrize(
    ("kind", "choose"), [("sudoku", "auto"), ("maze", "rules"), ("sudoku", "vote"), ("random", "q")]
)
def test_a_point_is_an_evaluation_with_so_many_samples(kind: str, choose: str, tmp_path: Path) -> None:
    """A user would read off it that 4 samples are enough, and find something else with 4."""
    data = opened(make_mazes(tmp_path / "data", 11) if kind == "maze" else make_sudoku(tmp_path / "data", BLANKS))
    head = random_hrm(data.metadata) if kind == "random" else None
    noise, max_steps = (0.25, 7) if kind == "maze" else (0.25, MAX_STEPS)
    ways: dict[str, Any] = {"choose": choose, "max_steps": max_steps}
    whole = think(data, tmp_path, head, samples=5, noise=noise, keep=False, **ways)
    points = whole.result.curve.points()
    assert list(points) == [1, 2, 4, 5]
    for samples, point in points.items():
        alone = think(data, tmp_path, head, samples=samples, noise=noise * (samples > 1), keep=False, **ways)
        (*_, last) = alone.result.curve.points().values()
        assert point == pytest.approx(last, abs=1e-12)
        assert point["exact"] == pytest.approx(alone.metrics["eval/exact_accuracy"])
        assert point["any_exact"] == pytest.approx(alone.metrics["eval/any_exact"])
        assert point["row_steps"] == pytest.approx(alone.metrics["eval/row_steps"])
        assert point["verified"] == pytest.approx(alone.metrics["eval/valid_path" if kind == "maze" else "eval/valid"])
    if kind == "sudoku":
        assert points[1]["verified"] < points[5]["verified"], "or more samples would be in vain"


def test_points_are_the_powers_of_two_and_the_last() -> None:
    for samples, expected in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])):
        assert list(Curve(True, np.zeros((samples, 4)), 3).points()) == expected
    assert Curve(True, np.zeros((2, 4))).points()[2] == Found()._asdict()  # no puzzle at all


def example(has_rules: bool = True) -> Curve:
    """Two puzzles: one solved at once, the other verified at the third try."""
    curve = Curve(has_rules, np.zeros((3, 4)))
    solved = Found(2.0, 1.0, 1.0, 1.0)
    curve.add(0, Found(), solved)
    tries = [Found(4.0, 0.0, 0.0, 0.0), Found(8.0, 0.0, 0.0, 1.0), Found(11.0, 0.0, 1.0, 1.0)]
    for number, (before, after) in enumerate(zip([Found(), *tries], tries, strict=False)):
        curve.add(number, before, after)
    return curve


def test_the_table_has_a_line_for_each_point() -> None:
    """Shares of puzzles, and steps for each puzzle; without rules nothing is verified, and no column says so."""
    assert [line.split() for line in format_curve(example()).splitlines()] == [
        ["samples", "row_steps", "exact", "verified", "any_exact"],
        ["1", "3.00", "0.5000", "0.5000", "0.5000"],
        ["2", "5.00", "0.5000", "0.5000", "1.0000"],
        ["3", "6.50", "0.5000", "1.0000", "1.0000"],
    ]
    lines = format_curve(example(has_rules=False)).splitlines()
    assert lines[1].split() == ["1", "3.00", "0.5000", "0.5000"]
    assert len(set(map(len, lines))) == 1


def test_the_plot_is_a_png_whatever_its_name(tmp_path: Path) -> None:
    """A name without an ending, or with another, would make another file, or none."""
    pytest.importorskip("matplotlib")
    for name in ("curve.png", "curve", "new/folder/curve.jpg"):
        plot_curve(example(), tmp_path / name, "a checkpoint: 3 samples")
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 10
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["curve.jpg", "curve.png"]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_solver(tmp_path / "solver", make_sudoku(tmp_path / "data", BLANKS), monkeypatch)


def test_evaluate_prints_the_curve_and_writes_the_plot(
    checkpoint: Path, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    """What an evaluation of hours has found would be lost with the last line."""
    keys = ["samples=4", "noise=0.25", "seed=3", f"curve={tmp_path / 'curve.png'}", "save_outputs=[preds,samples]"]
    status, out, err = call_script(evaluate, f"checkpoint={checkpoint}", *keys)
    assert status == 0, err
    record = json.loads(out.splitlines()[-1])
    assert {key: record[key] for key in ("samples", "noise")} == {"samples": 4, "noise": 0.25}
    assert not {"max_steps", "relabel", "random_init", "choose"} & record.keys()  # those that are not default
    thought = think(opened(tmp_path / "data"), tmp_path, samples=4, noise=0.25, seed=3)
    assert record["eval/any_exact"] == pytest.approx(thought.metrics["eval/any_exact"])
    assert record["eval/row_steps"] == pytest.approx(thought.metrics["eval/row_steps"])
    assert thought.result.curve is not None
    points = thought.result.curve.points()
    assert list(record["curve"]) == [str(number) for number in points] == ["1", "2", "4"]
    for number, point in points.items():
        assert record["curve"][str(number)] == pytest.approx(point)
    assert format_curve(thought.result.curve) in out
    saved = checkpoint / "step_0_all_preds.0"
    for name in ("preds", "sample_preds", "sample_steps", "sample_movement", "sample_q_halt_logits"):
        np.testing.assert_array_equal(np.load(saved / f"{name}.npy"), thought.files[name])
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG"


def test_a_plain_evaluation_prints_no_curve(checkpoint: Path, call_script: Callable[..., Any]) -> None:
    """A reader of the last line of before would find keys that mean nothing there."""
    status, out, err = call_script(
        evaluate, f"checkpoint={checkpoint}", "eval_halt=q", "choose=vote", "save_outputs=[]"
    )
    assert status == 0, err
    record = json.loads(out.splitlines()[-1])
    assert "curve" not in record
    assert not {"eval/row_steps", "eval/any_exact"} & record.keys()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["curve=a.png"], "curve shows what further tries or outer steps bring; give samples or max_steps as well"),
        (["samples=4"], "samples = 4 would be the same try 4 times; give noise, random_init or relabel as well"),
        (["noise=0.1"], "noise is for further tries"),
        (["samples=2", "noise=0.1", "save_outputs=[step_preds]"], "save_outputs has step_preds"),
        (["max_steps=9", "save_outputs=[step_preds]"], "save_outputs has step_preds"),
        (["samples=2", "relabel=True", "save_outputs=[logits]"], "save_outputs has logits, but with relabel"),
        (["samples=0"], "samples"),
        (["samples=2", "noise=nan"], "noise"),
        (["samples=2", "noise=-1"], "noise"),
        (["max_steps=0"], "max_steps"),
        (["choose=best"], "choose"),
    ],
)
def test_mistakes_are_told_in_one_line(keys: list[str], expected: str, call_script: Callable[..., Any]) -> None:
    """Before anything is read, by the names on the command line."""
    status, out, err = call_script(evaluate, "checkpoint=none", *keys)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert expected in err


def test_what_the_puzzles_lack_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call_script: Callable[..., Any]
) -> None:
    """Rules and symmetries that nobody knows can't be asked for."""
    data = make_sudoku(tmp_path / "data", BLANKS)
    for split in ("train", "test"):
        path = data / split / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "riddle"}))
    checkpoint = write_solver(tmp_path / "solver", data, monkeypatch)
    for keys, expected in (
        (["choose=rules", "max_steps=9"], "choose = 'rules' needs puzzles whose answers can be verified"),
        (["samples=2", "relabel=True"], "names the kind riddle, whose symmetries aren't known"),
    ):
        status, out, err = call_script(evaluate, f"checkpoint={checkpoint}", *keys)
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert expected in err


def test_what_a_plot_lacks_is_told_before_the_evaluation(
    monkeypatch: pytest.MonkeyPatch, call_script: Callable[..., Any]
) -> None:
    """And not after hours, when there is something to plot."""
    status, _, err = call_script(evaluate, "checkpoint=none", "curve=.", "max_steps=3")
    assert (status, err) == (1, "error: curve = '.' is a folder, expected a file to write, such as curve.png\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = call_script(evaluate, "checkpoint=none", "curve=a.png", "max_steps=3")
    assert (status, err) == (1, "error: curve needs matplotlib: pip install -r requirements-notebook.txt\n")
