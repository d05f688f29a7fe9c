"""The commands of README and docs are such that their programs take them, each pretrain.py line takes a first step, and
the documented defaults hold."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml

import evaluate
import pretrain
import solve
import utils.arc.__main__
import utils.bench.__main__
import utils.export
from tests.helpers.tiny_data import ROOT, make_tiny_data
from utils.config import read_saved_config
from utils.model import count_parameters
from utils.train.state import TrainState

# As people know them from the PyTorch project and from earlier versions of this README.
KNOWN_COMMANDS = [
    "python pretrain.py data_path=data/sudoku-extreme-1k-aug-1000 epochs=20000 eval_interval=2000 "
    "global_batch_size=384 lr=7e-5 puzzle_emb_lr=7e-5 weight_decay=1.0 puzzle_emb_weight_decay=1.0",
    "python pretrain.py",
    "python pretrain.py data_path=data/arc-2-aug-1000",
    "python pretrain.py data_path=data/sudoku-extreme-1k-aug-1000 epochs=20000 eval_interval=2000 "
    "lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0",
    "python pretrain.py data_path=data/maze-30x30-hard-1k epochs=20000 eval_interval=2000 "
    "lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0",
    "python pretrain.py data_path=data/sudoku-hard-full epochs=100 eval_interval=10 lr_min_ratio=0.1 "
    "global_batch_size=2304 lr=3e-4 puzzle_emb_lr=3e-4 weight_decay=0.1 puzzle_emb_weight_decay=0.1 "
    "arch.loss.loss_type=softmax_cross_entropy arch.L_cycles=8 arch.halt_max_steps=8 arch.pos_encodings=learned",
]
SUDOKU_OF_TRM = (
    "data_path=data/sudoku-extreme-1k-aug-1000 epochs=50000 eval_interval=5000 lr=1e-4 puzzle_emb_lr=1e-4 "
    "weight_decay=1.0 puzzle_emb_weight_decay=1.0"
)
OF_TRM = "arch.L_layers=2 arch.H_cycles=3 arch.L_cycles"
# Those of TRM and URM, with data_path in place of data_paths and evaluators.
COMMANDS_OF_THE_FAMILY = [
    f"python pretrain.py arch=trm {SUDOKU_OF_TRM} arch.mlp_t=True arch.pos_encodings=none {OF_TRM}=6 ema=True",
    f"python pretrain.py arch=trm {SUDOKU_OF_TRM} {OF_TRM}=6 ema=True",
    "python pretrain.py arch=trm "
    + SUDOKU_OF_TRM.replace("sudoku-extreme-1k-aug-1000", "maze-30x30-hard-1k")
    + f" {OF_TRM}=4 ema=True",
    f"python pretrain.py arch=trm data_path=data/arc-aug-1000 {OF_TRM}=4 ema=True",
    "python pretrain.py arch=urm data_path=data/arc-aug-1000 epochs=200000 eval_interval=2000 lr=1e-4 "
    "puzzle_emb_lr=1e-2 weight_decay=0.1 ema=True",
    "python pretrain.py arch=urm data_path=data/sudoku-extreme-1k-aug-1000 epochs=50000 eval_interval=2000 "
    "global_batch_size=128 lr=1e-4 puzzle_emb_lr=1e-4 weight_decay=1.0 puzzle_emb_weight_decay=1.0 ema=True",
]
# Parameters on data of 16 tokens and 6 words: that is 5 · 512 weights fewer in embedding and head than with Sudoku's 11
SIZES = {
    "hrm_v1": 27_275_266 - 2 * 5 * 512,
    "trm": 6_828_034 - 2 * 5 * 512,
    "trm mlp_t": 5_028_866 - 2 * 5 * 512 - 2 * 3 * (512 * 97 - 256 * 32),  # an MLP over 32 tokens in place of 97
    "urm": 13_663_234 - 2 * 6 * 512,  # published for ARC's 12
}


# The other commands of the README before there was a port.
OTHER_KNOWN_COMMANDS = [
    "pip install mlx",
    "pip3 install packaging ninja wheel setuptools setuptools-scm",
    "pip install -r requirements.txt",
    "wandb login",
    "git submodule update --init --recursive",
    "python dataset/build_arc_dataset.py",
    "python dataset/build_arc_dataset.py --dataset-dirs dataset/raw-data/ARC-AGI-2/data "
    "--output-dir data/arc-2-aug-1000",
    "python dataset/build_sudoku_dataset.py",
    "python dataset/build_sudoku_dataset.py --output-dir data/sudoku-extreme-1k-aug-1000  "
    "--subsample-size 1000 --num-aug 1000",
    "python dataset/build_maze_dataset.py",
    "python evaluate.py checkpoint=<CHECKPOINT_PATH>",
]

ADDING_A_MODEL = ROOT / "docs" / "adding-a-model.md"  # its commands need its files: tests/test_plugins.py runs them
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Before `python`: an environment variable, a launcher. After it: comments, and & for the background.
BEFORE_PYTHON = re.compile(r"^([A-Z_]+=\S+ |mlx\.launch (-n \d+|--hostfile \S+) )*(?=python )")
PROGRAMS: dict[str, Callable[[], None]] = {
    "evaluate.py": evaluate.main,
    "-m utils.arc": utils.arc.__main__.main,
    "-m utils.bench": utils.bench.__main__.main,
    "-m utils.export": utils.export.main,
    "solve.py": solve.main,
}


def commands(*documents: Path) -> list[str]:
    """The lines of the bash blocks of some documents, each once, from `python` on where that is what they run."""
    texts = [document.read_text(encoding="utf-8") for document in documents if document != ADDING_A_MODEL]
    blocks = [block for text in texts for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    lines = [re.sub(r" +(&|#.*)$", "", line.strip()) for block in blocks for line in block.splitlines()]
    return list(dict.fromkeys(BEFORE_PYTHON.sub("", line) for line in lines if line and line[0] != "#"))


def training_commands() -> list[str]:
    return [command for command in commands(*DOCUMENTS) if "pretrain.py" in command and not command.startswith("uv ")]


class FirstStep(BaseException):
    """Ends a run after its first step; not an Exception, so that nothing on the way out handles it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def uncompiled() -> Iterator[None]:
    # Compiling the kernels of two more architectures takes longer than the steps; the compiled step has its own tests.
    mx.disable_compile()
    yield
    mx.enable_compile()


