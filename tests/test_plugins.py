"""A new idea is one new file and a YAML: an architecture, a loss head, a token loss, a mixer and an optimiser are put
beside the others in a copy of the repository, and the scripts do everything with them. The files are in tests/plugins/.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import models
from common.errors import UserError
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import PuzzleDataset
from tests.helpers.configs import bits_of, pretrain_config, random_batch, sizes, train_state
from tests.helpers.kill_runs import wait_for_lines
from tests.helpers.rank_processes import run_ranks
from tests.helpers.tiny_data import ROOT, TINY_ARCH, make_tiny_data, run_script
from utils.checkpoints.safetensors_file import read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.weights import load_weights
from utils.config import ArchConfig
from utils.model import build_model, build_optimizer
from utils.ranks.ranks import checksum
from utils.train.state import TrainState

PLUGINS = Path(__file__).resolve().parent / "plugins"
OPTIMIZERS = ["Lion", "toy_optimizer@SignMomentum"]
STEPS, EARLY = 16, 4  # of a run; of its first checkpoint, from which rows halt at different times
TOLERANCE = 1e-5  # of sums over ranks in float32
TOY_ARCH: dict[str, Any] = {
    "name": "toy_core@ToyModel",
    "loss": {
        "name": "toy_loss@SmoothedLossHead",
        "loss_type": "toy_loss@focal_cross_entropy",
        "smoothing": 0.1,
        "gamma": 1.5,
    },
    "halt_exploration_prob": 0.1,
    "halt_max_steps": 4,
    "hidden_size": 32,
    "num_heads": 2,
    "forward_dtype": "float32",
}


class House:
    """A copy of the repository into which the toy files were put, and a tiny data set."""

    def __init__(self, folder: Path):
        self.folder = folder
        for package in ("common", "dataset", "models", "utils", "config"):
            ignored = shutil.ignore_patterns("__pycache__", "raw-data")
            shutil.copytree(ROOT / package, folder / package, ignore=ignored)
        for script in ("pretrain.py", "evaluate.py"):
            shutil.copy(ROOT / script, folder)
        for file in PLUGINS.rglob("*.*"):
            new = folder / file.relative_to(PLUGINS)
            if "__pycache__" not in file.parts:
                assert not new.exists(), "a new idea replaces nothing"
                shutil.copy(file, new)
        self.data = make_tiny_data(folder / "data", identifiers=5)

    def arguments(self, run: str, *overrides: str) -> list[str]:
        """Arguments of pretrain.py for 16 steps with an evaluation after each 8, into the folder `run`."""
        return [
            f"data_path={self.data}",
            f"checkpoint_path={self.folder / run}",
            "global_batch_size=8",
            "epochs=2",
            "eval_interval=1",
            "lr=5e-4",
            "lr_warmup_steps=4",
            *overrides,
        ]

    def call(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_script(str(self.folder / script), list(arguments), self.folder, PYTHONPATH=str(self.folder))

    def succeed(self, script: str, *arguments: str) -> str:
        """Run a script to its good end; returns what it printed."""
        done = self.call(script, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self, run: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.folder / run / "metrics.jsonl").read_text().splitlines()]

    def arrays(self, file: str) -> dict[str, mx.array]:
        """The arrays of a safetensors file in the house."""
        found = mx.load(str(self.folder / file))
        assert isinstance(found, dict)
        return found

    def checkpoints(self, run: str) -> dict[str, bytes]:
        """The arrays of all checkpoints of a run, as they lie in their files."""
        folder = self.folder / run
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("step_*/*.safetensors")}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("plugins") / "house")


@pytest.fixture(scope="module")
def trained(house: House) -> House:
    """The house, in whose folder `toy` a run of the toy architecture was left undisturbed."""
    saving = "eval_save_outputs=[preds,step_preds]"
    house.succeed("pretrain.py", *house.arguments("toy", "arch=toy", f"checkpoint_interval={EARLY}", saving))
    return house


@pytest.fixture
def plugged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The toy files among the modules of `models`, in this process; and an empty folder for further ones."""
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(PLUGINS / "models"), str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - before:
        if name.startswith("models."):
            del sys.modules[name]
    invalidate_caches()


# ------------------------------------------------------------------------------------------ architecture and loss head


