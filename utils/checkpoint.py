"""Checkpoints: `<checkpoint_path>/step_<N>/model.safetensors` with the parameter names of the PyTorch code, and
`all_config.yaml` beside the step folders. Every file appears whole or not at all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from models.losses import ACTLossHead
from utils.config import CONFIG_FILE
from utils.errors import UserError

WEIGHTS_FILE = "model.safetensors"
CODE_FOLDER = "code"
_STEP_FOLDER = re.compile(r"step_(\d+)")
_REPOSITORY = Path(__file__).resolve().parent.parent


def new_checkpoint_path(checkpoint_path: str | None) -> Path:
    """Make the folder of a new run.

    Raises:
        UserError: if it can't be made, or holds the steps of an earlier run, which must not be mixed with others.
    """
    folder = Path(str(checkpoint_path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(child.name for child in folder.iterdir() if _STEP_FOLDER.fullmatch(child.name))
    except OSError as error:
        raise UserError(f"checkpoint_path {folder} can't be used: {error.strerror}") from error
    if earlier:
        raise UserError(f"checkpoint_path {folder} holds {earlier[-1]} of an earlier run; choose another, or remove it")
    return folder


def save_weights(head: ACTLossHead, checkpoint_path: Path, step: int) -> Path:
    """Write all weights, buffers and puzzle embeddings of `head`; returns the step folder.

    The folder is written under another name and renamed at the end, so that a `step_<N>` is always complete.

    Raises:
        UserError: if the weights can't be written; nothing is left behind then.
    """
    folder = checkpoint_path / f"step_{step}"
    partial = checkpoint_path / f".step_{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = dict(tree_flatten(head.parameters()))
    try:
        mx.save_safetensors(str(partial / WEIGHTS_FILE), weights, metadata={"format": "mlx", "step": str(step)})
    except RuntimeError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder} can't be written: {error}; is the disk full?") from error
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
    return folder


def save_code(checkpoint_path: Path) -> None:
    """Copy the source of the package `models` beside the weights that it made, into `code/`."""
    target = checkpoint_path / CODE_FOLDER
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(_REPOSITORY / "models", target / "models", ignore=shutil.ignore_patterns("__pycache__"))


def step_of(folder: Path) -> int:
    """The N of a folder named `step_<N>`.

    Raises:
        UserError: if the folder has another name.
    """
    match = _STEP_FOLDER.fullmatch(folder.name)
    if match is None:
        raise UserError(f"checkpoint {folder} is not a step folder; expected a name such as step_1000")
    return int(match[1])


def find_step_folder(checkpoint: str) -> Path:
    """The step folder that `checkpoint` names: itself one, or a run's folder, whose newest step is taken.

    Raises:
        UserError: if there is none, or it holds no weights.
    """
    path = Path(checkpoint)
    if not path.is_dir():
        raise UserError(f"checkpoint {path} is not a folder; expected checkpoints/<project>/<run>/step_<N>")
    if (path / CONFIG_FILE).exists():
        steps = [child for child in path.iterdir() if _STEP_FOLDER.fullmatch(child.name)]
        if not steps:
            raise UserError(f"{path} holds no step_<N> folder yet; a run writes them after its evaluations")
        path = max(steps, key=step_of)
    step_of(path)
    if not (path / WEIGHTS_FILE).is_file():
        raise UserError(f"{path / WEIGHTS_FILE} is missing; the checkpoint is not complete")
    return path


def load_weights(head: ACTLossHead, folder: Path) -> None:
    """Read the weights of a step folder into `head`.

    Raises:
        UserError: if the file is damaged, or its names or shapes are not those of `head`.
    """
    path = folder / WEIGHTS_FILE
    try:
        stored = mx.load(str(path))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} can't be read as safetensors: {error}") from error
    assert isinstance(stored, dict)  # what mx.load returns for this extension
    own = dict(tree_flatten(head.parameters()))
    for names, verdict in ((own.keys() - stored.keys(), "lacks"), (stored.keys() - own.keys(), "has the unexpected")):
        if names:
            raise UserError(
                f"{path} {verdict} {sorted(names)[0]}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + "; it was made by another architecture, compare the arch keys in all_config.yaml"
            )
    for name, array in stored.items():
        if array.shape != own[name].shape:
            remedy = (
                "puzzle identifiers belong to the data set that the model was trained on, evaluate with that one"
                if name.endswith("puzzle_emb.weights") and array.shape[1:] == own[name].shape[1:]
                else "compare the arch keys in all_config.yaml and the sizes in the data set's dataset.json"
            )
            raise UserError(
                f"{path}: {name} has shape {tuple(array.shape)}, the model needs {tuple(own[name].shape)}; {remedy}"
            )
    head.load_weights([(name, array.astype(own[name].dtype)) for name, array in stored.items()])
    mx.eval(head.parameters())
