"""What the viewer finds in folders: data sets and predictions in a repository, the predictions of several ranks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.tiny_data import make_tiny_data, split_test_set
from tests.helpers.viewer import Viewer, digits
from utils.evaluation.predictions import PredictionWriter

pytestmark = pytest.mark.slow

KEYS = ("inputs", "labels", "puzzle_identifiers", "preds", "q_halt_logits")


def evaluate(
    data: Path, run: Path, *, batch: int, ranks: int = 1, step: int = 9, examples: int = 20, keys: Sequence[str] = KEYS
) -> np.ndarray:
    """Write what evaluate.py would for a model that turns every digit into the next one, and is sure by row.

    Returns:
        for each rank's rows in turn, the q_halt that was stored: 0.01, 0.02, … in the order of the data set.
    """
    stored: list[float] = []
    for rank in range(ranks):
        dataset = PuzzleDataset(data, "test", global_batch_size=batch, rank=rank, num_ranks=ranks)
        batches = list(dataset.eval_batches(max_examples=examples))
        share = len(batches[0].inputs)  # fewer than batch / ranks where there are not so many examples
        starts = [start for first, stop in set_bounds(data, examples) for start in range(first, stop, share * ranks)]
        with PredictionWriter(run / f"step_{step}_all_preds.{rank}", keys, vocab_size=6) as writer:
            for start, rows in zip(starts, batches, strict=True):
                q_halt = (start + rank * share + np.arange(share) + 1) / 100
                preds = np.where(rows.labels >= 2, (rows.labels - 1) % 4 + 2, 0)
                writer.write(rows, {"preds": mx.array(preds), "q_halt_logits": mx.array(q_halt.astype(np.float32))})
                stored += q_halt[: rows.num_examples].tolist()
    return np.array(stored)


def set_bounds(data: Path, examples: int) -> list[tuple[int, int]]:
    """The first of the evaluated examples of each test set, and the one after its last."""
    sets = [(0, 8), (8, 20)] if (data / "test" / "easy__inputs.npy").exists() else [(0, 20)]
    return [(first, min(stop, examples)) for first, stop in sets if first < examples]


def shown_q_halt(viewer: Viewer) -> float:
    return float(viewer.text("#verdict").split("q_halt +")[1].split()[0])


@pytest.mark.parametrize(
    ("sets", "batch", "ranks", "examples"),
    [
        (1, 4, 2, 20),  # 10 rows each, as with batches of 2, 4, 10 and 20
        (1, 20, 2, 20),
        (1, 6, 3, 20),
        (1, 8, 2, 17),
        (1, 64, 2, 20),  # fewer examples than a batch
        (1, 8, 4, 18),  # nothing is left of the last batch for two ranks
        (2, 4, 2, 20),
        (2, 8, 4, 15),
    ],
)
def test_ranks_are_shown_as_one(
    viewer: Viewer, tmp_path: Path, sets: int, batch: int, ranks: int, examples: int
) -> None:
    """Each rank stores its slices of the batches: read one after the other, most predictions would stand beside other
    puzzles' labels."""
    data, run = make_tiny_data(tmp_path / "tiny", identifiers=3), tmp_path / "run"
    if sets == 2:
        split_test_set(data)
    stored = evaluate(data, run, batch=batch, ranks=ranks, examples=examples)
    assert len(stored) == examples
    viewer.open(data, run)
    assert viewer.text("#score-text").startswith(f"0 of {8 if sets == 2 else examples} predictions exact")
    for name in ("easy", "hard") if sets == 2 else ("all",):
        if sets == 2:
            viewer.page.locator("#set").select_option(name)
            viewer.until(f"view.setName === '{name}' && view.shownTicket === view.ticket")
        first = 8 if name == "hard" else 0
        labels = np.load(data / "test" / f"{name}__labels.npy")
        for example in range(min(len(labels), examples - first)):
            viewer.show(example)
            assert viewer.board("prediction").lines == digits((labels[example] - 1) % 4 + 2, 4)
            assert shown_q_halt(viewer) == pytest.approx((first + example + 1) / 100)
        if first + len(labels) > examples:
            viewer.show(len(labels) - 1)
            assert viewer.text("#verdict") == "No prediction for this example"


def test_equal_puzzles_don_t_confuse_ranks(viewer: Viewer, tmp_path: Path) -> None:
    """Where a puzzle occurs twice, its first row alone doesn't tell where a rank's rows belong."""
    data, run = make_tiny_data(tmp_path / "tiny"), tmp_path / "run"
    for kind in ("inputs", "labels"):
        path = data / "test" / f"all__{kind}.npy"
        tokens = np.load(path)
        tokens[[1, 2, 5, 10]] = tokens[0]  # where a rank takes over with batches of 2, 4, 10 and 20
        np.save(path, tokens)
    for batch in (2, 4, 10, 20):
        shutil.rmtree(run, ignore_errors=True)
        evaluate(data, run, batch=batch, ranks=2)
        viewer.open(data, run)
        for example in (1, 2, 3, 4, 7, 12, 19):
            viewer.show(example)
            assert shown_q_halt(viewer) == pytest.approx((example + 1) / 100), batch


