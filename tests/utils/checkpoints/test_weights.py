"""Weights into a model: found by name, bit for bit, and never read into a model that they do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from common.errors import UserError, shown
from models.losses import ACTLossHead
from tests.helpers.checkpoints import write_step
from tests.helpers.configs import bits_of, pretrain_config, random_batch, sizes, train_state
from utils.checkpoints import weights
from utils.checkpoints.hub import is_hub_id
from utils.checkpoints.safetensors_file import read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.weights import find_weights, load_weights
from utils.config import LoadPuzzleEmb
from utils.train.state import TrainState


def weights_of(head: ACTLossHead) -> dict[str, mx.array]:
    return dict(tree_flatten(head.parameters()))


def save(head: ACTLossHead, folder: Path) -> Path:
    """Write the weights as a step folder that holds nothing else."""
    folder.mkdir(parents=True)
    tensors = {name: host_tensor(array) for name, array in weights_of(head).items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def load(head: ACTLossHead, folder: Path) -> None:
    source = find_weights(str(folder))
    load_weights(head, source.tensors(), source.name, source.config_folder)


@pytest.mark.parametrize("forward_dtype", ["float32", "bfloat16", "float16"])
def test_weights_come_back_bit_for_bit(tmp_path: Path, forward_dtype: str) -> None:
    config = pretrain_config({"forward_dtype": forward_dtype, "pos_encodings": "learned"})
    saved, other = train_state(config).head, train_state(config.model_copy(update={"seed": 1})).head
    load(other, save(saved, tmp_path / "step_7"))
    for name, array in weights_of(saved).items():
        assert mx.array_equal(array, weights_of(other)[name]), name
        assert array.dtype == weights_of(other)[name].dtype, name


def test_another_dtype_of_the_initial_states_is_converted(tmp_path: Path) -> None:
    """The PyTorch code stores them in bfloat16; a float32 model must read them, and stay a float32 model."""
    low, full = (train_state(pretrain_config({"forward_dtype": dtype})).head for dtype in ("bfloat16", "float32"))
    load(full, save(low, tmp_path / "step_1"))
    assert full.model.inner.H_init.dtype == mx.float32
    assert mx.array_equal(full.model.inner.H_init, low.model.inner.H_init.astype(mx.float32))


def test_the_newest_step_is_found_by_number(tmp_path: Path) -> None:
    for step in (5, 10, 9):
        write_step(tmp_path, step)
    (tmp_path / "step_10_all_preds.0").mkdir()  # predictions are no checkpoint
    (tmp_path / "step_11.damaged").mkdir()
    source = find_weights(str(tmp_path / "step_9"))
    assert (source.file, source.step) == (tmp_path / "step_9" / "model.safetensors", 9)
    assert (source.config_folder, source.output_folder) == (tmp_path, tmp_path)
    with pytest.raises(UserError, match="not a step folder"):
        find_weights(str(tmp_path))  # not known as a run's folder without its configuration
    (tmp_path / "all_config.yaml").touch()
    assert find_weights(str(tmp_path)).step == 10
    with pytest.raises(UserError, match="not a step folder; expected a name such as step_1000"):
        find_weights(str(tmp_path / "step_10_all_preds.0"))


def test_a_run_without_steps_says_so(tmp_path: Path) -> None:
    (tmp_path / "all_config.yaml").touch()
    with pytest.raises(UserError, match=r"holds no step_<N> folder yet"):
        find_weights(str(tmp_path))
    (tmp_path / "step_1").mkdir()
    with pytest.raises(UserError, match=re.escape("model.safetensors is missing; the checkpoint is not complete")):
        find_weights(str(tmp_path))


@pytest.mark.parametrize("path", ["step_3", "run/step_3", "checkpoints/project/run/step_3"])
def test_a_step_folder_that_is_not_here_is_not_asked_for_on_the_hub(path: str) -> None:
    """A slip of the pen in `run/step_3` would be answered with advice on the network."""
    with pytest.raises(UserError, match=f"checkpoint {path} is neither a folder or file here"):
        find_weights(path)


def test_weights_under_a_record_are_compared_with_it(tmp_path: Path) -> None:
    """A bit that flipped on the disk would be evaluated as if it had been trained."""
    folder = write_step(tmp_path, 3)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{file} is damaged")):
        find_weights(str(folder))


def test_weights_of_another_model_are_refused_and_nothing_is_read(tmp_path: Path) -> None:
    def refusal(arch: dict[str, Any], metadata: Any = None) -> str:
        head = train_state(pretrain_config(arch), metadata).head
        before = {name: mx.array(array) for name, array in weights_of(head).items()}
        with pytest.raises(UserError) as error:
            load(head, folder)
        assert all(mx.array_equal(array, weights_of(head)[name]) for name, array in before.items())
        return str(error.value)

    folder = save(train_state(pretrain_config({"pos_encodings": "learned"})).head, tmp_path / "step_1")
    assert "has the unexpected model.inner.embed_pos.embedding_weight; it was made by" in refusal({})
    learned = {"pos_encodings": "learned"}
    assert "lacks model.inner.L_level.layers.1.mlp.down_proj.weight and 3 more" in refusal(learned | {"L_layers": 2})
    assert "compare the arch keys" in refusal(learned | {"hidden_size": 64, "puzzle_emb_ndim": 64})
    assert "the data set's dataset.json" in refusal(learned, sizes(vocab_size=7))
    other_build = refusal(learned, sizes(num_puzzle_identifiers=6))
    assert "embeddings of 5 puzzles, but the data set has 6 identifiers; identifiers belong to the build" in other_build
    assert "load_puzzle_emb=mean" in other_build
    assert "load_puzzle_emb=skip" in other_build


def test_names_from_a_file_are_shown_in_one_short_line(tmp_path: Path) -> None:
    """A name of 900 kB filled the screen, and one with an escape sequence cleared it."""
    state = train_state()
    tensors = {name: host_tensor(array) for name, array in weights_of(state.head).items()}
    for number, name in enumerate(("\x1b[2J", "x" * 900_000)):
        path = tmp_path / f"{number}.safetensors"
        write_safetensors(path, tensors | {name: tensors["model.inner.H_init"]})
        with pytest.raises(UserError, match=rf"has the unexpected {re.escape(shown(name))}; it was made by") as caught:
            load_weights(state.head, read_safetensors(path), "a file")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation would report NaN, or a run go on for hours before it says that its first step was not finite."""
    monkeypatch.setattr(weights, "_PIECE", 100)
    state = train_state()
    for name in ("model.inner.H_init", "model.inner.puzzle_emb.weights"):
        arrays = weights_of(state.head)
        flat = mx.array(arrays[name].reshape(-1))
        flat[-1] = value
        arrays[name] = flat.reshape(arrays[name].shape)
        path = tmp_path / f"{name}.safetensors"
        write_safetensors(path, {key: host_tensor(array) for key, array in arrays.items()})
        with pytest.raises(UserError, match=rf"^a file: {re.escape(name)} holds NaN or infinity"):
            load_weights(train_state().head, read_safetensors(path), "a file")


