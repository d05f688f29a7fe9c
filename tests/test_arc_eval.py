"""arc_eval.ipynb, run from top to bottom on the predictions of a real evaluation of a small model."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

import evaluate
from dataset.build_arc_dataset import ArcOptions, build
from tests.helpers.arc_data import make_like_pytorch, predict_test_split
from tests.helpers.arc_source import make_arc
from tests.helpers.tiny_data import ROOT, TINY_ARCH, run_script
from utils.arc import __main__ as arc

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "arc_eval.ipynb"
TASKS = 3


@dataclass(frozen=True)
class Evaluated:
    data: Path
    predictions: str
    printed: str  # by evaluate.py


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """A data set from the builder, a model that pretrain.py made, and what evaluate.py wrote for it."""
    folder = tmp_path_factory.mktemp("arc")
    make_arc(folder / "raw", evaluation=TASKS)
    build(ArcOptions(dataset_dirs=[str(folder / "raw")], output_dir=str(folder / "data"), num_aug=3))
    run = folder / "run"
    arguments = [f"data_path={folder / 'data'}", f"checkpoint_path={run}", "global_batch_size=4"]
    arguments += ["epochs=1", "eval_interval=1", "eval_max_examples=4", "arch.halt_max_steps=2"]
    trained = run_script("pretrain.py", [*TINY_ARCH, *arguments], folder)
    assert trained.returncode == 0, trained.stderr
    result = run_script("evaluate.py", [f"checkpoint={run}"], folder)
    assert result.returncode == 0, result.stderr
    (predictions,) = run.glob("step_*_all_preds.0")
    return Evaluated(folder / "data", f"{str(predictions)[:-1]}*", result.stdout)


def read_notebook() -> Any:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def run_notebook(notebook: Any, **parameters: Any) -> list[Any]:
    """Run it as papermill would, with parameters in a cell behind the one tagged `parameters`; returns the outputs."""
    (index,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(source))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter, IPython and matplotlib neither read nor write the user's settings."""
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("MPLBACKEND", raising=False)


@pytest.mark.usefixtures("own_folders")
def test_it_runs_and_shows_the_score_of_the_command_line(evaluated: Evaluated, call_script: Callable[..., Any]) -> None:
    """Whoever opens it after a day of training would meet an error, or a score other than the published rules'."""
    outputs = run_notebook(read_notebook(), predictions=evaluated.predictions, data_path=str(evaluated.data))
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    status, printed, err = call_script(arc, f"predictions={evaluated.predictions}", f"data_path={evaluated.data}")
    assert status == 0, err
    table = "\n".join(printed.splitlines()[:-1])  # without the JSON line
    assert f"ARC: {TASKS} tasks" in table
    assert table in evaluated.printed  # as evaluate.py ended
    scores, evaluation = (json.loads(said.splitlines()[-1]) for said in (printed, evaluated.printed))
    rates = {key: value for key, value in scores.items() if key.startswith("pass@")}
    assert set(rates) == {f"pass@{k}{over}" for k in (1, 2, 10, 100, 1000) for over in ("", "_outputs")}
    assert {key: value for key, value in evaluation.items() if key.startswith("pass@")} == rates
    assert table in text
    assert "left out" not in text, "the evaluation's rows were not recognised"
    assert f"Not solved with two attempts: {TASKS} of {TASKS} tasks, 4 of 4 outputs\n" in text
    assert len(re.findall(r"^e\d, test input \d: 4 predictions", text, re.MULTILINE)) == 4

    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2 * TASKS  # demonstrations and attempts, each drawn once
    for picture in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
        colours = image.getcolors(maxcolors=1 << 24)
        assert colours is not None
        assert len(colours) > 8, "an empty picture"


def test_a_data_set_of_the_pytorch_code_is_scored_by_evaluate(
    evaluated: Evaluated, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    """Who evaluates an official checkpoint would get no pass@K, nor a word about it."""
    data = Path(shutil.copytree(evaluated.data, tmp_path / "data"))
    shutil.copy(data / "test_puzzles.json", tmp_path / "tasks.json")
    make_like_pytorch(data)
    run = Path(evaluated.predictions).parent
    run_here = partial(call_script, evaluate, f"checkpoint={run}", f"data_path={data}", f"output_path={tmp_path}")
    for more in ([], [f"test_puzzles={tmp_path / 'tasks.json'}"]):
        status, printed, err = run_here(*more)
        assert status == 0, err
        assert "not scored" not in err
        assert json.loads(printed.splitlines()[-1]) == json.loads(evaluated.printed.splitlines()[-1])
    status, _, err = run_here("test_puzzles=nowhere")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("error: nowhere is missing; expected a file like test_puzzles.json")
    (data / "identifiers.json").unlink()
    status, printed, err = run_here()
    assert status == 0, err
    assert "eval/exact_accuracy" in json.loads(printed.splitlines()[-1])
    assert f"not scored: {data}/identifiers.json is missing" in err


@pytest.mark.usefixtures("own_folders")
def test_tasks_to_show_can_be_chosen(evaluated: Evaluated) -> None:
    notebook = read_notebook()
    outputs = run_notebook(
        notebook, predictions=evaluated.predictions, data_path=str(evaluated.data), show_tasks=["e1"]
    )
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert set(re.findall(r"^(e\d), test input", text, re.MULTILINE)) == {"e1"}


@pytest.mark.usefixtures("own_folders")
def test_it_counts_tasks_and_outputs(evaluated: Evaluated, tmp_path: Path) -> None:
    """A number without its convention would be compared with one of the other."""
    predictions = predict_test_split(evaluated.data, tmp_path / "step_1_all_preds.0")
    puzzles = json.loads((evaluated.data / "test_puzzles.json").read_text())
    assert [len(puzzle["test"]) for puzzle in puzzles.values()] == [1, 2, 1]
    puzzles["e1"]["test"][0]["output"] = [[0]]  # what the data set's labels do not say
    puzzles["unknown"] = {"train": puzzles["e0"]["train"], "test": [{"input": [[1]]}]}
    data = Path(shutil.copytree(evaluated.data, tmp_path / "data"))
    (data / "test_puzzles.json").write_text(json.dumps(puzzles))
    outputs = run_notebook(read_notebook(), predictions=str(predictions), data_path=str(data))
    lines = "".join(output.text for output in outputs if output.output_type == "stream").splitlines()
    assert ["tasks", "outputs"] in [line.split() for line in lines]
    assert ["pass@2", "0.6667", "0.7500"] in [line.split() for line in lines]
    assert "Not solved with two attempts: 1 of 3 tasks, 1 of 4 outputs" in lines


def test_it_is_committed_without_outputs() -> None:
    """Outputs of somebody's run would be megabytes in every clone, and pass for the reader's own."""
    for cell in read_notebook().cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
