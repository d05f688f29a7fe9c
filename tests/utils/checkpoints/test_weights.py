"""Weights into a model: found by name, bit for bit, and never read into a model that they do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from common.errors import UserError, shown
from models.losses import ACTLossHead
from tests.helpers.checkpoints import write_step
from tests.helpers.configs import pretrain_config, sizes, train_state
from utils.checkpoints import weights
from utils.checkpoints.hub import is_hub_id
from utils.checkpoints.safetensors_file import read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.weights import find_weights, load_weights


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
    assert "embeddings of 5 puzzles, but the data set has 6 identifiers; identifiers belong to the build" in refusal(
        learned, sizes(num_puzzle_identifiers=6)
    )


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
    monkeypatch.setattr(weights, "_FINITE_PIECE", 100)
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
