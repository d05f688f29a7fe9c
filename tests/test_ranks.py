"""Several processes as one run: together they compute what one process would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from dataset.build_arc_dataset import ArcOptions, build
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.arc_source import make_arc
from tests.helpers.configs import TINY_ARCH
from tests.helpers.rank_processes import free_ports, ranks_of, run_ranks
from tests.helpers.thinking import SAMPLE_FILES, SOLVERS, make_sudoku, write_solver
from tests.helpers.tiny_data import ROOT, make_tiny_data, run_script, split_test_set, train_arguments
from utils.checkpoints.safetensors_file import write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.config import ArchConfig
from utils.train.state import build_model

pytestmark = pytest.mark.slow

STEPS, MIDDLE = 20, 12
# Of sums over ranks in float32, relative to the values. Measured: losses 4e-7, parameters below 1e-6.
TOLERANCE = 1e-5
ARCH = TINY_ARCH | {"halt_exploration_prob": 0.5}
# For ARC, whose 900 tokens a puzzle take a hundred times the attention of a small Sudoku
SMALLER = {"hidden_size": 16, "num_heads": 1, "puzzle_emb_ndim": 16, "expansion": 1, "halt_max_steps": 3}


def shape_of(arch: dict[str, Any]) -> list[str]:
    """An architecture as arguments of pretrain.py."""
    return [f"arch.{name}={value}" for name, value in arch.items() if name not in ("name", "loss")]


@dataclass(frozen=True)
class Trained:
    """What a run has left in `path`."""

    path: Path

    @property
    def log(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> int:
        return int(self.log[-1]["step"])

    def arrays(self) -> dict[str, np.ndarray]:
        """All of the last checkpoint, by name."""
        files = ("model", "training")
        found = [mx.load(str(self.path / f"step_{self.steps}" / f"{name}.safetensors")) for name in files]
        return {name: np.array(array) for group in found for name, array in group.items()}


def make_start(data: Path, folder: Path, arch: dict[str, Any]) -> Path:
    """A checkpoint to start from whose Q values differ from row to row: rows halt early, so that exploration tells."""
    metadata = PuzzleDataset(data, "test", global_batch_size=1).metadata
    head = build_model(ArchConfig.model_validate(arch), metadata, mx.random.key(5))
    q_head = head.model.inner.q_head
    q_head.weight = 0.3 * mx.random.normal(q_head.weight.shape, key=mx.random.key(6))
    table = head.model.puzzle_emb
    table.weights = mx.random.normal(table.weights.shape, key=mx.random.key(7))
    weights = dict(tree_flatten(head.parameters()))
    (folder / "step_0").mkdir()
    path = folder / "step_0" / "model.safetensors"
    write_safetensors(path, {name: host_tensor(array) for name, array in weights.items()})
    return path.parent


def train_as_ranks(data: Path, folder: Path, arch: dict[str, Any], *more: str) -> dict[int, Trained]:
    """The same 20 steps by one, two and four ranks, with a checkpoint on the way and an evaluation at the end.

    Two ranks take them in slices of three rows.
    """
    start = make_start(data, folder, arch)
    found = {}
    for ranks in (1, 2, 4):
        place = folder / str(ranks)
        place.mkdir()
        options = [
            *shape_of(arch),
            *more,
            "eval_interval=null",
            f"checkpoint_interval={MIDDLE}",
            f"load_weights={start}",
        ]
        options += ["micro_batch_size=3"] if ranks == 2 else []
        options += ["log_examples=3", "eval_save_outputs=[preds,q_halt_logits,puzzle_identifiers,inputs]"]
        run_ranks("pretrain.py", train_arguments(data, place / "run", *options), place, ranks)
        found[ranks] = Trained(place / "run")
    return found


@pytest.fixture(scope="module")
def sudoku(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Trained]:
    """Five identifiers in a batch of 16; 20 test puzzles in two sets, of 8 and 12, each less than a batch."""
    folder = tmp_path_factory.mktemp("sudoku")
    data = make_tiny_data(folder / "data", identifiers=5)
    split_test_set(data)
    mean = "load_puzzle_emb=mean"
    return train_as_ranks(data, folder, ARCH, "global_batch_size=16", "epochs=5", "ema=True", mean)


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Trained]:
    """Up to four examples of one task side by side in a batch of four, so that ranks share identifiers."""
    folder = tmp_path_factory.mktemp("arc")
    make_arc(folder / "raw", evaluation=3)
    build(ArcOptions(dataset_dirs=[str(folder / "raw")], output_dir=str(folder / "data"), num_aug=1))
    return train_as_ranks(
        folder / "data", folder, ARCH | SMALLER, "global_batch_size=4", "epochs=6", "eval_max_examples=5"
    )


@pytest.fixture(params=["sudoku", "arc"])
def runs(request: pytest.FixtureRequest) -> dict[int, Trained]:
    """Runs of one, two and four ranks on the same data."""
    return request.getfixturevalue(request.param)


def assert_same_run(found: Trained, expected: Trained) -> None:
    """Logs and last checkpoints agree, but for the order of sums in float32."""
    assert len(found.log) == len(expected.log)
    for ours, theirs in zip(found.log, expected.log, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
        for name in ("train/count", "train/steps", "train/exact_accuracy", "train/q_halt_accuracy"):
            assert ours.get(name) == pytest.approx(theirs.get(name), abs=1e-12)  # whole numbers, divided
    arrays, wanted = found.arrays(), expected.arrays()
    assert {name: array.shape for name, array in arrays.items()} == {name: a.shape for name, a in wanted.items()}
    for name, array in arrays.items():
        if name.startswith("carry.z_"):  # the cycles amplify a difference of rounding in the weights
            np.testing.assert_allclose(array, wanted[name], atol=5e-3, err_msg=name)
        elif array.dtype == np.float32:
            np.testing.assert_allclose(array, wanted[name], atol=TOLERANCE, err_msg=name)
        else:
            np.testing.assert_array_equal(array, wanted[name], err_msg=name)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_train_and_evaluate_as_one_process_does(runs: dict[int, Trained], ranks: int) -> None:
    """Losses of every step, halting and exploration, weights, moments, puzzle embeddings, random state, and evaluation
    metrics with uneven shares of the last batch. A gradient that is not summed, or a row updated by one rank only,
    shows in the first steps."""
    assert runs[1].steps >= STEPS
    counts = [row["train/steps"] for row in runs[1].log if row.get("train/count")]
    assert len(set(counts)) > 1, "rows halt at different times, or this would say little"
    assert_same_run(runs[ranks], runs[1])


@pytest.mark.parametrize("ranks", [2, 4])
def test_only_rank_0_leaves_a_run_behind(runs: dict[int, Trained], ranks: int) -> None:
    """One folder as of one process, but for the predictions, of which every rank writes its own."""
    alone, together = ({path.name for path in runs[n].path.iterdir()} for n in (1, ranks))
    assert together == alone | {f"step_{runs[1].steps}_all_preds.{rank}" for rank in range(ranks)}
    expected = np.load(runs[1].path / f"step_{runs[1].steps}_all_preds.0" / "inputs.npy")
    found = [
        np.load(runs[ranks].path / f"step_{runs[1].steps}_all_preds.{rank}" / "inputs.npy") for rank in range(ranks)
    ]
    assert sorted(map(bytes, np.concatenate(found))) == sorted(map(bytes, expected))
    place = runs[ranks].path.parent
    assert f"{ranks} ranks" in (place / "rank-0.out").read_text()
    for rank in range(1, ranks):
        assert (place / f"rank-{rank}.out").read_text() + (place / f"rank-{rank}.err").read_text() == ""


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_run_of_two_ranks_is_resumed_by_any_number(sudoku: dict[int, Trained], tmp_path: Path, ranks: int) -> None:
    """The carry in a checkpoint is that of the whole batch, in the order of its rows."""
    shutil.copytree(sudoku[2].path, tmp_path / "run")
    for path in (tmp_path / "run").glob(f"step_{sudoku[2].steps}*"):
        shutil.rmtree(path)
    config = json.loads((tmp_path / "run" / f"step_{MIDDLE}" / "checkpoint.json").read_text())["record"]["config"]
    arguments = train_arguments(
        config["data_path"], tmp_path / "run", *shape_of(ARCH), "resume=auto", "eval_interval=null"
    )
    same = ("global_batch_size", "epochs", "eval_max_examples", "checkpoint_interval", "ema")
    arguments += [f"{key}={'null' if config[key] is None else config[key]}" for key in same]
    resumed = run_ranks("pretrain.py", arguments, tmp_path, ranks)
    assert f"resuming {tmp_path / 'run' / f'step_{MIDDLE}'}" in resumed.output(0)
    assert_same_run(Trained(tmp_path / "run"), sudoku[1])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_begin_with_the_mean_that_rank_0_has_read(sudoku: dict[int, Trained], ranks: int) -> None:
    """With one line on it. That all have the same rows is seen in their training, which is compared."""
    printed = (sudoku[ranks].path.parent / "rank-0.out").read_text()
    assert printed.count("puzzle embeddings: each of the 5 rows is the mean of 5 stored ones\n") == 1


def evaluate_as(ranks: int, run: Trained, folder: Path) -> tuple[dict[str, float], str]:
    """What evaluate.py reports: the record, and the puzzles that it shows."""
    folder.mkdir(exist_ok=True)
    arguments = [f"checkpoint={run.path}", f"output_path={folder}", "show_examples=3", "global_batch_size=8"]
    shown, _, report = run_ranks("evaluate.py", arguments, folder, ranks).printed(0).partition(f"{run.path}/step_")
    record = json.loads(report.splitlines()[-1])
    assert record.pop("checkpoint").startswith(str(run.path))
    assert record.pop("eval_halt") == "max"
    return record, shown


def test_evaluate_gives_the_same_with_several_ranks(runs: dict[int, Trained], tmp_path: Path) -> None:
    """Metrics, pass@K of ARC, the first puzzles; and nothing is left of an earlier evaluation with more ranks, which
    `step_<N>_all_preds.*` would mix in."""
    alone, shown = evaluate_as(1, runs[1], tmp_path / "alone")
    step = int(alone["step"])
    for stale in (f"step_{step}_all_preds.2", f"step_{step + 1}_all_preds.2"):
        (tmp_path / "together" / stale).mkdir(parents=True)
    together, shown_together = evaluate_as(2, runs[1], tmp_path / "together")
    assert together == pytest.approx(alone, rel=TOLERANCE)
    assert ("pass@1" in alone) == ((runs[1].path.parents[1] / "raw").exists())
    assert together["num_examples"] == alone["num_examples"]
    assert shown_together == shown
    assert shown.count("\n") > 3
    folders = {path.name for path in (tmp_path / "together").glob("step_*")}
    assert folders == {f"step_{step}_all_preds.0", f"step_{step}_all_preds.1", f"step_{step + 1}_all_preds.2"}


def test_ranks_take_the_samples_that_one_process_takes(tmp_path: Path) -> None:
    """The same answers, outer steps and curve, with 11 puzzles in shares of 2: a sample depends on the puzzle and the
    seed, not on which rank has it. The solver's numbers are whole: there is no rounding that could differ."""
    data = make_sudoku(tmp_path / "data", [4, 7, 8, 9, 10, 10, 11, 11, 12, 12, 13])
    checkpoint = write_solver(tmp_path / "solver", data)
    script = tmp_path / "evaluate_solver.py"
    script.write_text(
        "import utils.linux_cpu\nimport models\n"
        f"models.__path__.append({str(SOLVERS)!r})\nimport evaluate\nevaluate.main()\n"
    )
    records, found = [], []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        arguments = [f"checkpoint={checkpoint}", f"output_path={folder}", "eval_batch_size=4", "seed=7"]
        arguments += ["samples=5", "noise=0.25", "relabel=True", "save_outputs=[inputs,preds,q_halt_logits,samples]"]
        records.append(json.loads(run_ranks(script, arguments, folder, ranks).printed(0).splitlines()[-1]))
        files: dict[str, list[np.ndarray]] = {}
        for rank in range(ranks):
            for path in sorted((folder / f"step_0_all_preds.{rank}").iterdir()):
                files.setdefault(path.stem, []).append(np.load(path))
        arrays = {name: np.concatenate(parts) for name, parts in files.items()}
        order = np.lexsort(arrays["inputs"].T)
        found.append({name: array[order] for name, array in arrays.items()})
    alone, together = (record.pop("curve") for record in records)
    assert together == alone
    assert alone["1"]["verified"] < alone["5"]["verified"]
    of_one, of_two = ({key: value for key, value in r.items() if key.startswith("eval/")} for r in records)
    assert of_two == pytest.approx(of_one, rel=1e-6)
    assert set(found[0]) == {"inputs", "preds", "q_halt_logits", *SAMPLE_FILES}
    for name, array in found[0].items():
        np.testing.assert_array_equal(found[1][name], array, err_msg=name)