@pytest.mark.slow
def test_a_new_architecture_trains(trained: House) -> None:
    """Its loss falls, it halts by its own rule, and the head's own metric is logged in training and evaluation."""
    log = trained.log("toy")
    losses = [line["train/lm_loss"] for line in log if "train/lm_loss" in line]
    assert len(losses) == STEPS
    assert losses[-1] < 0.6 * losses[0]
    assert len({line["train/steps"] for line in log if line.get("train/count")}) > 2
    assert all(0 < line["train/confidence"] < 1 for line in log if line.get("train/count"))
    assert [0 < line["eval/confidence"] < 1 for line in log if "eval/accuracy" in line] == [True, True]
    assert not any("q_continue" in name for line in log for name in line)
    stored = trained.arrays(f"toy/step_{STEPS}/training.safetensors")
    assert {name for name in stored if name.startswith("carry.")} == {
        "carry.memory",
        "carry.steps",
        "carry.halted",
        *(f"carry.current_data.{name}" for name in ("inputs", "labels", "puzzle_identifiers")),
    }
    assert (trained.folder / "toy" / "code" / "models" / "toy_core.py").exists()


@pytest.mark.slow
def test_step_predictions_of_a_model_without_q_continue(trained: House) -> None:
    """What the model has is stored after every outer step; what it lacks has no file."""
    folder = trained.folder / "toy" / f"step_{STEPS}_all_preds.0"
    shapes = {path.stem: np.load(path).shape for path in folder.iterdir()}
    assert shapes == {
        "preds": (20, 16),
        "step_preds": (20, 4, 16),
        "step_q_halt_logits": (20, 4),
        "step_halted": (20, 4),
    }
    np.testing.assert_array_equal(np.load(folder / "step_halted.npy"), np.load(folder / "step_q_halt_logits.npy") > 0)


@pytest.mark.slow
def test_a_metric_of_the_head_stops_the_run(house: House) -> None:
    """Without being named anywhere but in the head."""
    stop = ["stop_when.metric=train/confidence", "stop_when.at_least=0.3", "stop_when.window=2", "eval_max_examples=8"]
    printed = house.succeed("pretrain.py", *house.arguments("stopped", "arch=toy", *stop))
    assert "train/confidence = 0." in printed
    assert "over 2 steps, stopping" in printed
    assert house.log("stopped")[-1]["step"] < STEPS


