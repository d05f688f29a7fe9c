"""What puzzles a checkpoint is for: recorded, or told by what lies beside it, or asked for in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
import solve
from dataset.metadata import PuzzleDatasetMetadata
from tests.helpers.configs import TINY_ARCH
from tests.helpers.golden import GOLDEN, KINDS
from tests.helpers.solving import ARC, SUDOKU_4, rewrite_header, sudoku_text, write_model
from tests.helpers.tiny_data import NUM_TEST, make_tiny_data
from utils import export
from utils.checkpoints.foreign_config import read_trained_config
from utils.checkpoints.puzzles import PUZZLES, puzzles_text, read_puzzles_of, recorded_puzzles
from utils.checkpoints.weights import find_weights
from utils.config import CONFIG_FILE

Run = Callable[..., tuple[int, str, str]]

LINE = "1..4..1..1..4..1"
LEARNED = TINY_ARCH | {"pos_encodings": "learned"}  # a table of positions, as long as the board


@pytest.fixture
def run_here(call_script: Run) -> Run:
    """Call solve.py in this process; returns (exit status, stdout, stderr)."""
    return partial(call_script, solve)


def puzzles_of(checkpoint: Path, data_path: str | None = None) -> PuzzleDatasetMetadata:
    source = find_weights(str(checkpoint))
    return read_puzzles_of(source, source.tensors(), read_trained_config(source.config_folder, data_path), data_path)


def answers(result: tuple[int, str, str]) -> list[str]:
    assert result[0] in (0, 1), result[2]
    return [json.loads(line)["answer"] for line in result[1].splitlines()]


def refusal(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert err.startswith("error: ")
    return err


# ---------------------------------------------------------------------------------------------------- recorded


def test_what_is_recorded_is_what_the_data_set_said(tmp_path: Path) -> None:
    """Box, shape or vocabulary of a data set that is gone would be gone too."""
    words = SUDOKU_4.model_copy(update={"kind": "words", "box": None, "vocabulary": ["", *"abcde"], "shape": (2, 8)})
    for number, metadata in enumerate((SUDOKU_4, words)):
        checkpoint = write_model(tmp_path / str(number), metadata)
        assert puzzles_of(checkpoint) == metadata
        assert recorded_puzzles(checkpoint / "model.safetensors") == puzzles_text(metadata)


def test_the_record_counts_before_the_data_set_of_the_training(tmp_path: Path) -> None:
    """A data set that was built anew at the same place, of other puzzles, would be taken for the model's."""
    data = make_tiny_data(tmp_path / "data")
    assert puzzles_of(write_model(tmp_path / "run", SUDOKU_4, data_path=data)) == SUDOKU_4
    assert puzzles_of(write_model(tmp_path / "older", SUDOKU_4, data_path=data, recorded=None)).kind is None


def test_an_export_passes_on_what_is_recorded(tmp_path: Path, call_script: Run, run_here: Run) -> None:
    """An exported model would need the data set of the one that it was exported from."""
    checkpoint = write_model(tmp_path / "run", SUDOKU_4)
    out = tmp_path / "exported" / "m.safetensors"
    status, _, err = call_script(export, f"checkpoint={checkpoint}", f"out={out}", "prefix=_orig_mod.")
    assert status == 0, err
    expected = answers(run_here(f"checkpoint={checkpoint}", f"puzzle={LINE}", "json=true"))
    shutil.rmtree(tmp_path / "run")
    assert answers(run_here(f"checkpoint={out}", f"puzzle={LINE}", "json=true")) == expected
    assert puzzles_of(out) == SUDOKU_4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("not JSON", "its header: Invalid JSON"),
        ("[]", "its header: Input should be an object"),
        ("[" * 5000, "its header: Invalid JSON"),
        ({"seq_len": 10**9}, "its header: seq_len is 1000000000, expected 1 to 1048576"),
        ({"seq_len": -1}, "its header: seq_len is -1"),
        ({"vocab_size": 10**12}, "its header: vocab_size is 1000000000000"),
        ({"num_puzzle_identifiers": 10**9}, "its header: num_puzzle_identifiers is 1000000000"),
        ({"pad_id": 6}, "its header: pad_id is 6, expected 0 to 5"),
        ({"mean_puzzle_examples": 1e999}, "its header: mean_puzzle_examples"),
        ({"box": [3, 3]}, "its header: box is [3, 3]"),
        ({"shape": [3, 3]}, "its header: shape is [3, 3]"),
        ({"kind": "x", "vocabulary": ["", "a"]}, "its header: vocabulary has 2 symbols, expected 6"),
        ({"kind": "x", "vocabulary": ["", "a", "b", "c", "d", "\x1b[2J"]}, "its header: vocabulary "),
        ({"vocab_size": 7}, "has shape (6, 32), the model needs (7, 32)"),
        ({"vocab_size": 7, "kind": "x", "vocabulary": ["", *"abcdef"]}, "has shape (6, 32), the model needs (7, 32)"),
        ({"seq_len": 81, "box": [3, 3]}, "dataset.json: vocab_size is 6, expected 11 tokens for 9x9 Sudoku"),
        (
            {"seq_len": 81, "box": None, "kind": "maze"},
            "puzzle 1 has 16 cells, this model solves 9x9 mazes with 81 cells",
        ),
        (
            {"num_puzzle_identifiers": 5, "blank_identifier_id": 3},
            "of 1 puzzles, but blank_identifier_id is 3",
        ),
        ({"seq_len": 1 << 20, "box": [32, 32]}, "Sudoku with seq_len = 1048576 can't be typed"),
        ({"kind": "unknown"}, "this model's puzzles can't be typed"),
    ],
)
def test_a_damaged_or_hostile_record_ends_in_one_line(
    tmp_path: Path, run_here: Run, changes: str | dict[str, Any], message: str
) -> None:
    """A file from elsewhere could take all memory, or end the process, or ask for tokens that the model has not."""
    text = changes if isinstance(changes, str) else json.dumps(SUDOKU_4.model_dump(mode="json") | changes)
    checkpoint = write_model(tmp_path / "run", SUDOKU_4, recorded=text)
    line = refusal(run_here(f"checkpoint={checkpoint}", f"puzzle={LINE}"))
    assert message in line
    assert len(line) < 600
    assert "\x1b" not in line