def test_mlx_launch_starts_ranks_that_work_together(tmp_path: Path) -> None:
    """The command of the README, on other ports. There is one run, also in W&B, under one name drawn at random."""
    data = make_tiny_data(tmp_path / "data")
    arguments = [a for a in train_arguments(data, tmp_path, "epochs=1") if not a.startswith("checkpoint_path")]
    launch = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]
    launch += ["-n", "2", "--backend", "ring", "--starting-port", str(free_ports(1)[0]), "--env", f"PYTHONPATH={ROOT}"]
    launch += ["--env", "WANDB_MODE=offline", "--", sys.executable, str(ROOT / "pretrain.py"), *arguments]
    done = subprocess.run(
        launch, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False
    )
    assert ", 2 ranks, " in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("saved checkpoints/Data ACT-mlx/") == 1
    assert len(list(tmp_path.glob("checkpoints/*/*/step_8/model.safetensors"))) == 1
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_mistakes_are_told(tmp_path: Path) -> None:
    """One line from each rank that finds them, all or rank 0 alone, and nothing of broken connections."""
    data = make_tiny_data(tmp_path / "data")
    for arguments, expected, tellers in (
        (
            train_arguments(data, tmp_path / "run", "global_batch_size=9"),
            "9 is not divisible by the number of ranks 2",
            {0, 1},
        ),
        (train_arguments(data, tmp_path / "run", "no_such_key=1"), "unknown key 'no_such_key'", {0, 1}),
        (train_arguments(data, tmp_path / "run", "lr=abc"), "lr", {0}),
    ):
        with ranks_of("pretrain.py", arguments, tmp_path, 2) as ranks:
            assert ranks.wait() == [1, 1]
            errors = dict(ranks.errors())
            assert set(errors) == tellers
            assert all(expected in line for line in errors.values())
            assert ranks.output(1) == "".join(f"{errors[rank]}\n" for rank in tellers - {0})


