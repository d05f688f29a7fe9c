"""Weights of any source into a model: finds the file that `checkpoint=` or `load_weights=` names, and checks it.

Names and shapes are compared before a number is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tqdm import tqdm

from common.errors import UserError, shown, shown_name
from common.files import expand_user
from models.act import PUZZLE_EMB
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
from utils.config import CONFIG_FILE, LoadPuzzleEmb
from utils.plain_yaml import read_yaml
from utils.ranks.ranks import Ranks

COMPILED_PREFIX = "_orig_mod."  # torch.compile puts it before every name
HUB_OUTPUT = Path("checkpoints")
_PIECE = 4 << 20  # numbers looked at together
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
    head: ACTLossHead,
    tensors: Mapping[str, StoredTensor],
    origin: str,
    config_folder: Path | None = None,
    puzzle_emb: LoadPuzzleEmb = "exact",
) -> str | None:
    """Read tensors into a model, which keeps its own dtypes.

    Initial weights that have not been evaluated yet are never computed, so that a table of 2 GB doesn't exist twice.

    Args:
        head: the model.
        tensors: one for each of its parameters and buffers, by name.
        origin: where they are from, for the messages.
        config_folder: of the `all_config.yaml` that names the data set of their training, for the messages.
        puzzle_emb: `exact` reads the table of puzzle embeddings as it is. `mean` sets each row of the model's table to
            the mean of the stored rows, however many there are. `skip` ignores the stored table, and leaves the model's
            as it is: zeros, if the model is new.

    Returns:
        One line on the puzzle embeddings if they are not as stored, else None.

    Raises:
        UserError: if names or shapes are not those of `head`, and then nothing is read; or if a number is not finite.
    """
    own = dict(tree_flatten(head.parameters()))
    tables = {f"{name}.weights" for name, module in head.named_modules() if isinstance(module, SparseEmbedding)}
    note = None
    if puzzle_emb == "skip":
        skipped = tables or {name for name in tensors if name.endswith(f".{PUZZLE_EMB}.weights")}
        rows = sum(own[name].shape[0] for name in tables)
        own = {name: array for name, array in own.items() if name not in skipped}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in skipped}
        note = f"not loaded, all {rows:,} rows are zero" if tables else "not loaded, the model has none"
    elif puzzle_emb == "mean" and not tables:
        raise UserError("load_puzzle_emb = 'mean', but the model has no puzzle embeddings; leave load_puzzle_emb out")
    for names, verdict in ((own.keys() - tensors.keys(), "lacks"), (tensors.keys() - own.keys(), "has the unexpected")):
        if names:
            raise UserError(
                f"{origin} {verdict} {shown_name(min(names))}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + "; it was made by another architecture, compare the arch keys in all_config.yaml"
            )
    for name, tensor in tensors.items():
        found, needed = tensor.shape, own[name].shape
        if found == needed:
            continue
        if name in tables and found[1:] == needed[1:]:
            if puzzle_emb == "mean" and found[0]:
                continue
            raise UserError(
                f"{origin} has embeddings of {found[0]:,} puzzles, but the data set has {needed[0]:,} identifiers; "
                "identifiers belong to the build of the data set that the model was trained on, give that one as "
                f"data_path{_trained_on(config_folder, ': ')}; or give load_puzzle_emb=mean, with which every puzzle "
                "has the mean of the stored embeddings, or load_puzzle_emb=skip, with which all begin as zeros"
            )
        raise UserError(
            f"{origin}: {name} has shape {shown(found)}, the model needs {tuple(needed)}; compare the arch keys in "
            "all_config.yaml, and the sizes in the data set's dataset.json with those of the data set that it was "
            f"trained on{_trained_on(config_folder, ', ')}"
        )
    for name, tensor in tensors.items():
        initial = own.pop(name)
        if name in tables and puzzle_emb == "mean":
            array = mx.broadcast_to(_mean_row(tensor, f"{origin}: {name}"), initial.shape)
            note = f"each of the {initial.shape[0]:,} rows is the mean of {tensor.shape[0]:,} stored ones"
        else:
            array = tensor.read()
            _check_finite(array, f"{origin}: {shown_name(name)}")
        head.load_weights([(name, array.astype(initial.dtype))], strict=False)
        del array, initial
    mx.eval(head.parameters())
    return None if note is None else f"puzzle embeddings: {note}"


def _mean_row(table: StoredTensor, name: str) -> mx.array:
    """Compute the mean of a table's rows, float32 `[dims]`. It is read in pieces, and summed in float64."""
    num_rows, dims = table.shape
    total = np.zeros(dims)
    step = max(1, _PIECE // dims)
    for start in range(0, num_rows, step):
        piece = table.rows(start, start + step).read()
        _check_finite(piece, name)
        total += np.asarray(piece.astype(mx.float32)).sum(axis=0, dtype=np.float64)
    return mx.array((total / num_rows).astype(np.float32))


def _trained_on(config_folder: Path | None, before: str) -> str:
    """Return the `data_path` of the training behind `before`, or its `data_paths`; nothing if neither is known."""
    if config_folder is None or not (config_folder / CONFIG_FILE).is_file():
        return ""
    config = read_yaml(config_folder / CONFIG_FILE)
    data_path = config.get("data_path")
    if data_path is None:
        data_path = config.get("data_paths")
        if isinstance(data_path, list) and len(data_path) == 1:
            data_path = data_path[0]
    return "" if data_path is None else f"{before}{shown(data_path)}"


def _check_finite(array: mx.array, name: str) -> None:
    """Raise UserError if an array holds NaN or infinity. In pieces: no second table of 2 GB is made for it."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        if not mx.isfinite(flat[start : start + _PIECE]).all().item():
            raise UserError(
                f"{name} holds NaN or infinity; the run had diverged, or the file is damaged: take an earlier "
                "checkpoint"
            )


def share_weights(head: ACTLossHead, ranks: Ranks) -> None:
    """Set the weights of the models on all ranks to those of rank 0."""
    if ranks.size > 1:
        for name, array in dict(tree_flatten(head.parameters())).items():
            head.load_weights([(name, ranks.share(array))], strict=False)


def start_from(checkpoint: str, head: ACTLossHead, ranks: Ranks, puzzle_emb: LoadPuzzleEmb = "exact") -> None:
    """Load the weights that `checkpoint` names into a model, on all ranks. Only rank 0 reads them.

    It prints a line if the puzzle embeddings are not as stored, see `load_weights`.
    """
    if ranks.first:
        source = find_weights(checkpoint)
        note = load_weights(head, source.tensors(), source.name, source.config_folder, puzzle_emb)
        if note is not None:
            tqdm.write(note)
    share_weights(head, ranks)