def test_the_readme_has_the_known_commands() -> None:
    """Somebody's notes from the PyTorch project would no longer be found here."""
    missing = {*KNOWN_COMMANDS, *COMMANDS_OF_THE_FAMILY, *OTHER_KNOWN_COMMANDS} - set(commands(ROOT / "README.md"))
    assert not missing


def message(main: Callable[[], None], arguments: list[str], monkeypatch: Any, capsys: Any) -> str:
    """Run a program in this process, which has to refuse its command line; the line that it then prints."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit):
        main()
    line: str = capsys.readouterr().err
    return line


@pytest.mark.slow
def test_every_command_is_one_that_its_program_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A renamed key, option or target would leave a command in the documents that ends in an error.

    Programs with keys are given a file that isn't there in place of the checkpoint, and have to complain of that and
    not of a key. `test_every_command_takes_its_first_step` has the lines for pretrain.py.
    """
    monkeypatch.chdir(tmp_path)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    absent = dict.fromkeys(("evaluate.py", "solve.py", "-m utils.export"), "checkpoint=nowhere/at/all")
    absent |= {"-m utils.arc": "predictions=nowhere/at/all", "-m utils.bench": "against=nowhere/at/all"}
    options: dict[str, str] = {}
    tried: set[str] = set()
    for command in commands(*DOCUMENTS):
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets, command
            if words[1] != "bench" or len(words) == 2:
                continue
            words = ["python", "-m", "utils.bench", *words[2].removeprefix("BENCH=").split()]
        if words[0] in ("pip", "pip3"):
            files = [file for flag, file in itertools.pairwise(words) if flag == "-r"]
            assert all((ROOT / file).is_file() for file in files), command
            continue
        if words[0] in ("git", "wandb", "uv") or words[:2] == ["python", "pretrain.py"]:
            continue
        assert words[0] == "python", f"{command}: a kind of command that this test doesn't know"
        program, arguments = (words[1], words[2:]) if words[1] != "-m" else (" ".join(words[1:3]), words[3:])
        if program.startswith("dataset/"):
            if program not in options:
                shown = subprocess.run([sys.executable, str(ROOT / program), "--help"], capture_output=True, text=True)
                options[program] = shown.stdout
            assert all(f"{word} " in options[program] for word in arguments if word.startswith("--")), command
            continue
        assert "nowhere/at/all" in message(PROGRAMS[program], [*arguments, absent[program]], monkeypatch, capsys), (
            command
        )
        tried.add(program)
    assert tried == set(PROGRAMS)
    assert len(options) == 7  # all builders, and reasoning_gym_pairs.py


