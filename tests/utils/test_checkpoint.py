"""Checkpoints: whole or not there, found by name, and never read into a model that they do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from models.losses import ACTLossHead
from tests.configs import pretrain_config, sizes, train_state
from utils import checkpoint
from utils.errors import UserError


def weights_of(head: ACTLossHead) -> dict[str, Any]:
    return dict(tree_flatten(head.parameters()))


@pytest.mark.parametrize("forward_dtype", ["float32", "bfloat16"])
def test_weights_come_back_bit_for_bit(tmp_path: Path, forward_dtype: str) -> None:
    config = pretrain_config({"forward_dtype": forward_dtype, "pos_encodings": "learned"})
    saved, other = train_state(config).head, train_state(config.model_copy(update={"seed": 1})).head
    folder = checkpoint.save_weights(saved, tmp_path, 7)
    assert folder == tmp_path / "step_7"
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    checkpoint.load_weights(other, folder)
    for name, array in weights_of(saved).items():
        assert mx.array_equal(array, weights_of(other)[name]), name
        assert array.dtype == weights_of(other)[name].dtype, name


def test_another_dtype_of_the_initial_states_is_converted(tmp_path: Path) -> None:
    """The PyTorch code stores them in bfloat16; a float32 model must read them, and stay a float32 model."""
    low, full = (train_state(pretrain_config({"forward_dtype": dtype})).head for dtype in ("bfloat16", "float32"))
    checkpoint.load_weights(full, checkpoint.save_weights(low, tmp_path, 1))
    assert full.model.inner.H_init.dtype == mx.float32
    assert mx.array_equal(full.model.inner.H_init, low.model.inner.H_init.astype(mx.float32))


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    head = train_state().head
    checkpoint.save_weights(head, tmp_path, 1)
    head.model.inner.q_head.bias = mx.array([1.0, 2.0])
    folder = checkpoint.save_weights(head, tmp_path, 1)
    assert mx.load(str(folder / "model.safetensors"))["model.inner.q_head.bias"].tolist() == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_a_crash_while_saving_leaves_no_step_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """evaluate.py takes a run's newest step: it must not find half a file there after a full disk or a kill."""
    head = train_state().head

    def crash(path: str, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.mx, "save_safetensors", crash)
        with pytest.raises(OSError, match="no space"):
            checkpoint.save_weights(head, tmp_path, 3)
    assert not list(tmp_path.glob("step_*"))
    assert checkpoint.new_checkpoint_path(str(tmp_path)) == tmp_path  # the remains are in nobody's way
    checkpoint.save_weights(head, tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_a_folder_with_steps_is_not_used_again(tmp_path: Path) -> None:
    assert checkpoint.new_checkpoint_path(str(tmp_path / "a" / "b")).is_dir()
    (tmp_path / "a" / "b" / "step_5").mkdir()
    with pytest.raises(UserError, match="holds step_5 of an earlier run; choose another"):
        checkpoint.new_checkpoint_path(str(tmp_path / "a" / "b"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file can't be used"):
        checkpoint.new_checkpoint_path(str(tmp_path / "file"))


def test_the_newest_step_is_found_by_number(tmp_path: Path) -> None:
    for step in (5, 10, 9):
        (tmp_path / f"step_{step}").mkdir()
        (tmp_path / f"step_{step}" / "model.safetensors").touch()
    (tmp_path / "step_10_all_preds.0").mkdir()  # predictions are no checkpoint
    assert checkpoint.find_step_folder(str(tmp_path / "step_9")).name == "step_9"
    with pytest.raises(UserError, match="not a step folder"):
        checkpoint.find_step_folder(str(tmp_path))  # not known as a run's folder without its configuration
    (tmp_path / "all_config.yaml").touch()
    assert checkpoint.find_step_folder(str(tmp_path)).name == "step_10"
    with pytest.raises(UserError, match="not a step folder; expected a name such as step_1000"):
        checkpoint.find_step_folder(str(tmp_path / "step_10_all_preds.0"))


def test_a_run_without_steps_says_so(tmp_path: Path) -> None:
    (tmp_path / "all_config.yaml").touch()
    with pytest.raises(UserError, match=r"holds no step_<N> folder yet"):
        checkpoint.find_step_folder(str(tmp_path))
    (tmp_path / "step_1").mkdir()
    with pytest.raises(UserError, match=re.escape("model.safetensors is missing; the checkpoint is not complete")):
        checkpoint.find_step_folder(str(tmp_path))


def test_weights_of_another_model_are_refused_and_nothing_is_read(tmp_path: Path) -> None:
    def refusal(arch: dict[str, Any], metadata: Any = None) -> str:
        head = train_state(pretrain_config(arch), metadata).head
        before = {name: mx.array(array) for name, array in weights_of(head).items()}
        with pytest.raises(UserError) as error:
            checkpoint.load_weights(head, folder)
        assert all(mx.array_equal(array, weights_of(head)[name]) for name, array in before.items())
        return str(error.value)

    folder = checkpoint.save_weights(train_state(pretrain_config({"pos_encodings": "learned"})).head, tmp_path, 1)
    assert "has the unexpected model.inner.embed_pos.embedding_weight; it was made by" in refusal({})
    learned = {"pos_encodings": "learned"}
    assert "lacks model.inner.L_level.layers.1.mlp.down_proj.weight and 3 more" in refusal(learned | {"L_layers": 2})
    assert "compare the arch keys" in refusal(learned | {"hidden_size": 64, "puzzle_emb_ndim": 64})
    assert "the data set's dataset.json" in refusal(learned, sizes(vocab_size=7))
    assert "(5, 32), the model needs (6, 32); puzzle identifiers belong to the data set" in refusal(
        learned, sizes(num_puzzle_identifiers=6)
    )


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 64], ids=["empty", "text", "binary"])
def test_a_damaged_file_is_a_user_s_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model.safetensors can't be read as safetensors"):
        checkpoint.load_weights(train_state().head, tmp_path)


def test_the_source_is_saved_with_the_weights(tmp_path: Path) -> None:
    """Years later the weights can still be run, whatever became of the repository."""
    checkpoint.save_code(tmp_path)
    models = Path(checkpoint.__file__).parents[1] / "models"
    sources = {str(path.relative_to(models)): path.read_bytes() for path in models.rglob("*.py")}
    copy = tmp_path / "code" / "models"
    assert {str(path.relative_to(copy)): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == sources