def test_a_record_of_arc_tasks_in_other_sizes_is_refused(tmp_path: Path, run_here: Run) -> None:
    """Grids would be laid on boards that are too small for them."""
    metadata = SUDOKU_4.model_copy(update={"kind": "arc", "box": None})
    task = json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]]}]})
    line = refusal(run_here(f"checkpoint={write_model(tmp_path / 'run', metadata)}", f"puzzle={task}"))
    assert "this model's ARC tasks have seq_len = 16 and vocab_size = 6, expected 900 and 12" in line


def test_a_record_of_another_board_is_told_where_the_weights_tell(tmp_path: Path, run_here: Run) -> None:
    """A model with a table of positions would be asked for positions that it has not."""
    text = puzzles_text(SUDOKU_4.model_copy(update={"seq_len": 36, "box": (2, 3), "vocab_size": 6, "kind": "maze"}))
    checkpoint = write_model(tmp_path / "run", SUDOKU_4, LEARNED, recorded=text.replace('"box":[2,3],', ""))
    assert "the model needs (37, 32)" in refusal(run_here(f"checkpoint={checkpoint}", f"puzzle={LINE}"))


# ---------------------------------------------------------------------------------------------------- not recorded


def test_an_older_checkpoint_needs_the_data_set_of_its_training(tmp_path: Path, run_here: Run) -> None:
    """Checkpoints of before the record would solve nothing, or puzzles of a guessed kind."""
    data = make_tiny_data(tmp_path / "data")
    checkpoint = write_model(tmp_path / "run", SUDOKU_4, data_path=data)
    arguments = [f"checkpoint={checkpoint}", f"puzzle={LINE}", "json=true"]
    expected = answers(run_here(*arguments))
    rewrite_header(checkpoint / "model.safetensors", None)
    assert recorded_puzzles(checkpoint / "model.safetensors") is None
    assert answers(run_here(*arguments)) == expected
    assert puzzles_of(checkpoint).kind is None  # the data set's word, not a guess

    moved = data.rename(tmp_path / "moved")
    assert "16 cells" in refusal(run_here(*arguments))  # by its 6 tokens it could be of the mazes
    assert answers(run_here(*arguments, f"data_path={moved}")) == expected


