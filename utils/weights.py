"""Weights from wherever they lie into a model: finding the file that a `checkpoint=` or `load_weights=` names, and
checking names and shapes before a single number is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from models.losses import ACTLossHead
from utils.checkpoint_record import (
    RECORD_FILE,
    WEIGHTS_FILE,
    step_folders,
    step_of,
    verify,
)
from utils.config import CONFIG_FILE
from utils.errors import UserError
from utils.safetensors_file import read_safetensors
from utils.stored_tensors import StoredTensor

COMPILED_PREFIX = "_orig_mod."  # torch.compile puts it before every name


@dataclass(frozen=True)
class WeightsSource:
    """A file of weights and what is known of it.

    `name`: for messages. `file`: the weights. `run_folder`: the folder that holds `all_config.yaml` and takes
    predictions. `step`: the step at which they were saved, 0 if the name of the file does not say.
    """

    name: str
    file: Path
    run_folder: Path
    step: int

    def tensors(self) -> dict[str, StoredTensor]:
        """Where the tensors lie, under the names of the PyTorch `state_dict` without torch.compile's prefix.

        Raises:
            UserError: if the file is damaged or of a kind not known here.
        """
        stored = read_safetensors(self.file)
        plain = {name.removeprefix(COMPILED_PREFIX): tensor for name, tensor in stored.items()}
        if len(plain) < len(stored):
            raise UserError(f"{self.file} holds names with and without {COMPILED_PREFIX}; keep one of each pair")
        return plain


def find_weights(checkpoint: str) -> WeightsSource:
    """The weights that `checkpoint` names: a step folder, or a run's folder, whose newest step is taken.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    path = Path(checkpoint)
    if not path.is_dir():
        raise UserError(f"checkpoint {path} is not a folder; expected checkpoints/<project>/<run>/step_<N>")
    return _in_step_folder(path)


def _in_step_folder(path: Path) -> WeightsSource:
    if (path / CONFIG_FILE).exists():
        steps = step_folders(path)
        if not steps:
            raise UserError(f"{path} holds no step_<N> folder yet; a run writes them after its evaluations")
        path = steps[0]
    step_of(path)
    if (path / RECORD_FILE).exists():
        verify(path)
    elif not (path / WEIGHTS_FILE).is_file():
        raise UserError(f"{path / WEIGHTS_FILE} is missing; the checkpoint is not complete")
    return WeightsSource(str(path), path / WEIGHTS_FILE, path.parent, step_of(path))


def load_weights(head: ACTLossHead, tensors: Mapping[str, StoredTensor], origin: str) -> None:
    """Read tensors into a model, which keeps its own dtypes. Its present weights are let go before they are computed,
    if nobody has asked for them: a table of 2 GB never exists twice.

    Args:
        head: the model.
        tensors: one for each of its parameters and buffers.
        origin: where they come from, for the messages.

    Raises:
        UserError: if names or shapes are not those of `head`; nothing is read then.
    """
    own = dict(tree_flatten(head.parameters()))
    for names, verdict in ((own.keys() - tensors.keys(), "lacks"), (tensors.keys() - own.keys(), "has the unexpected")):
        if names:
            raise UserError(
                f"{origin} {verdict} {sorted(names)[0]}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + "; it was made by another architecture, compare the arch keys in all_config.yaml"
            )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(_shape_message(name, tensor.shape, own[name].shape, origin))
    for name, tensor in tensors.items():
        array = tensor.read()
        head.load_weights([(name, array.astype(own.pop(name).dtype))], strict=False)
        del array
    mx.eval(head.parameters())


def _shape_message(name: str, found: tuple[int, ...], needed: tuple[int, ...], origin: str) -> str:
    if name.endswith("puzzle_emb.weights") and found[1:] == needed[1:]:
        return (
            f"{origin} has embeddings of {found[0]:,} puzzles, but the data set has {needed[0]:,} identifiers; "
            "identifiers belong to the build of the data set that the model was trained on, give that one as data_path"
        )
    return (
        f"{origin}: {name} has shape {tuple(found)}, the model needs {tuple(needed)}; compare the arch keys in "
        "all_config.yaml and the sizes in the data set's dataset.json"
    )