@pytest.mark.slow
def test_an_interrupted_run_of_toys_is_resumed_bit_for_bit(trained: House) -> None:
    """Weights, moments, random state and the carry with the core's own state."""
    arguments = trained.arguments("resumed", "arch=toy", f"checkpoint_interval={EARLY}", "resume=auto")
    process = subprocess.Popen(
        [sys.executable, str(trained.folder / "pretrain.py"), *arguments],
        cwd=trained.folder,
        env=os.environ | {"PYTHONPATH": str(trained.folder), "WANDB_MODE": "disabled"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_lines(process, trained.folder / "resumed" / "metrics.jsonl", 4)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    interrupted_at = int(trained.log("resumed")[-1]["step"])
    assert interrupted_at < STEPS, "the run had ended already"

    assert "resuming" in trained.succeed("pretrain.py", *arguments)
    found, expected = trained.checkpoints("resumed"), trained.checkpoints("toy")
    assert len(expected) == 2 * STEPS // EARLY
    assert expected.keys() <= found.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("halt", ["max", "q"])
def test_a_new_architecture_is_evaluated(trained: House, halt: str) -> None:
    """By q, rows take the steps that the core's rule gives them."""
    out = f"evaluated-{halt}"
    checkpoint = f"toy/step_{EARLY}"
    printed = trained.succeed("evaluate.py", f"checkpoint={checkpoint}", f"output_path={out}", f"eval_halt={halt}")
    record = json.loads(printed.splitlines()[-1])
    assert 0 < record["eval/confidence"] < 1
    assert record["eval/steps"] == 4 if halt == "max" else 1 <= record["eval/steps"] < 4
    files = {path.stem for path in (trained.folder / out / f"step_{EARLY}_all_preds.0").iterdir()}
    assert files == {"inputs", "labels", "puzzle_identifiers", "preds", "q_halt_logits"}


@pytest.mark.slow
def test_a_new_architecture_is_exported(trained: House) -> None:
    """Under the names that its attributes give its parameters."""
    checkpoint, out = f"toy/step_{STEPS}", "exported/toy.safetensors"
    trained.succeed("utils/export.py", f"checkpoint={checkpoint}", f"out={out}")
    exported, saved = trained.arrays(out), trained.arrays(f"{checkpoint}/model.safetensors")
    assert "model.inner.block.self_attn.qkv_proj.weight" in exported
    assert exported.keys() == saved.keys()
    assert all(mx.array_equal(exported[name], saved[name]) for name in saved)


@pytest.mark.slow
def test_two_ranks_train_a_new_architecture_as_one_does(trained: House, tmp_path: Path) -> None:
    arguments = trained.arguments("ranks", "arch=toy")
    script = str(trained.folder / "pretrain.py")
    run_ranks(script, arguments, tmp_path, 2, PYTHONPATH=str(trained.folder))
    for found, expected in zip(trained.log("ranks"), trained.log("toy"), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    ours, theirs = (trained.arrays(f"{run}/step_{STEPS}/model.safetensors") for run in ("ranks", "toy"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(np.array(array), np.array(theirs[name]), atol=TOLERANCE, err_msg=name)


def test_ranks_compare_the_arrays_of_a_module_and_not_its_constants() -> None:
    """MLX keeps tuples, lists and dicts of a module beside its weights."""
    weight = mx.arange(4.0)
    assert checksum({"weight": weight, "_sizes": (3, 0.5)}) == checksum({"weight": weight})
    assert checksum({"weight": weight, "_sizes": (3, 0.5)}) != checksum({"weight": weight + 1})


@pytest.mark.slow
def test_a_new_architecture_is_benched(house: House) -> None:
    """Also its bound, which is counted in the traced graph rather than by hand."""
    done = subprocess.run(
        [sys.executable, "-m", "utils.bench", "quick=true", "arch=toy", "out=bench.json"],
        cwd=house.folder,
        env=os.environ | {"PYTHONPATH": str(house.folder), "WANDB_MODE": "disabled"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((house.folder / "bench.json").read_text())["arch"] == "toy"


# ------------------------------------------------------------------------------------------------------------- mixer


@pytest.mark.slow
def test_a_new_mixer_takes_the_place_of_attention(house: House) -> None:
    """In HRM's blocks, named by a YAML; its option from the command line reaches it."""
    for run, distance in (("mixer", 1), ("far", 5)):
        overrides = ["epochs=1", "eval_max_examples=8", "arch=toy_mixer", *TINY_ARCH, f"arch.mixer.distance={distance}"]
        house.succeed("pretrain.py", *house.arguments(run, *overrides))
    weights = house.arrays("mixer/step_8/model.safetensors")
    mixers = {name.partition("self_attn.")[2] for name in weights if ".self_attn." in name}
    assert mixers == {"proj.weight"}
    assert house.log("mixer")[2]["train/lm_loss"] != house.log("far")[2]["train/lm_loss"]


# -------------------------------------------------------------------------------------------------------- optimisers


@pytest.mark.slow
def test_another_optimiser_trains(house: House) -> None:
    """One of MLX's, or one of a file; an option from the command line reaches it."""
    losses = {}
    for run, name, option in (
        ("lion", "Lion", "weight_decay=0.2"),
        ("sign", "toy_optimizer@SignMomentum", "momentum=0.9"),
        ("sign-alone", "toy_optimizer@SignMomentum", "momentum=0.0"),
    ):
        named = [f"optimizer.name={name}", f"optimizer.{option}", "epochs=1", "eval_max_examples=8"]
        house.succeed("pretrain.py", *house.arguments(run, "arch=toy", *named))
        losses[run] = [line["train/lm_loss"] for line in house.log(run) if "train/lm_loss" in line]
        assert losses[run][-1] < 0.8 * losses[run][0]
    assert losses["sign"] != losses["sign-alone"]


PLAIN_OPTIMIZER = """
from mlx.optimizers import Optimizer

class Plain(Optimizer):
    def __init__(self, learning_rate: float):
        super().__init__()
        self.learning_rate = learning_rate

    def init_single(self, parameter, state):
        pass

    def apply_single(self, gradient, parameter, state):
        return parameter - self.learning_rate * gradient
"""


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> PuzzleDatasetMetadata:
    data = make_tiny_data(tmp_path_factory.mktemp("data") / "data", identifiers=5)
    return PuzzleDataset(data, "train", global_batch_size=8).metadata


def state_with(optimizer: str, metadata: PuzzleDatasetMetadata) -> TrainState:
    """A training state of the tiny HRM, with its puzzle embedding, under another optimiser."""
    return train_state(pretrain_config(optimizer={"name": optimizer}), metadata)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.usefixtures("plugged_in")
def test_any_optimiser_leaves_all_as_it_was_at_a_step_that_is_not_finite(
    metadata: PuzzleDatasetMetadata, name: str
) -> None:
    """Bit for bit: weights, its own state and the carry. The random key has moved on, and the rate may have."""
    state = state_with(name, metadata)
    for step in range(3):
        assert state.train_step(random_batch(step)).finite.item()
    weight = state.head.model.inner.lm_head.weight
    state.head.model.inner.lm_head.weight = mx.where(mx.arange(weight.shape[1]) == 0, mx.inf, weight)
    before = bits_of(state)
    assert any(name.startswith("optimizer.") and name.endswith("weight.m") for name in before)
    assert not state.train_step(random_batch(3)).finite.item()
    after = bits_of(state)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} <= {"random.key", "optimizer.learning_rate"}

    state.head.model.inner.lm_head.weight = weight
    assert state.train_step(random_batch(4)).finite.item()
    moved = bits_of(state)
    assert moved["model.inner.q_head.bias"] != before["model.inner.q_head.bias"]
    assert state.optimizer.state["step"].item() == 4


@pytest.mark.parametrize("name", [*OPTIMIZERS, "plain@Plain"])
def test_any_optimiser_is_resumed_bit_for_bit(metadata: PuzzleDatasetMetadata, plugged_in: Path, name: str) -> None:
    """Its state lies in the checkpoint, whatever it is; also if it keeps nothing of its own."""
    (plugged_in / "plain.py").write_text(PLAIN_OPTIMIZER)
    original, resumed = state_with(name, metadata), state_with(name, metadata)
    for step in range(4):
        original.train_step(random_batch(step))
    for part, arrays in (("model", original.weights()), ("training", original.named_arrays())):
        tensors = {name: host_tensor(array) for name, array in arrays.items()}
        write_safetensors(plugged_in / f"{part}.safetensors", tensors)
    load_weights(resumed.head, read_safetensors(plugged_in / "model.safetensors"), "here")
    resumed.restore(4, read_safetensors(plugged_in / "training.safetensors"), "here")
    for state in (original, resumed):
        for step in range(4, 7):
            state.train_step(random_batch(step))
    assert bits_of(resumed) == bits_of(original)


# ---------------------------------------------------------------------------------------------------------- mistakes

MISTAKES = {
    "an unknown key of the core": ({"cycels": 1}, "unknown key 'arch.cycels'"),
    "a key of the core out of bounds": ({"cycles": 0}, "arch.cycles = 0 .* greater than or equal to 1"),
    "a core in place of the model": ({"name": "toy_core@ToyCore"}, "arch.name = 'toy_core@ToyCore' is not a model"),
    "an unknown key of the loss": ({"loss": {"x": 1}}, "unknown key 'arch.loss.x' .*focal_cross_entropy takes gamma"),
    "a head's key of the wrong type": ({"loss": {"smoothing": "abc"}}, "arch.loss.smoothing = 'abc' .* valid number"),
    "a head's key out of bounds": ({"loss": {"smoothing": 2}}, "arch.loss.smoothing = 2 .* less than 1"),
    "a token loss's key of the wrong type": ({"loss": {"gamma": [1]}}, r"arch.loss.gamma = \[1\] .* valid number"),
    "a token loss that is not there": ({"loss": {"loss_type": "toy_loss@hinge"}}, "models.toy_loss defines no hinge"),
    "a head that is not there": ({"loss": {"name": "toy_los@A"}}, "there is no module models.toy_los;"),
    "a module of a mistyped package": ({"name": "toy.toy_core@ToyModel"}, "there is no module models.toy.toy_core;"),
    "a module with a syntax error": ({"name": "syntax@A"}, "arch.name = 'syntax@A': .*syntax.py, line 2; correct it"),
    "a module that needs a package": ({"name": "needs@A"}, "models.needs can't be imported: No module named 'no_such'"),
    "a module that needs a name": ({"name": "unnamed@A"}, "models.unnamed can't be imported: cannot import .*NoSuch"),
}


@pytest.mark.parametrize(("changes", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_an_architecture_is_one_line(plugged_in: Path, changes: dict[str, Any], expected: str) -> None:
    (plugged_in / "syntax.py").write_text("\nclass A:::\n")
    (plugged_in / "needs.py").write_text("import no_such\n")
    (plugged_in / "unnamed.py").write_text("from models.layers import NoSuch\n")
    arch = TOY_ARCH | changes | {"loss": TOY_ARCH["loss"] | changes.get("loss", {})}
    with pytest.raises(UserError, match=expected):
        build_model(ArchConfig.model_validate(arch), sizes(), mx.random.key(0))


@pytest.mark.usefixtures("plugged_in")
@pytest.mark.parametrize(
    ("mixer", "expected"),
    [
        ({"name": "toy_mixer@Nope"}, "arch.mixer.name = 'toy_mixer@Nope': models.toy_mixer defines no Nope"),
        ({"name": "toy_mix@Nope"}, "arch.mixer.name = 'toy_mix@Nope': there is no module models.toy_mix;"),
        ({"distance": 3}, "arch.mixer.name = '': expected module@Name"),
        ({"name": "toy_mixer@NeighbourMixer", "far": 3}, "'arch.mixer.far' .*NeighbourMixer takes distance"),
        ({"name": "toy_mixer@NeighbourMixer", "distance": "far"}, "arch.mixer.distance = 'far' .* valid integer"),
    ],
    ids=str,
)
def test_a_mistake_in_a_mixer_is_one_line(mixer: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        train_state(pretrain_config({"mixer": mixer}))


@pytest.mark.usefixtures("plugged_in")
@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ({"name": "Nope"}, "optimizer.name = 'Nope' is no optimiser"),
        ({"name": "toy_mixer@NeighbourMixer"}, "optimizer.name = 'toy_mixer@NeighbourMixer' is no optimiser"),
        ({"name": "Lion", "momentum": 0.5}, "unknown key 'optimizer.momentum' .*Lion takes learning_rate, betas"),
        ({"name": "toy_optimizer@SignMomentum", "momentum": "x"}, "optimizer.momentum = 'x' .* valid number"),
    ],
    ids=str,
)
def test_a_mistake_in_an_optimiser_is_one_line(optimizer: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build_optimizer(pretrain_config(optimizer=optimizer))


@pytest.mark.slow
def test_mistakes_are_told_without_a_traceback(house: House) -> None:
    (house.folder / "models" / "toy_broken.py").write_text("def f(:\n    pass\n")
    for override, expected in (
        ("arch.name=toy_broken@ToyModel", "toy_broken.py, line 1; correct it"),
        ("stop_when.metric=train/confidenc stop_when.at_least=1", "unknown metric; choose one of train/accuracy, "),
    ):
        done = house.call("pretrain.py", *house.arguments("mistaken", "arch=toy", *override.split()))
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
    assert "train/confidence" in done.stderr


# ------------------------------------------------------------------------------------------ docs/adding-a-model.md

DOCUMENT = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
SMALL = ("arch.halt_max_steps=2", "arch.hidden_size=32", "arch.num_heads=2")
SMALL_HRM = (*SMALL, "arch.H_layers=1", "arch.L_layers=1", "arch.H_cycles=1", "arch.L_cycles=1")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)


def test_the_document_shows_the_files_that_are_tested() -> None:
    """A researcher would copy something that no longer works."""
    shown = {*blocks("python"), *blocks("yaml")}
    files = ["models/toy_core.py", "models/toy_loss.py", "models/toy_mixer.py", "config/arch/toy.yaml"]
    assert all((PLUGINS / file).read_text(encoding="utf-8") in shown for file in files)


@pytest.mark.slow
def test_the_document_s_commands_run(house: House) -> None:
    """With small models in place of the default ones, on a tiny data set, for two steps."""
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    training = [line.split() for line in commands if line.startswith("python pretrain.py ")]
    assert len(training) == len(commands) - 1 == 4  # and one of the bench, which has its own test
    for number, (_, script, *overrides) in enumerate(training):
        small = SMALL if "arch=toy" in overrides else SMALL_HRM
        stop = ("stop_when.metric=train/lm_loss", "stop_when.at_least=0", "stop_when.window=2")
        overrides = [override for override in overrides if not override.startswith("data_path=")]
        arguments = house.arguments(f"document-{number}", "eval_max_examples=8", *small, *stop, *overrides)
        assert "stopping" in house.succeed(script, *arguments)