def test_a_named_data_set_counts_before_what_is_recorded(tmp_path: Path, run_here: Run) -> None:
    """A record that is wrong, or lacks the box, could not be corrected."""
    data = make_tiny_data(tmp_path / "data")
    for split in ("train", "test"):
        file = data / split / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"kind": "sudoku", "box": [1, 4]}))
    checkpoint = write_model(tmp_path / "run", SUDOKU_4)
    assert puzzles_of(checkpoint, str(data)).box == (1, 4)
    twice_in_a_box = f"puzzle={'1....1..' + '.' * 8}"
    assert "stands twice in a box" in refusal(run_here(f"checkpoint={checkpoint}", twice_in_a_box))
    answers(run_here(f"checkpoint={checkpoint}", twice_in_a_box, f"data_path={data}", "json=true"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pytorch_file_solves_the_puzzles_of_a_named_data_set(
    tmp_path: Path, call_script: Run, run_here: Run, kind: str
) -> None:
    """The models of the PyTorch code could be evaluated and not used, or give other answers then."""
    data = make_tiny_data(tmp_path / "data", identifiers=5)
    np.save(data / "test" / "all__puzzle_identifiers.npy", np.zeros(NUM_TEST, np.int32))
    checkpoint = [f"checkpoint={GOLDEN / kind / 'step_8'}", f"data_path={data}"]
    status, _, err = call_script(evaluate, *checkpoint, f"output_path={tmp_path}", "save_outputs=[inputs,preds]")
    assert status == 0, err
    inputs, preds = (np.load(tmp_path / "step_8_all_preds.0" / f"{name}.npy") for name in ("inputs", "preds"))
    (tmp_path / "p.txt").write_text("\n".join(map(sudoku_text, inputs)))
    found = answers(run_here(*checkpoint, f"puzzle={tmp_path / 'p.txt'}", "json=true", "choose=q"))
    assert found == [sudoku_text(tokens) for tokens in preds]


# Kind, tokens, cells, box of the published data sets, as the papers' configurations have them
@pytest.mark.parametrize(
    ("kind", "vocab_size", "seq_len", "box", "puzzle", "size"),
    [
        ("sudoku", 11, 81, (3, 3), LINE, "puzzle 1 has 16 cells, this model solves 9x9 Sudoku with 81 cells"),
        ("maze", 6, 900, None, r"S  \n  G", "this model solves 30x30 mazes with 900 cells"),
        ("arc", 12, 900, None, '{"train": []}', "puzzle 1"),
    ],
)
def test_models_of_the_published_data_sets_tell_by_their_sizes(
    tmp_path: Path,
    run_here: Run,
    kind: str,
    vocab_size: int,
    seq_len: int,
    box: tuple[int, int],
    puzzle: str,
    size: str,
) -> None:
    """The authors' own checkpoints would need data sets of a gigabyte to solve one puzzle."""
    sizes = {"kind": kind, "vocab_size": vocab_size, "seq_len": seq_len, "box": box, "num_puzzle_identifiers": 7}
    trained_on = SUDOKU_4.model_copy(update=sizes)
    checkpoint = write_model(tmp_path / "run", trained_on, recorded=None)
    found = puzzles_of(checkpoint)
    assert {name: getattr(found, name) for name in sizes} == sizes
    assert (found.pad_id, found.ignore_label_id, found.blank_identifier_id) == (0, 0, 0)
    assert size in refusal(run_here(f"checkpoint={checkpoint}", f"puzzle={puzzle}"))


def test_sizes_of_no_published_data_set_are_asked_for(tmp_path: Path, run_here: Run) -> None:
    """A Sudoku of 6x6 would be taken for another puzzle by the number of its tokens."""
    metadata = SUDOKU_4.model_copy(update={"seq_len": 36, "vocab_size": 8, "box": (2, 3)})
    checkpoint = write_model(tmp_path / "run", metadata, recorded=None)
    line = refusal(run_here(f"checkpoint={checkpoint}", f"puzzle={LINE}"))
    assert "doesn't record what puzzles it is for, and data/none, its data set, is not here" in line
    assert "give a data set of such puzzles as data_path=<folder>" in line


def test_a_checkpoint_without_its_configuration_is_refused(tmp_path: Path, run_here: Run) -> None:
    """The record says nothing of the architecture: a file copied alone is no model."""
    checkpoint = write_model(tmp_path / "run", SUDOKU_4)
    (tmp_path / "run" / CONFIG_FILE).unlink()
    assert CONFIG_FILE in refusal(run_here(f"checkpoint={checkpoint}", f"puzzle={LINE}"))


def test_other_texts_in_a_header_are_no_record(tmp_path: Path) -> None:
    """Files of other programs have texts of their own there."""
    checkpoint = write_model(tmp_path / "run", ARC, recorded=None)
    file = checkpoint / "model.safetensors"
    rewrite_header(file, {"format": "pt", "step": "7"})
    assert recorded_puzzles(file) is None
    rewrite_header(file, {"format": "pt", PUZZLES: "x"})
    assert recorded_puzzles(file) == "x"


def test_the_table_of_the_weights_tells_how_many_puzzles_there_are(tmp_path: Path) -> None:
    """A model could not be loaded beside another build of its data set, which has as many puzzles as it happens to."""
    checkpoint = write_model(tmp_path / "run", SUDOKU_4)
    data = make_tiny_data(tmp_path / "other", identifiers=5)
    rows = puzzles_of(checkpoint).num_puzzle_identifiers
    assert json.loads((data / "test" / "dataset.json").read_text())["num_puzzle_identifiers"] != rows
    assert puzzles_of(checkpoint, str(data)).num_puzzle_identifiers == rows
