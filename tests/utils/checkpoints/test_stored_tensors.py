"""Tensors between memory and files: values exact, snapshots that stay, and no second copy of a big one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from common.errors import UserError
from utils.checkpoints.stored_tensors import NUMPY_TYPES, StoredTensor, dense_strides, host_tensor

ROOT = Path(__file__).resolve().parents[3]
MLX_TYPES = [name for name in NUMPY_TYPES if name != "float64"]


def mlx_type(name: str) -> mx.Dtype:
    return getattr(mx, "bool_" if name == "bool" else name)


@pytest.mark.parametrize("name", MLX_TYPES)
def test_a_tensor_of_every_type_survives_the_way_to_a_file_and_back(name: str, tmp_path: Path) -> None:
    array = mx.array(np.random.default_rng(0).integers(0, 2, (3, 5)) * 3).astype(mlx_type(name))
    held = host_tensor(array)
    assert held.dtype == name
    assert held.data.dtype == NUMPY_TYPES[name]
    path = tmp_path / "file"
    path.write_bytes(b"front" + held.data.tobytes() + b"behind")
    read = StoredTensor(path, name, (3, 5), (5, 1), 5).read()
    assert read.dtype == array.dtype
    assert mx.array_equal(read, array)


def test_the_host_tensor_is_the_arrays_own_memory() -> None:
    """A copy of 27M parameters and their moments would stall training at every checkpoint."""
    for dtype in (mx.float32, mx.bfloat16):
        array = mx.ones((64, 64), dtype=dtype)
        held = host_tensor(array)
        own = np.asarray(array if dtype == mx.float32 else array.view(mx.uint16))
        assert np.shares_memory(held.data, own)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("change", ["assign", "add", "rebind", "drop"])
def test_a_snapshot_stays_whatever_becomes_of_the_array(dtype: mx.Dtype, change: str) -> None:
    """Training goes on while a checkpoint is written: a later value in it could not be told from a right one."""
    array = mx.arange(4096).astype(dtype)
    mx.eval(array)
    held = host_tensor(array)
    before = held.data.copy()
    if change == "assign":
        array[7] = 99
    elif change == "add":
        array += 1
    elif change == "rebind":
        array = array * 2
    mx.eval(array)
    del array
    others = [mx.full((4096,), 5, dtype=dtype) for _ in range(8)]  # would take the memory, were it free
    mx.eval(others)
    assert np.array_equal(held.data, before)


def test_a_compiled_step_that_replaces_the_state_leaves_the_snapshot() -> None:
    state = {"weights": mx.arange(4096).astype(mx.float32)}

    def advance() -> None:
        state["weights"] = state["weights"] * 2 + 1

    step = mx.compile(advance, inputs=state, outputs=state)
    held = host_tensor(state["weights"])
    before = held.data.copy()
    for _ in range(4):
        step()
        mx.eval(state)
    assert np.array_equal(held.data, before)
    assert state["weights"][1].item() == 31


def test_host_tensors_of_views_and_empty_arrays_have_their_values() -> None:
    array = mx.arange(12).reshape(3, 4)
    assert np.array_equal(host_tensor(array.T).data, np.arange(12).reshape(3, 4).T)
    assert np.array_equal(host_tensor(array[1:, ::2]).data, np.arange(12).reshape(3, 4)[1:, ::2])
    assert np.array_equal(host_tensor(mx.broadcast_to(mx.array(3), (2, 2))).data, np.full((2, 2), 3))
    assert host_tensor(mx.zeros((0, 4))).data.shape == (0, 4)
    assert host_tensor(mx.array(2.5)).data.item() == 2.5


def test_types_without_a_name_in_files_are_refused() -> None:
    with pytest.raises(ValueError, match="complex64"):
        host_tensor(mx.zeros(3, dtype=mx.complex64))


@pytest.mark.parametrize("name", list(NUMPY_TYPES))
def test_transposed_and_sliced_tensors_are_gathered(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    grid = np.arange(20).reshape(4, 5) % 3
    array = mx.array(grid).astype(mx.float32 if name == "float64" else mlx_type(name))
    raw = grid.astype(np.float64) if name == "float64" else host_tensor(array).data
    path.write_bytes(b"\1" + raw.tobytes())  # one byte off, so that nothing is aligned
    size = raw.itemsize
    assert mx.array_equal(StoredTensor(path, name, (5, 4), (1, 5), 1).read(), array.T)
    assert mx.array_equal(StoredTensor(path, name, (2, 3), (10, 2), 1).read(), array[::2, ::2])
    assert mx.array_equal(StoredTensor(path, name, (3,), (5,), 1 + 6 * size).read(), array[1:, 1])
    assert mx.array_equal(StoredTensor(path, name, (2, 5), (0, 1), 1).read(), mx.stack([array[0], array[0]]))


def test_strides_of_axes_of_one_element_do_not_matter(tmp_path: Path) -> None:
    tensor = StoredTensor(tmp_path / "file", "float32", (1, 3, 1), (999, 1, 77), 0)
    (tmp_path / "file").write_bytes(np.arange(3, dtype=np.float32).tobytes())
    assert tensor.contiguous
    assert tensor.extent == tensor.nbytes == 12
    assert tensor.read().tolist() == [[[0], [1], [2]]]


@pytest.mark.parametrize("strides", [(4, 1), (1, 6)], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
def test_rows_are_a_part_of_the_tensor(name: str, strides: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"front" + np.arange(24).astype(NUMPY_TYPES[name]).tobytes())
    tensor = StoredTensor(path, name, (6, 4), strides, 5)
    whole = tensor.read()
    for start, stop in ((0, 2), (3, 4), (4, 9)):
        assert mx.array_equal(tensor.rows(start, stop).read(), whole[start:stop])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="shorter than when it was opened"):
        tensor.rows(5, 6).read()


def test_float64_is_read_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(np.array([1 / 3, 1e300, -0.0, np.nan]).tobytes())
    read = StoredTensor(path, "float64", (4,), (1,), 0).read()
    assert read.dtype == mx.float32
    assert np.array_equal(np.asarray(read), np.array([1 / 3, np.inf, -0.0, np.nan], np.float32), equal_nan=True)


def test_bytes_that_are_no_bools_are_read_as_true(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes([0, 1, 2, 255]))
    read = StoredTensor(path, "bool", (4,), (1,), 0).read()
    assert host_tensor(read).data.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_empty_tensors_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(np.float32(2.5).tobytes())
    assert StoredTensor(path, "float32", (), (), 0).read().item() == 2.5
    for shape in ((0,), (3, 0, 2)):
        read = StoredTensor(path, "bfloat16", shape, dense_strides(shape), 4).read()
        assert (read.shape, read.dtype) == (shape, mx.bfloat16)
    (tmp_path / "nothing").touch()
    assert StoredTensor(tmp_path / "nothing", "int64", (0,), (1,), 0).read().size == 0


@pytest.mark.parametrize("strides", [(5, 1), (1, 4)])
def test_a_file_that_shrank_or_went_is_named(strides: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(79))
    with pytest.raises(UserError, match=r"weights is shorter than when it was opened.*byte 80"):
        StoredTensor(path, "float32", (4, 5), strides, 0).read()
    path.unlink()
    with pytest.raises(UserError, match=r"weights can't be read: No such file"):
        StoredTensor(path, "float32", (4, 5), strides, 0).read()


def test_a_tensor_that_the_gpu_has_no_room_for_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").write_bytes(bytes(8))

    def refuse(_: mx.array) -> None:
        raise RuntimeError("[metal::malloc] Attempting to allocate 8 bytes")  # as MLX does there

    monkeypatch.setattr(mx, "eval", refuse)
    with pytest.raises(UserError, match=r"weights: no memory for a tensor of 0 MB: \[metal"):
        StoredTensor(tmp_path / "weights", "float32", (2,), (1,), 0).read()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_reading_takes_the_tensors_own_size_of_memory(dtype: str, tmp_path: Path) -> None:
    """A second copy of the 2 GB of ARC's puzzle embeddings is what an 8 GB laptop doesn't have."""
    rows = (192 << 20) // 512 // NUMPY_TYPES[dtype].itemsize
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(192 << 20)
    program = f"""
        from pathlib import Path
        import mlx.core as mx
        from utils.checkpoints.stored_tensors import StoredTensor
        def memory(kind):
            return int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) >> 10
        mx.eval(mx.zeros(10).view(mx.uint32))
        before = memory("VmRSS")
        array = StoredTensor(Path({str(path)!r}), {dtype!r}, ({rows}, 512), (512, 1), 0).read()
        print(memory("VmHWM") - before)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert 190 <= int(out) <= 192 + 24
