"""evaluate.py as users run it: the numbers that pretrain.py logged, predictions on disk, and mistakes in one line."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import yaml

import evaluate
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.configs import pretrain_config, train_state
from tests.helpers.tiny_data import (
    BATCH,
    NUM_TEST,
    RUN_FILES,
    make_tiny_data,
    run_script,
    split_test_set,
    train_arguments,
)
from tests.helpers.wandb_files import read_wandb
from utils.evaluation.evaluate import Evaluator
from utils.evaluation.evaluate import evaluate as run_evaluation
from utils.memory import RowMemory

pytestmark = pytest.mark.slow

STEP = 16
METRICS = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss", "q_halt_loss")
DEFAULT_KEYS = {"inputs", "labels", "puzzle_identifiers", "preds", "q_halt_logits", "q_continue_logits"}


@dataclass(frozen=True)
class Trained:
    """A finished run: its data set, its checkpoint path, and what it logged at the last step."""

    data: Path
    run: Path
    logged: dict[str, float]

    @property
    def checkpoint(self) -> Path:
        return self.run / f"step_{STEP}"

    def predictions(self, key: str) -> np.ndarray:
        return np.load(self.run / f"step_{STEP}_all_preds.0" / f"{key}.npy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data = make_tiny_data(folder / "sudoku-4x4", identifiers=3)
    result = run_script("pretrain.py", train_arguments(data, folder / "run"), folder, WANDB_MODE="offline")
    assert result.returncode == 0, result.stderr
    logged = {row["_step"]: row for row in read_wandb(folder)["history"]}[STEP]
    return Trained(data, folder / "run", logged)


@pytest.fixture
def run_here(call_script: Callable[..., Any]) -> Callable[..., Any]:
    """Call evaluate.py in this process; returns (exit status, stdout, stderr)."""
    return partial(call_script, evaluate)


@pytest.fixture
def metrics_of(trained: Trained, run_here: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """The JSON line that evaluate.py prints for the trained checkpoint."""

    def run(*arguments: str) -> dict[str, Any]:
        status, out, err = run_here(f"checkpoint={trained.checkpoint}", *arguments)
        assert status == 0, err
        return json.loads(out.splitlines()[-1])

    return run


def test_prints_what_training_logged_as_a_table_and_one_json_line(trained: Trained, tmp_path: Path) -> None:
    """A checkpoint would not be worth what the training curves promised."""
    result = run_script("evaluate.py", [f"checkpoint={trained.checkpoint}", "show_examples=2"], tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    (record,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert lines[-1].startswith("{")
    assert (record["step"], record["num_examples"]) == (STEP, NUM_TEST)
    assert {key for key in record if key.startswith("eval/")} == {f"eval/{name}" for name in METRICS}
    for name in METRICS:
        assert record[f"eval/{name}"] == pytest.approx(trained.logged[f"eval/{name}"], rel=1e-6)
        assert any(line.split() == [f"eval/{name}", f"{record[f'eval/{name}']:.4f}"] for line in lines)
    assert result.stdout.count("truth") == 2
    assert not list(tmp_path.iterdir())  # predictions lie beside the checkpoint, and nothing where one happens to be


def test_predictions_are_the_test_split_in_order_without_padding(
    trained: Trained, metrics_of: Callable[..., dict[str, Any]]
) -> None:
    """Scoring scripts pair row i with puzzle i; 20 examples in batches of 8 leave 4 padding rows in the last."""
    record = metrics_of()
    folder = trained.run / f"step_{STEP}_all_preds.0"
    assert {path.name for path in folder.iterdir()} == {f"{key}.npy" for key in DEFAULT_KEYS}

    inputs, labels = (np.load(trained.data / "test" / f"all__{kind}.npy") for kind in ("inputs", "labels"))
    np.testing.assert_array_equal(trained.predictions("inputs"), inputs)
    np.testing.assert_array_equal(trained.predictions("labels"), labels)
    np.testing.assert_array_equal(trained.predictions("puzzle_identifiers"), np.arange(NUM_TEST) % 3)
    preds = trained.predictions("preds")
    assert (preds.dtype, preds.shape) == (np.dtype(np.uint8), (NUM_TEST, 16))
    assert trained.predictions("inputs").dtype == np.uint8
    assert trained.predictions("labels").dtype == np.int16  # -100 must fit
    for key in ("q_halt_logits", "q_continue_logits"):
        assert trained.predictions(key).dtype == np.float32
        assert trained.predictions(key).shape == (NUM_TEST,)
    # What is on disk gives the reported metrics.
    assert np.mean(preds == labels) == pytest.approx(record["eval/accuracy"], rel=1e-6)
    assert np.mean((preds == labels).all(1)) == pytest.approx(record["eval/exact_accuracy"], rel=1e-6)


def test_save_outputs_chooses_the_files(trained: Trained, metrics_of: Callable[..., dict[str, Any]]) -> None:
    """Logits of the full Sudoku test set take 1.5 GB: nobody should get them, or anything, unasked."""
    folder = trained.run / f"step_{STEP}_all_preds.0"
    metrics_of("save_outputs=[logits,preds]")  # replaces the files of the evaluation before
    assert {path.name for path in folder.iterdir()} == {"logits.npy", "preds.npy"}
    logits = trained.predictions("logits")
    assert (logits.dtype, logits.shape) == (np.dtype(np.float32), (NUM_TEST, 16, 6))
    np.testing.assert_array_equal(logits.argmax(-1), trained.predictions("preds"))

    shutil.rmtree(folder)
    metrics_of("save_outputs=[]")
    assert {path.name for path in trained.run.iterdir()} == RUN_FILES


def test_step_preds_are_what_the_model_thinks_on_the_way(
    trained: Trained, metrics_of: Callable[..., dict[str, Any]]
) -> None:
    """The film of the viewer must be the model's own, and end with the predictions that are scored."""
    metrics_of("save_outputs=[preds,q_halt_logits,q_continue_logits,step_preds]", "max_examples=11")
    steps = trained.predictions("step_preds")
    assert (steps.dtype, steps.shape) == (np.dtype(np.uint8), (11, 3, 16))
    np.testing.assert_array_equal(steps[:, -1], trained.predictions("preds"))
    for name in ("q_halt_logits", "q_continue_logits"):
        assert trained.predictions(f"step_{name}").dtype == np.float32
        np.testing.assert_array_equal(trained.predictions(f"step_{name}")[:, -1], trained.predictions(name))

    # A model that may think for one step only ends where this one's film begins.
    run = trained.run.with_name("one-step")
    shutil.copytree(trained.run, run)
    config = yaml.safe_load((run / "all_config.yaml").read_text())
    config["arch"]["halt_max_steps"] = 1
    (run / "all_config.yaml").write_text(yaml.safe_dump(config))
    metrics_of(f"checkpoint={run / 'step_16'}", "save_outputs=[preds,q_halt_logits]", "max_examples=11")
    folder = run / f"step_{STEP}_all_preds.0"
    np.testing.assert_array_equal(np.load(folder / "preds.npy"), steps[:, 0])
    first = trained.predictions("step_q_halt_logits")[:, 0]
    np.testing.assert_allclose(np.load(folder / "q_halt_logits.npy"), first, rtol=1e-5)