def test_ranks_without_their_data_set(viewer: Viewer, tmp_path: Path) -> None:
    """A run copied from a cluster: all of its predictions are there, each beside its own puzzle; their order comes with
    the data set."""
    data, run = make_tiny_data(tmp_path / "tiny"), tmp_path / "run"
    stored = evaluate(data, run, batch=8, ranks=2)
    viewer.choose("predictions", run)
    assert viewer.problems == []
    assert viewer.text("#total") == "0–19"
    labels = np.load(data / "test" / "all__labels.npy")
    for example in (0, 4, 12, 19):
        viewer.show(example)
        assert shown_q_halt(viewer) == pytest.approx(stored[example])
        assert viewer.board("label").lines == digits(labels[round(100 * stored[example]) - 1], 4)
    viewer.open(data)
    viewer.show(12)
    assert shown_q_halt(viewer) == pytest.approx(0.13)


def test_a_rank_alone_or_missing_is_told(viewer: Viewer, tmp_path: Path) -> None:
    """Half of the predictions would pass for all of them."""
    data, run = make_tiny_data(tmp_path / "tiny"), tmp_path / "run"
    evaluate(data, run, batch=18, ranks=3)
    viewer.open(data)

    def complaint(folder: Path) -> str:
        viewer.choose("predictions", folder)
        viewer.until("document.querySelector('#problems p')")
        (problem,) = viewer.problems
        assert viewer.roles() == ["input", "label"]
        return problem

    # Its first rows are the data set's, its last ones aren't.
    alone = complaint(run / "step_9_all_preds.0")
    assert "inputs.npy differs in example 6" in alone
    assert "or the whole run's folder" in alone
    shutil.move(run / "step_9_all_preds.1", tmp_path / "aside")
    assert "run/step_9_all_preds.*: the folder of rank 1 is missing" in complaint(run)
    shutil.move(tmp_path / "aside", run / "step_9_all_preds.1")
    (run / "step_9_all_preds.2" / "labels.npy").unlink()
    assert "step_9_all_preds.2 holds other files or shapes than run/step_9_all_preds.0" in complaint(run)
    shutil.rmtree(run)
    evaluate(data, run, batch=4, ranks=2, keys=["preds"])
    assert "the order of its ranks' rows can't be told without inputs.npy" in complaint(run)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two data sets, and two runs: the older one's predictions for two steps, the newer one's by two ranks."""
    root = tmp_path / "repository"
    small, named = make_tiny_data(root / "data" / "small"), make_tiny_data(root / "data" / "named", identifiers=3)
    for path in (named / "test").glob("all__[il]*.npy"):
        np.save(path, np.load(path)[::-1])
    for run, data, steps, ranks in (("old", small, (100, 20), 1), ("new", named, (7,), 2)):
        for step in steps:
            evaluate(data, root / "checkpoints" / "project" / run, batch=4, step=step, ranks=ranks)
    for path in root.glob("checkpoints/project/old/*/*.npy"):
        os.utime(path, (1e9, 1e9))
    return root


@pytest.mark.parametrize("button", ["dataset", "predictions"])
def test_a_repository_is_opened_whole(viewer: Viewer, repository: Path, button: str) -> None:
    """Nobody remembers which data set belongs to which run: the newest predictions come with theirs, and the others
    can be chosen."""
    viewer.choose(button, repository)
    assert viewer.problems == []
    assert viewer.page.locator("#dataset").input_value() == "repository/data/named"
    runs = "repository/checkpoints/project"
    assert viewer.page.locator("#predictions option").evaluate_all("all => all.map(option => option.value)") == [
        f"{runs}/new/step_7_all_preds.*",
        f"{runs}/old/step_100_all_preds.0",
        f"{runs}/old/step_20_all_preds.0",
    ]
    assert viewer.page.locator("#predictions").input_value() == f"{runs}/new/step_7_all_preds.*"
    assert viewer.roles() == ["input", "prediction", "label"]
    viewer.show(13)
    assert viewer.text("#name") == "puzzle-1"
    assert shown_q_halt(viewer) == pytest.approx(0.14)

    viewer.page.locator("#predictions").select_option(f"{runs}/old/step_20_all_preds.0")  # and its data set with it
    viewer.until("view.dataset.name === 'small' && view.shownTicket === view.ticket")
    assert viewer.page.locator("#dataset").input_value() == "repository/data/small"
    labels = np.load(repository / "data" / "small" / "test" / "all__labels.npy")
    assert viewer.board("label").lines == digits(labels[0], 4)
    assert viewer.roles() == ["input", "prediction", "label"]
    viewer.show(5)
    viewer.page.locator("#predictions").select_option(f"{runs}/old/step_100_all_preds.0")  # the example stays
    viewer.until("view.predictions.path.includes('step_100') && view.shownTicket === view.ticket")
    assert viewer.text("#name") == "Example 5"

    viewer.page.locator("#dataset").select_option("repository/data/named")  # and predictions for it
    viewer.until("view.dataset.name === 'named' && view.shownTicket === view.ticket")
    assert viewer.page.locator("#predictions").input_value() == f"{runs}/new/step_7_all_preds.*"
    assert viewer.problems == []


def test_a_run_s_folder_keeps_the_data_set(viewer: Viewer, repository: Path) -> None:
    """The newest step of the run is shown, and the data set that was chosen before stays."""
    viewer.open(repository / "data" / "small")
    viewer.open(None, repository / "checkpoints" / "project" / "old")
    assert viewer.page.locator("#predictions").input_value() == "old/step_100_all_preds.0"
    assert viewer.text("#place").startswith("small / test")
    viewer.choose("predictions", repository / "checkpoints")  # the newest ones are of another data set
    viewer.until("view.predictions.path.includes('checkpoints')")
    assert viewer.problems == []
    assert viewer.page.locator("#predictions").input_value() == "checkpoints/project/old/step_100_all_preds.0"