def test_a_mistake_of_one_rank_names_it_and_ends_all(tmp_path: Path) -> None:
    """Say, a machine without the data set."""
    make_tiny_data(tmp_path / "0" / "data")
    (tmp_path / "1").mkdir()
    arguments = train_arguments(Path("data"), tmp_path / "run")
    with ranks_of("pretrain.py", arguments, tmp_path, 2, in_own_folders=True) as ranks:
        assert ranks.wait() == [1, 1]
        errors = dict(ranks.errors())
    assert errors[1].startswith("error: rank 1: no data set at data")
    assert "the connection to the other ranks is lost" in errors[0]


def test_other_data_on_one_rank_is_refused_by_all(tmp_path: Path) -> None:
    """They would train, on a mixture."""
    make_tiny_data(tmp_path / "0" / "data")
    make_tiny_data(tmp_path / "1" / "data", identifiers=5)
    arguments = train_arguments(Path("data"), tmp_path / "run")
    with ranks_of("pretrain.py", arguments, tmp_path, 2, in_own_folders=True) as ranks:
        assert ranks.wait() == [1, 1]
        ((rank, line),) = ranks.errors()
    assert (rank, "data sets of rank 1 differ from those of rank 0" in line) == (0, True)


def test_a_rank_without_the_others_does_not_train_alone(tmp_path: Path) -> None:
    """As happens with a backend that this MLX lacks: every rank would believe to be the only one, and write."""
    result = run_script("evaluate.py", ["checkpoint=none"], tmp_path, MLX_RANK="1", MLX_HOSTFILE=None)
    assert result.returncode == 1
    assert result.stderr.startswith("error: started as rank 1, but MLX finds no other ranks")
    assert result.stderr.count("\n") == 1
