"""Weights of any source into a model: finds the file that `checkpoint=` or `load_weights=` names, and checks it.

Names and shapes are compared before a number is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from common.errors import UserError, shown, shown_name
from common.files import expand_user
from models.losses import ACTLossHead
from models.sparse_embedding import SparseEmbedding
from utils.checkpoints.hub import fetch_checkpoint, is_hub_id
from utils.checkpoints.record import (
    RECORD_FILE,
    WEIGHTS_FILE,
    step_folders,
    step_of,
    verify,
)
from utils.checkpoints.safetensors_file import read_metadata, read_safetensors
from utils.checkpoints.stored_tensors import StoredTensor
from utils.checkpoints.torch_file import read_torch_file
from utils.config import CONFIG_FILE
from utils.plain_yaml import read_yaml
from utils.ranks.ranks import Ranks

COMPILED_PREFIX = "_orig_mod."  # torch.compile puts it before every name
HUB_OUTPUT = Path("checkpoints")
_FINITE_PIECE = 4 << 20  # numbers looked at together
_TORCH_STEP = re.compile(r"step_(\d+)")
_STEP_IN_METADATA = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class WeightsSource:
    """A file of weights and what belongs to it.

    Attributes:
        name: for messages.
        file: the weights.
        config_folder: the folder of their `all_config.yaml`.
        output_folder: the default folder for predictions.
        step: at which they were saved, 0 if unknown.
    """

    name: str
    file: Path
    config_folder: Path
    output_folder: Path
    step: int

    def tensors(self) -> dict[str, StoredTensor]:
        """Find the tensors, under the names of the PyTorch `state_dict` without torch.compile's prefix.

        Raises:
            UserError: if the file is damaged or of an unknown kind.
        """
        # Any other name may be a PyTorch file; its reader recognises what else it may be.
        stored = read_safetensors(self.file) if self.file.suffix == ".safetensors" else read_torch_file(self.file)
        plain = {name.removeprefix(COMPILED_PREFIX): tensor for name, tensor in stored.items()}
        if len(plain) < len(stored):
            raise UserError(f"{self.file} holds names with and without {COMPILED_PREFIX}; keep one of each pair")
        return plain


def find_weights(checkpoint: str) -> WeightsSource:
    """Find the weights that `checkpoint` names, in this order of preference.

    - a step folder of this code, checked against its record;
    - a folder with `all_config.yaml`: a run of this code, whose newest step is taken, or a copy of an official
      repository, with its PyTorch file;
    - a file: `.safetensors`, or written by `torch.save`, with `all_config.yaml` beside it;
    - `owner/name` or `owner/name@revision` on the Hugging Face hub.

    Raises:
        UserError: if there is none of these, or it is damaged.
    """
    path = expand_user(checkpoint)
    if path.is_dir():
        return _in_run(path) if (path / CONFIG_FILE).is_file() else _step_folder(path)
    if path.is_file():
        return _step_folder(path.parent) if (path.parent / RECORD_FILE).is_file() else _file(path)
    if is_hub_id(checkpoint) and not _TORCH_STEP.fullmatch(path.name):  # `run/step_5` is a mistyped path
        try:
            found = fetch_checkpoint(checkpoint)
        except UserError as error:
            raise UserError(f"checkpoint {checkpoint}: no such folder or file here; {error}") from error
        repository = checkpoint.partition("@")[0]
        folder = found.weights.parent  # a step folder, if the repository is a copy of a run's folder
        step = (_step_in_name(folder) if found.weights.name == WEIGHTS_FILE else 0) or _step_of_file(found.weights)
        name = f"{checkpoint} ({found.commit[:12]})"
        return WeightsSource(name, found.weights, found.config.parent, HUB_OUTPUT / repository, step)
    raise UserError(
        f"checkpoint {checkpoint} is neither a folder or file here nor owner/name on the Hugging Face hub; expected "
        "a path such as checkpoints/<project>/<run>/step_<N>"
    )


def _in_run(folder: Path) -> WeightsSource:
    """Find the newest weights of a run, which may be under way and pruning its checkpoints."""
    while True:
        newest = _newest_in(folder)
        try:
            return _step_folder(newest) if newest.is_dir() else _file(newest)
        except UserError:
            if newest.exists():
                raise


def _newest_in(folder: Path) -> Path:
    """Find the newest step in a folder with a configuration: a step folder, or a PyTorch file."""
    steps = step_folders(folder)
    if steps:
        return steps[0]
    files = [path for path in folder.iterdir() if _TORCH_STEP.fullmatch(path.name) and path.is_file()]
    if (folder / "checkpoint").is_file():
        return folder / "checkpoint"
    if not files:
        raise UserError(f"{folder} holds no step_<N> folder yet; a run writes them after its evaluations")
    return max(files, key=_step_in_name)


def _step_in_name(path: Path) -> int:
    match = _TORCH_STEP.fullmatch(path.name)
    return int(match[1]) if match else 0


def _step_of_file(path: Path) -> int:
    """Return the step of a file of weights, from an exported file's header or a PyTorch file's name, or 0."""
    if path.suffix != ".safetensors":
        return _step_in_name(path)
    step = read_metadata(path).get("step", "")
    return int(step) if _STEP_IN_METADATA.fullmatch(step) else 0


def _step_folder(folder: Path) -> WeightsSource:
    step = step_of(folder)
    if (folder / RECORD_FILE).exists():
        verify(folder, WEIGHTS_FILE)
    elif not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{folder / WEIGHTS_FILE} is missing; the checkpoint is not complete")
    return WeightsSource(str(folder), folder / WEIGHTS_FILE, folder.parent, folder.parent, step)


def _file(path: Path) -> WeightsSource:
    return WeightsSource(str(path), path, path.parent, path.parent, _step_of_file(path))


def load_weights(
    head: ACTLossHead, tensors: Mapping[str, StoredTensor], origin: str, config_folder: Path | None = None
) -> None:
    """Read tensors into a model, which keeps its own dtypes.

    Initial weights that have not been evaluated yet are never computed, so that a table of 2 GB doesn't exist twice.

    Args:
        head: the model.
        tensors: one for each of its parameters and buffers, by name.
        origin: where they are from, for the messages.
        config_folder: of the `all_config.yaml` that names the data set of their training, for the messages.

    Raises:
        UserError: if names or shapes are not those of `head`, and then nothing is read; or if a number is not finite.
    """
    own = dict(tree_flatten(head.parameters()))
    for names, verdict in ((own.keys() - tensors.keys(), "lacks"), (tensors.keys() - own.keys(), "has the unexpected")):
        if names:
            raise UserError(
                f"{origin} {verdict} {shown_name(min(names))}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + "; it was made by another architecture, compare the arch keys in all_config.yaml"
            )
    tables = {f"{name}.weights" for name, module in head.named_modules() if isinstance(module, SparseEmbedding)}
    for name, tensor in tensors.items():
        found, needed = tensor.shape, own[name].shape
        if found == needed:
            continue
        if name in tables and found[1:] == needed[1:]:
            raise UserError(
                f"{origin} has embeddings of {found[0]:,} puzzles, but the data set has {needed[0]:,} identifiers; "
                "identifiers belong to the build of the data set that the model was trained on, give that one as "
                f"data_path{_trained_on(config_folder, ': ')}"
            )
        raise UserError(
            f"{origin}: {name} has shape {shown(found)}, the model needs {tuple(needed)}; compare the arch keys in "
            "all_config.yaml, and the sizes in the data set's dataset.json with those of the data set that it was "
            f"trained on{_trained_on(config_folder, ', ')}"
        )
    for name, tensor in tensors.items():
        array = tensor.read()
        if not _is_finite(array):
            raise UserError(
                f"{origin}: {shown_name(name)} holds NaN or infinity; the run had diverged, or the file is damaged: "
                "take an earlier checkpoint"
            )
        head.load_weights([(name, array.astype(own.pop(name).dtype))], strict=False)
        del array
    mx.eval(head.parameters())


def _trained_on(config_folder: Path | None, before: str) -> str:
    """Return the `data_path` of the training behind `before`; nothing if no configuration names it."""
    if config_folder is None or not (config_folder / CONFIG_FILE).is_file():
        return ""
    data_path = read_yaml(config_folder / CONFIG_FILE).get("data_path")
    return "" if data_path is None else f"{before}{shown(data_path)}"


def _is_finite(array: mx.array) -> bool:
    """Return whether an array holds neither NaN nor infinity. In pieces: no second table of 2 GB is made for it."""
    flat = array.reshape(-1)
    return all(
        mx.isfinite(flat[start : start + _FINITE_PIECE]).all().item() for start in range(0, flat.size, _FINITE_PIECE)
    )


def share_weights(head: ACTLossHead, ranks: Ranks) -> None:
    """Set the weights of the models on all ranks to those of rank 0."""
    if ranks.size > 1:
        for name, array in dict(tree_flatten(head.parameters())).items():
            head.load_weights([(name, ranks.share(array))], strict=False)


def start_from(checkpoint: str, head: ACTLossHead, ranks: Ranks) -> None:
    """Load the weights that `checkpoint` names into a model, on all ranks. Only rank 0 reads them."""
    if ranks.first:
        source = find_weights(checkpoint)
        load_weights(head, source.tensors(), source.name, source.config_folder)
    share_weights(head, ranks)