TABLE = "model.inner.puzzle_emb.weights"


def of_puzzles(count: int, seed: int = 0, **arch: Any) -> TrainState:
    """A training state for a data set of so many puzzles."""
    return train_state(pretrain_config(arch, seed=seed), sizes(num_puzzle_identifiers=count))


def stored_with(folder: Path, table: mx.array | None) -> Path:
    """A file of the weights of `of_puzzles`, with another table, or with none."""
    arrays = weights_of(of_puzzles(5).head)
    del arrays[TABLE]
    if table is not None:
        arrays[TABLE] = table
    path = folder / "weights.safetensors"
    write_safetensors(path, {name: host_tensor(array) for name, array in arrays.items()})
    return path


def load_file(path: Path, state: TrainState, puzzle_emb: LoadPuzzleEmb) -> str | None:
    """Load a file of `stored_with`; all but the table has to be as stored."""
    stored = read_safetensors(path)
    note = load_weights(state.head, stored, "a file", None, puzzle_emb)
    for name, array in weights_of(state.head).items():
        assert name == TABLE or mx.array_equal(array, stored[name].read()), name
    return note


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("puzzles", [1, 3, 7, 5_000])
def test_puzzles_of_another_build_get_the_mean_of_the_stored_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puzzles: int, dtype: mx.Dtype
) -> None:
    """Also of as many puzzles, which may be others. Read three rows at a time, the last piece has one."""
    monkeypatch.setattr(weights, "_PIECE", 100)
    table = mx.random.normal((7, 32), key=mx.random.key(3)).astype(dtype)
    state = of_puzzles(puzzles, seed=1)
    note = load_file(stored_with(tmp_path, table), state, "mean")
    assert note == f"puzzle embeddings: each of the {puzzles:,} rows is the mean of 7 stored ones"
    mean = np.array(table.astype(mx.float32)).mean(axis=0, dtype=np.float64).astype(np.float32)
    assert np.abs(mean).min() > 0
    found = state.head.model.inner.puzzle_emb.weights
    assert found.dtype == mx.float32
    np.testing.assert_array_equal(np.array(found), np.broadcast_to(mean, (puzzles, 32)))


def test_training_and_checkpoints_go_on_from_the_mean(tmp_path: Path) -> None:
    """A table whose rows share memory would change in all of them, or be stored as one."""
    shared, own = (of_puzzles(5) for _ in range(2))
    load_file(stored_with(tmp_path, mx.random.normal((9, 32), key=mx.random.key(3))), shared, "mean")
    load(own.head, save(shared.head, tmp_path / "step_1"))
    assert mx.array_equal(weights_of(own.head)[TABLE], weights_of(shared.head)[TABLE])
    for step in range(3):
        batch = random_batch(step, identifiers=2)
        shared.train_step(batch)
        own.train_step(batch)
    assert bits_of(shared) == bits_of(own)
    table = shared.head.model.inner.puzzle_emb.weights
    assert mx.array_equal(table[2], table[4])
    assert not mx.array_equal(table[1], table[4])