def test_every_link_leads_somewhere() -> None:
    """Who looks something up would find a page that isn't there, or the top of a long one."""

    def anchors(document: Path) -> set[str]:
        # As GitHub makes them: lower case, no punctuation, a hyphen for each space.
        titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for document in (*DOCUMENTS, ROOT / "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), f"{document.name}: {link}"
            assert not anchor or anchor in anchors(target), f"{document.name}: {link}"
    linked = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/{path.name})" in linked for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_every_command_takes_its_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real entry point with the documented architectures, up to the first training step on a tiny data set.

    Every command builds its model, its optimisers and its first step. The step is computed once for each architecture:
    it depends on nothing else but rates.
    """
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    train_step = TrainState.train_step
    losses: dict[str, float] = {}  # by architecture
    states: list[TrainState] = []

    def first_step(state: TrainState, batch: dict[str, mx.array], flag: float) -> Any:
        before = state.head.model.inner.lm_head.weight
        metrics = train_step(state, batch, flag).metrics
        arch = state.config.arch.model_dump_json()
        if arch not in losses:
            losses[arch] = float(metrics["loss"])
            assert 0 < losses[arch] < 8 * 10  # a sum over 8 rows
            mx.eval(state.arrays)
            after = state.head.model.inner.lm_head.weight
            assert mx.isfinite(after).all().item()
            assert not mx.array_equal(before, after).item()
        states.append(state)
        raise FirstStep

    monkeypatch.setattr(TrainState, "train_step", first_step)
    of_the_paper = 0
    for number, command in enumerate(training_commands()):
        program, script, *arguments = shlex.split(command)
        assert (program, script) == ("python", "pretrain.py")
        arguments = [argument for argument in arguments if argument != "forecast=true"]  # which ends before a run
        overrides = [f"data_path={data}", "global_batch_size=8", f"checkpoint_path=run-{number}"]
        monkeypatch.setattr(sys, "argv", [script, *arguments, *overrides])
        try:
            pretrain.main()
        except FirstStep:
            capsys.readouterr()
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")
        state = states[-1]
        assert read_saved_config(tmp_path / f"run-{number}") == state.config
        given = dict(argument.split("=") for argument in arguments if "=" in argument)
        if "--config-name" not in arguments:
            assert state.config.lr == float(given.get("lr", 1e-4))
            assert state.config.weight_decay == float(given.get("weight_decay", 0.1))
            assert state.config.epochs == int(given.get("epochs", 100_000))
        if "--config-name" not in arguments and "arch.hidden_size" not in given:
            learned = given.get("arch.pos_encodings") == "learned"  # 17 positions
            size = SIZES[given.get("arch", "hrm_v1") + (" mlp_t" if "arch.mlp_t" in given else "")]
            assert count_parameters(state.head) == size + learned * 17 * 512
            of_the_paper += 1
    assert len(states) == len(training_commands())
    assert of_the_paper >= len(KNOWN_COMMANDS) + len(COMMANDS_OF_THE_FAMILY)
    assert len(losses) >= 6  # HRM as in the paper, for full Sudoku, for the demo; TRM's two forms, URM


def test_defaults_are_the_documented_ones() -> None:
    """Whoever leaves a key out would train something else than with the PyTorch code."""
    config = yaml.safe_load((ROOT / "config/cfg_pretrain.yaml").read_text())
    documented = {
        "data_path": "data/arc-aug-1000",
        "global_batch_size": 768,
        "epochs": 100_000,
        "eval_interval": 10_000,
        "checkpoint_every_eval": True,
        "lr": 1e-4,
        "lr_min_ratio": 1.0,
        "lr_warmup_steps": 2000,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "puzzle_emb_weight_decay": 0.1,
        "puzzle_emb_lr": 1e-2,
        "project_name": None,
        "run_name": None,
        "checkpoint_path": None,
        "seed": 0,
        "eval_save_outputs": [],
    }
    # YAML 1.1 takes 1e-4 for text; Hydra, which reads these files, for a number.
    found = {key: float(config[key]) if isinstance(value, float) else config[key] for key, value in documented.items()}
    assert found == documented
    assert config["defaults"][0] == {"arch": "hrm_v1"}
    assert config["defaults"][-1] == "_self_"
    assert config["hydra"]["output_subdir"] is None
    off: dict[str, Any] = {"eval_max_examples": None, "log_interval": 1, "log_examples": 0, "load_weights": None}
    off |= {
        "load_puzzle_emb": "exact",
        "micro_batch_size": None,
        "forecast": False,
        "eval_batch_size": None,
        "eval_halt": "max",
        "eval_samples": 1,
        "eval_max_steps": None,
        "eval_noise": 0.0,
        "eval_random_init": False,
        "eval_relabel": False,
        "eval_choose": "auto",
        "resume": None,
        "checkpoint_interval": None,
        "keep_checkpoints": None,
        "max_steps": None,
        "on_nonfinite": "stop",
        "rank_timeout": 300,
        "ema": False,
        "ema_rate": 0.999,
        "freeze_weights": False,
        "min_eval_interval": 0,
    }
    assert {key: config[key] for key in off} == off
    assert config["stop_when"]["metric"] is None
    assert config["optimizer"] == {"name": "optimizers@AdamATan2"}
    assert config.keys() == documented.keys() | off.keys() | {"defaults", "hydra", "optimizer", "stop_when"}

    arch = yaml.safe_load((ROOT / "config/arch/hrm_v1.yaml").read_text())
    assert arch | {"rms_norm_eps": float(arch["rms_norm_eps"])} == {
        "name": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
        "loss": {"name": "losses@ACTLossHead", "loss_type": "stablemax_cross_entropy"},
        "halt_exploration_prob": 0.1,
        "halt_max_steps": 16,
        "H_cycles": 2,
        "L_cycles": 2,
        "H_layers": 4,
        "L_layers": 4,
        "hidden_size": 512,
        "num_heads": 8,
        "expansion": 4,
        "puzzle_emb_ndim": "${.hidden_size}",
        "pos_encodings": "rope",
        "mixer": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "forward_dtype": None,  # bfloat16 on a GPU, as in the PyTorch code; float32 on a CPU
    }
