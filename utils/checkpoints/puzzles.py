"""What puzzles a checkpoint's model is for: recorded beside its weights, or told by what lies beside older ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.errors import UserError
from dataset import arc_grids, mazes
from dataset.dataset_files import parse_metadata, read_metadata
from dataset.metadata import PuzzleDatasetMetadata, bare_metadata
from models.act import PUZZLE_EMB
from utils.checkpoints.foreign_config import TrainedConfig
from utils.checkpoints.safetensors_file import read_metadata as read_header
from utils.checkpoints.stored_tensors import StoredTensor
from utils.checkpoints.weights import WeightsSource

PUZZLES = "puzzles"  # the text in the header of a weights file: the `dataset.json` of the test split
_VOCABULARY = "embed_tokens.embedding_weight"
# By the size of the vocabulary: kind, cells and box of the published data sets
_PUBLISHED: dict[int, tuple[str, int, tuple[int, int] | None]] = {
    arc_grids.VOCAB_SIZE: ("arc", arc_grids.SEQ_LEN, None),
    11: ("sudoku", 81, (3, 3)),
    mazes.VOCAB_SIZE: ("maze", 900, None),
}


def puzzles_text(metadata: PuzzleDatasetMetadata) -> str:
    """Return the text of a header that `read_puzzles_of` reads."""
    return metadata.model_dump_json(exclude_defaults=True)


def recorded_puzzles(file: Path) -> str | None:
    """Return the text that a file of weights has in its header; None if it has none."""
    return read_header(file).get(PUZZLES) if file.suffix == ".safetensors" else None


def read_puzzles_of(
    source: WeightsSource, tensors: Mapping[str, StoredTensor], trained: TrainedConfig, data_path: str | None = None
) -> PuzzleDatasetMetadata:
    """Find out what puzzles a model is for.

    In this order: the data set that is named; what is recorded beside the weights; the data set of the training, if it
    is here; and for the published data sets, the sizes of the weights.

    Args:
        source: the weights.
        tensors: what it holds.
        trained: the configuration beside it.
        data_path: a data set of such puzzles, or None.

    Raises:
        UserError: if none of these tells, or one is damaged.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    metadata = _sizes(source, shapes, trained, data_path)
    # of the model's own table: identifiers of another build of the data set are as many as they are
    rows = next((shape[0] for name, shape in shapes.items() if name.endswith(f"{PUZZLE_EMB}.weights")), None)
    if rows is None:
        return metadata
    if metadata.blank_identifier_id >= rows:
        raise UserError(
            f"{source.name} has embeddings of {rows:,} puzzles, but blank_identifier_id is "
            f"{metadata.blank_identifier_id}; give a data set of such puzzles as data_path"
        )
    return metadata.model_copy(update={"num_puzzle_identifiers": rows})


def is_guessed(source: WeightsSource, trained: TrainedConfig, data_path: str | None = None) -> bool:
    """Return whether nothing but the sizes of the weights tells what puzzles a model is for."""
    here = (Path(trained.data_path) / "test").is_dir()
    return data_path is None and recorded_puzzles(source.file) is None and not here


def _sizes(
    source: WeightsSource, shapes: dict[str, tuple[int, ...]], trained: TrainedConfig, data_path: str | None
) -> PuzzleDatasetMetadata:
    if data_path is not None:
        return read_metadata(Path(data_path), "test")
    recorded = recorded_puzzles(source.file)
    if recorded is not None:
        return parse_metadata(recorded, f"{source.file}, its header", "give a data set of such puzzles as data_path")
    if not is_guessed(source, trained):
        return read_metadata(Path(trained.data_path), "test")
    vocab_size = next((shape[0] for name, shape in shapes.items() if name.endswith(_VOCABULARY)), 0)
    if vocab_size not in _PUBLISHED:
        raise UserError(
            f"{source.name} doesn't record what puzzles it is for, and {trained.data_path}, its data set, is not here; "
            "give a data set of such puzzles as data_path=<folder>"
        )
    kind, seq_len, box = _PUBLISHED[vocab_size]
    return bare_metadata(seq_len, vocab_size, kind=kind, box=box)