def test_batch_size_changes_no_metric_but_the_loss_of_padding(metrics_of: Callable[..., dict[str, Any]]) -> None:
    """Whoever has less memory must get the same result.

    As in the PyTorch code q_halt_loss sums over padding rows as well: each adds the same amount, so 12 of them (batches
    of 16) add three times as much as 4 (batches of 8), and batches of 10 have none.
    """
    whole, eight, sixteen = (metrics_of(f"global_batch_size={size}", "save_outputs=[]") for size in (10, BATCH, 16))
    for name in METRICS[:-1]:
        for other in (eight, sixteen):
            assert other[f"eval/{name}"] == pytest.approx(whole[f"eval/{name}"], rel=1e-5)
    extra = [record["eval/q_halt_loss"] - whole["eval/q_halt_loss"] for record in (eight, sixteen)]
    assert extra[0] > 0
    assert extra[1] == pytest.approx(3 * extra[0], rel=1e-3)


def test_first_examples_only(trained: Trained, metrics_of: Callable[..., dict[str, Any]]) -> None:
    """A quick look at a large test set would report other examples' accuracy than those it wrote."""
    record = metrics_of("max_examples=11", "save_outputs=[labels,preds]")
    assert record["num_examples"] == 11
    preds, labels = trained.predictions("preds"), trained.predictions("labels")
    assert len(preds) == 11
    assert np.mean(preds == labels) == pytest.approx(record["eval/accuracy"], rel=1e-6)