@pytest.mark.parametrize("shape", [None, (7, 32), (5, 32), (7, 8), (32,)], ids=str)
def test_a_table_that_is_skipped_is_not_read(tmp_path: Path, shape: tuple[int, ...] | None) -> None:
    """Fine-tuning on other puzzles: whatever the file has there, were it NaN, the model begins with zeros."""
    path = stored_with(tmp_path, None if shape is None else mx.full(shape, float("nan")))
    state = of_puzzles(1_045, seed=1)
    assert load_file(path, state, "skip") == "puzzle embeddings: not loaded, all 1,045 rows are zero"
    assert mx.array_equal(state.head.model.inner.puzzle_emb.weights, mx.zeros((1_045, 32)))

    without = of_puzzles(5, seed=1, puzzle_emb_ndim=0)
    assert load_file(path, without, "skip") == "puzzle embeddings: not loaded, the model has none"


def test_a_table_as_it_is_needs_no_line(tmp_path: Path) -> None:
    table = mx.random.normal((5, 32), key=mx.random.key(3))
    state = of_puzzles(5, seed=1)
    assert load_file(stored_with(tmp_path, table), state, "exact") is None
    assert mx.array_equal(state.head.model.inner.puzzle_emb.weights, table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, f"a file lacks {TABLE}; it was made by another architecture"),
        (mx.ones((7, 8)), f"a file: {TABLE} has shape (7, 8), the model needs (5, 32)"),
        (mx.ones((7,)), f"a file: {TABLE} has shape (7,), the model needs (5, 32)"),
        (mx.ones((0, 32)), "a file has embeddings of 0 puzzles"),
        (mx.full((7, 32), float("inf")), f"a file: {TABLE} holds NaN or infinity"),
        (mx.concatenate([mx.ones((6, 32)), mx.full((1, 32), float("nan"))]), f"a file: {TABLE} holds NaN or infinity"),
    ],
    ids=["absent", "narrower", "one axis", "empty", "infinite", "last row"],
)
def test_a_table_without_a_fitting_mean_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: mx.array | None, message: str
) -> None:
    monkeypatch.setattr(weights, "_PIECE", 100)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        load_file(stored_with(tmp_path, table), of_puzzles(5), "mean")


def test_the_mean_for_a_model_without_a_table_is_refused(tmp_path: Path) -> None:
    path = stored_with(tmp_path, None)
    with pytest.raises(UserError, match="but the model has no puzzle embeddings; leave load_puzzle_emb out"):
        load_file(path, of_puzzles(5, puzzle_emb_ndim=0), "mean")


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 64], ids=["empty", "text", "binary"])
def test_a_damaged_file_is_a_user_s_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is not a whole safetensors file"):
        load(train_state().head, tmp_path / "step_1")


def test_a_model_on_the_wrong_data_tells_what_it_was_trained_on(tmp_path: Path) -> None:
    """Shapes alone don't tell a user which of the data sets in data/ to name."""
    folder = save(train_state(pretrain_config(), sizes()).head, tmp_path / "step_1")
    (tmp_path / "all_config.yaml").write_text("data_path: data/sudoku-4x4\n")
    for other, part in (
        (sizes(vocab_size=11), "with those of the data set that it was trained on, 'data/sudoku-4x4'"),
        (sizes(num_puzzle_identifiers=7), "give that one as data_path: 'data/sudoku-4x4'"),
    ):
        with pytest.raises(UserError, match=re.escape(part)):
            load(train_state(pretrain_config(), other).head, folder)
    for text, part in (  # as TRM's code writes them
        ("data_paths: [data/sudoku-4x4]", ": 'data/sudoku-4x4'"),
        ("data_paths: [data/a, data/b]", ": ['data/a', 'data/b']"),
        ("{data_path: data/a, data_paths: [data/b]}", ": 'data/a'"),
        ("data_paths: null", ""),
    ):
        (tmp_path / "all_config.yaml").write_text(text)
        with pytest.raises(UserError, match=re.escape(f"give that one as data_path{part};")):
            load(train_state(pretrain_config(), sizes(num_puzzle_identifiers=7)).head, folder)
    (tmp_path / "all_config.yaml").unlink()
    with pytest.raises(UserError, match=r"that it was trained on$"):
        load(train_state(pretrain_config(), sizes(vocab_size=11)).head, folder)


def test_a_path_that_is_not_there_is_told_before_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who mistypes the folder of a run would read about HTTP and tokens."""

    def refuse(hub_id: str) -> None:
        raise UserError(f"{hub_id} as a model on the hub: nothing of that name")

    monkeypatch.setattr(weights, "fetch_checkpoint", refuse)
    assert is_hub_id("checkpoints/demoo")
    with pytest.raises(UserError) as caught:
        find_weights("checkpoints/demoo")
    expected = "checkpoint checkpoints/demoo: no such folder or file here; checkpoints/demoo as a model on the hub: "
    assert str(caught.value).startswith(expected)
