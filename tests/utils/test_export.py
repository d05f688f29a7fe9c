"""Weights exported for the PyTorch code: every tensor by its name, bit for bit, never beside a wrong configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import evaluate
from tests.helpers.golden import GOLDEN, KINDS, golden_data
from tests.helpers.torch_files import torch_file
from utils import export
from utils.checkpoints.safetensors_file import read_safetensors
from utils.checkpoints.torch_file import read_torch_file
from utils.checkpoints.weights import find_weights
from utils.config import CONFIG_FILE


def export_here(call_script: Callable[..., tuple[int, str, str]], *arguments: str) -> tuple[int, str, str]:
    return call_script(export, *arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_every_tensor_of_the_pytorch_file_bit_for_bit(
    tmp_path: Path, call_script: Callable[..., tuple[int, str, str]], kind: str
) -> None:
    source, out = GOLDEN / kind / "step_8", tmp_path / "new" / "model.safetensors"
    status, said, err = export_here(call_script, f"checkpoint={source}", f"out={out}")
    assert status == 0, err
    assert str(out) in said
    stored, exported = read_torch_file(source), read_safetensors(out)
    assert exported.keys() == stored.keys()
    for name, tensor in stored.items():
        assert (exported[name].dtype, exported[name].shape) == (tensor.dtype, tensor.shape)
        assert np.array(exported[name].read()).tobytes() == np.array(tensor.read()).tobytes(), name
    assert find_weights(str(out)).tensors().keys() == stored.keys()  # evaluate.py takes it too
    assert (out.parent / CONFIG_FILE).read_text() == (GOLDEN / kind / CONFIG_FILE).read_text()


def test_an_export_can_be_for_a_compiled_model_and_replaces_only_on_request(
    tmp_path: Path, call_script: Callable[..., tuple[int, str, str]]
) -> None:
    source, out = GOLDEN / "rope_stablemax" / "step_0", tmp_path / "model.safetensors"
    arguments = [f"checkpoint={source}", f"out={out}", "prefix=_orig_mod."]
    assert export_here(call_script, *arguments)[0] == 0
    assert read_safetensors(out).keys() == read_torch_file(source).keys()
    status, _, err = export_here(call_script, *arguments)
    assert (status, err.count("\n")) == (1, 1)
    assert "exists; choose another name, or give overwrite=true" in err
    assert export_here(call_script, *arguments, "overwrite=true")[0] == 0
    assert export_here(call_script, f"checkpoint={source}", f"out={tmp_path / 'x.pt'}")[0] == 1
    assert export_here(call_script, f"checkpoint={source}")[0] == 1


def test_an_export_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, call_script: Callable[..., tuple[int, str, str]]
) -> None:
    """A folder would be lost to a file of its name; the format has no place for a tensor named like its header."""
    (tmp_path / "folder.safetensors").mkdir()
    arguments = [f"checkpoint={GOLDEN / 'rope_stablemax' / 'step_0'}", f"out={tmp_path / 'folder.safetensors'}"]
    status, _, err = export_here(call_script, *arguments, "overwrite=true")
    assert (status, err.count("\n")) == (1, 1)
    assert "is a folder; name the file to write" in err
    assert (tmp_path / "folder.safetensors").is_dir()

    (tmp_path / "step_1").write_bytes(torch_file({"__metadata__": ("float32", np.ones(3, np.float32))}))
    status, _, err = export_here(call_script, f"checkpoint={tmp_path / 'step_1'}", f"out={tmp_path}/x.safetensors")
    assert (status, err.count("\n")) == (1, 1)
    assert "step_1 can't be exported: a tensor can't be named __metadata__" in err
    assert {path.name for path in tmp_path.iterdir()} == {"folder.safetensors", "step_1"}


def test_an_export_never_stands_beside_another_models_configuration(
    tmp_path: Path, call_script: Callable[..., tuple[int, str, str]]
) -> None:
    """evaluate.py would rebuild the other model, or the right one with other positions, without a word."""
    first, second = GOLDEN / "rope_stablemax", GOLDEN / "learned_softmax"
    assert export_here(call_script, f"checkpoint={first / 'step_8'}", f"out={tmp_path / 'a.safetensors'}")[0] == 0
    assert export_here(call_script, f"checkpoint={first / 'step_0'}", f"out={tmp_path / 'b.safetensors'}")[0] == 0

    arguments = [f"checkpoint={second / 'step_8'}", f"out={tmp_path / 'c.safetensors'}"]
    status, _, err = export_here(call_script, *arguments)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{tmp_path / CONFIG_FILE} belongs to other weights" in err
    assert (tmp_path / CONFIG_FILE).read_bytes() == (first / CONFIG_FILE).read_bytes()
    names = {"a.safetensors", "b.safetensors", CONFIG_FILE}
    assert {path.name for path in tmp_path.iterdir()} == names

    assert export_here(call_script, *arguments, "overwrite=true")[0] == 0
    assert (tmp_path / CONFIG_FILE).read_bytes() == (second / CONFIG_FILE).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {*names, "c.safetensors"}


def test_an_export_is_evaluated_under_the_step_that_it_was_saved_at(
    tmp_path: Path, call_script: Callable[..., tuple[int, str, str]]
) -> None:
    """All of them at step 0, the predictions of the second file in a folder would replace those of the first."""
    data, _ = golden_data(tmp_path / "data", "rope_stablemax")
    for step in (0, 8):
        out = tmp_path / f"{step}.safetensors"
        source = GOLDEN / "rope_stablemax" / f"step_{step}"
        assert export_here(call_script, f"checkpoint={source}", f"out={out}")[0] == 0
        status, said, err = call_script(evaluate, f"checkpoint={out}", f"data_path={data}")
        assert status == 0, err
        assert json.loads(said.splitlines()[-1])["step"] == step
        assert (tmp_path / f"step_{step}_all_preds.0" / "preds.npy").is_file()


def test_pytorch_takes_an_export_key_by_key(tmp_path: Path, call_script: Callable[..., tuple[int, str, str]]) -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    source, out = GOLDEN / "learned_softmax" / "step_8", tmp_path / "model.safetensors"
    assert export_here(call_script, f"checkpoint={source}", f"out={out}")[0] == 0
    theirs, ours = torch.load(source, weights_only=True), load_file(out)
    model = torch.nn.Module()
    for name, tensor in theirs.items():
        module = model
        *parents, last = name.split(".")
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        module.register_buffer(last, torch.full_like(tensor, 7))
    model.load_state_dict(ours, strict=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