def test_a_configuration_from_elsewhere_gets_no_more_rows_than_there_are_examples(
    trained: Trained, tmp_path: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 65,536 took 9.9 GB for 64 examples, and two examples as long as 768."""
    run = tmp_path / "run"
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("*_all_preds*"))
    saved = yaml.safe_load((run / "all_config.yaml").read_text())
    (run / "all_config.yaml").write_text(yaml.safe_dump(saved | {"global_batch_size": 65_536}))
    sizes: list[tuple[int, int]] = []
    read = PuzzleDataset._read

    def seen(self: PuzzleDataset, *arguments: Any) -> Any:
        batch = read(self, *arguments)
        sizes.append((self.global_batch_size, len(batch.inputs)))
        return batch

    monkeypatch.setattr(PuzzleDataset, "_read", seen)
    for given in ("max_examples=2", "eval_batch_size=5", "global_batch_size=5", "eval_batch_size=5000"):
        status, _, err = run_here(f"checkpoint={run}", "save_outputs=[]", given)
        assert status == 0, err
    assert sizes == [(4096, 2), *[(5, 5)] * 8, (5000, NUM_TEST)]


def test_micro_batch_size_bounds_the_rows_and_changes_no_result(
    trained: Trained, tmp_path: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained on a Mac in slices would not fit there when it is evaluated."""
    seen: list[int] = []
    results = Evaluator.results

    def noted(self: Evaluator, batches: Any, *arguments: Any) -> Any:
        def rows_noted() -> Any:
            for batch in batches:
                seen.append(len(batch.inputs))
                yield batch

        return results(self, rows_noted(), *arguments)

    monkeypatch.setattr(Evaluator, "results", noted)
    monkeypatch.setattr(RowMemory, "fitting", lambda self, room, most: min(4, most))
    found = {}
    for saved, given, rows in ((None, "null", 8), (None, "3", 3), (3, "null", 3), (3, "7", 7), ("auto", "null", 4)):
        run = tmp_path / f"{saved}-{given}"
        shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("*_all_preds*"))
        config = yaml.safe_load((run / "all_config.yaml").read_text())
        (run / "all_config.yaml").write_text(yaml.safe_dump(config | {"micro_batch_size": saved}))
        status, out, err = run_here(f"checkpoint={run}", f"micro_batch_size={given}", "save_outputs=[preds]")
        assert status == 0, err
        batches = -(-NUM_TEST // rows)
        assert set(seen[-batches:]) == {rows}  # after those of auto's measurement
        metrics = json.loads(out.splitlines()[-1])
        preds = np.load(run / f"step_{STEP}_all_preds.0" / "preds.npy")
        found[saved, given] = preds.tolist(), [metrics[f"eval/{name}"] for name in ("accuracy", "exact_accuracy")]
    assert all(result == found[None, "null"] for result in found.values())


def test_sets_are_reported_apart_also_if_only_some_are_reached(
    trained: Trained, tmp_path: Path, metrics_of: Callable[..., dict[str, Any]]
) -> None:
    """A metric must keep its name: plots and stop_when look for it."""
    two = make_tiny_data(tmp_path / "two", identifiers=3)
    split_test_set(two)  # 8 easy, 12 hard
    together, apart = metrics_of("save_outputs=[]"), metrics_of(f"data_path={two}", "save_outputs=[preds]")
    names = {f"eval/{set_name}/{name}" for set_name in ("easy", "hard") for name in METRICS}
    assert {key for key in apart if key.startswith("eval/")} == names
    for name in METRICS[:-1]:
        mean = (8 * apart[f"eval/easy/{name}"] + 12 * apart[f"eval/hard/{name}"]) / 20
        assert mean == pytest.approx(together[f"eval/{name}"], rel=1e-5)
    assert len(trained.predictions("preds")) == NUM_TEST  # one file, the sets one after the other

    some = metrics_of(f"data_path={two}", "save_outputs=[]", "max_examples=5")
    assert {key for key in some if key.startswith("eval/")} == {f"eval/easy/{name}" for name in METRICS}


def test_a_run_folder_means_its_newest_step(trained: Trained, run_here: Callable[..., Any]) -> None:
    """Sorted as text, step_8 would come after step_16."""
    status, out, err = run_here(f"checkpoint={trained.run}", "save_outputs=[]")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["step"] == STEP


def test_an_evaluation_that_fails_leaves_no_predictions(
    trained: Trained, tmp_path: Path, run_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a file of predictions has its full length, and would be scored as if the rest were wrong."""
    run = tmp_path / "run"
    shutil.copytree(trained.run, run, ignore=shutil.ignore_patterns("*_all_preds*"))
    write, batches = evaluate.PredictionWriter.write, 0

    def full_disk(*arguments: Any) -> None:
        nonlocal batches
        batches += 1
        if batches == 2:
            raise OSError(28, "No space left on device", "preds.npy")
        write(*arguments)

    monkeypatch.setattr(evaluate.PredictionWriter, "write", full_disk)
    status, _, err = run_here(f"checkpoint={run / 'step_16'}")
    assert status == 1
    assert "error: preds.npy: No space left on device" in err
    assert {path.name for path in run.iterdir()} == RUN_FILES


def one_error(result: tuple[int, str, str]) -> str:
    """The only line on stderr of an evaluation that ended with exit status 1 and printed nothing else."""
    status, out, err = result
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "usage: python evaluate.py checkpoint="),
        (["data_path=x"], "usage: python evaluate.py checkpoint="),
        (["--checkpoint", "x"], "'--checkpoint' is not key=value"),
        (["checkpoint=nowhere/step_3"], "nowhere/step_3 is neither a folder or file here"),
        (["checkpoint={run}/code"], "not a step folder; expected a name such as step_1000"),
        (["checkpoint={run}/step_16", "outputs=[preds]"], "unknown key 'outputs'"),
        (["checkpoint={run}/step_16", "save_outputs=[prediction]"], "save_outputs.0 = 'prediction'"),
        (["checkpoint={run}/step_16", "save_outputs=[preds"], "save_outputs=[preds"),
        (["checkpoint={run}/step_16", "global_batch_size=0"], "global_batch_size = 0"),
        (["checkpoint={run}/step_16", "max_examples=many"], "max_examples = 'many'"),
        (
            ["checkpoint={run}/step_16", "data_path=nowhere/4x4"],
            "no data set at nowhere/4x4: there is no such folder; build",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_on_the_command_line_end_in_one_line(
    trained: Trained, run_here: Callable[..., Any], arguments: list[str], expected: str
) -> None:
    assert expected in one_error(run_here(*(argument.format(run=trained.run) for argument in arguments)))


def test_damaged_or_foreign_checkpoints_end_in_one_line(
    trained: Trained, tmp_path: Path, run_here: Callable[..., Any]
) -> None:
    """Each of these would otherwise be a page of traceback, or worse, numbers of another model."""
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    weights, config = run / "step_16" / "model.safetensors", run / "all_config.yaml"
    saved = yaml.safe_load(config.read_text())

    def complaint(*arguments: str) -> str:
        return one_error(run_here(f"checkpoint={run / 'step_16'}", "save_outputs=[]", *arguments))

    other = make_tiny_data(tmp_path / "other", identifiers=2)
    line = complaint(f"data_path={other}")
    assert "has embeddings of 3 puzzles, but the data set has 2 identifiers" in line
    assert "data set that the model was trained on, give that one as data_path" in line

    config.write_text(yaml.safe_dump(saved | {"arch": saved["arch"] | {"hidden_size": 64, "puzzle_emb_ndim": 64}}))
    assert "all_config.yaml" in complaint()
    config.write_text(yaml.safe_dump(saved | {"arch": saved["arch"] | {"pos_encodings": "learned"}}))
    assert "lacks model.inner.embed_pos.embedding_weight" in complaint()
    config.write_text(yaml.safe_dump(saved | {"arch": saved["arch"] | {"H_layers": 2}}))
    assert "lacks model.inner.H_level.layers.1" in complaint()

    config.write_text("arch: [")
    assert "all_config.yaml can't be read" in complaint()
    config.write_text("- a list")
    assert "expected keys and values, found list" in complaint()
    config.write_text(yaml.safe_dump({key: value for key, value in saved.items() if key != "data_path"}))
    assert "key 'data_path' is missing in " in complaint()
    config.unlink()
    assert "all_config.yaml is missing" in complaint()

    config.write_text(yaml.safe_dump(saved))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert "model.safetensors is damaged: 1000 bytes, " in complaint()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "model.safetensors is damaged: its checksum" in complaint()
    weights.unlink()
    assert "model.safetensors is missing" in complaint()
    (run / "step_16" / "checkpoint.json").unlink()  # as in folders that hold the weights alone
    assert "model.safetensors is missing; the checkpoint is not complete" in complaint()
    weights.write_bytes(whole[:1000])
    assert "model.safetensors is not a whole safetensors file" in complaint()


def test_memory_does_not_grow_with_the_outer_steps(tmp_path: Path) -> None:
    """Sixteen states of a large batch at once are tens of gigabytes on ARC."""
    data = PuzzleDataset(make_tiny_data(tmp_path / "data"), "test", global_batch_size=20)
    state_bytes = 2 * 20 * 17 * 256 * 4  # z_H and z_L

    def peak(outer_steps: int) -> int:
        arch = {"hidden_size": 256, "halt_max_steps": outer_steps, "puzzle_emb_ndim": 256}
        evaluator = Evaluator(train_state(pretrain_config(arch), data.metadata).head)
        run_evaluation(evaluator, data)  # compiles
        gc.collect()  # an earlier model that goes while this one works would count as memory saved
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        run_evaluation(evaluator, data)
        return mx.get_peak_memory() - before

    assert peak(24) - peak(4) < 4 * state_bytes
