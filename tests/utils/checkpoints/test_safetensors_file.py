"""`.safetensors` files: others can read ours, and a damaged or hostile one ends in one line."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from common.errors import UserError
from utils.checkpoints.safetensors_file import read_metadata, read_safetensors, write_safetensors
from utils.checkpoints.stored_tensors import NUMPY_TYPES, HostTensor, host_tensor


def arrays() -> dict[str, mx.array]:
    """One array of every type, and of every shape that needs care."""
    generator = np.random.default_rng(0)
    found = {
        f"type.{name}": mx.array(generator.integers(0, 2, (3, 5))).astype(
            getattr(mx, {"bool": "bool_"}.get(name, name))
        )
        for name in NUMPY_TYPES
        if name != "float64"
    }
    big = mx.array(generator.standard_normal((1500, 1000)).astype(np.float32))  # several pieces
    return found | {"big": big, "transposed": big[:7].T, "number": mx.array(3), "empty": mx.zeros((0, 4))}


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}


def test_mlx_reads_what_we_write(tmp_path: Path) -> None:
    """The files are an exchange format: one that only we can read would be worth nothing."""
    path, ours = tmp_path / "out.safetensors", arrays()
    write_safetensors(path, {name: host_tensor(array) for name, array in ours.items()}, {"step": "7"})
    loaded: Any = mx.load(str(path), return_metadata=True)
    theirs, metadata = loaded
    assert metadata == {"step": "7"}
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        assert (theirs[name].dtype, theirs[name].shape) == (array.dtype, array.shape)
        assert mx.array_equal(theirs[name], array)


def test_the_safetensors_package_reads_what_we_write(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    path, ours = tmp_path / "out.safetensors", arrays()
    del ours["type.bfloat16"]  # numpy has none
    write_safetensors(path, {name: host_tensor(array) for name, array in ours.items()})
    theirs = package.load_file(path)
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(theirs[name], host_tensor(array).data) for name, array in ours.items())


def test_we_read_what_mlx_writes(tmp_path: Path) -> None:
    path, theirs = tmp_path / "in.safetensors", arrays()
    mx.save_safetensors(str(path), theirs, metadata={"format": "mlx"})
    ours = read_safetensors(path)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        read = ours[name].read()
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert mx.array_equal(read, array)


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    """Checkpoints are trusted by it after a crash."""
    path = tmp_path / "out.safetensors"
    digest = write_safetensors(path, {name: host_tensor(array) for name, array in arrays().items()})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert write_safetensors(path, {}) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_safetensors(path) == {}


def test_tensors_and_header_are_aligned_and_without_gaps(tmp_path: Path) -> None:
    """The format's reference reader refuses gaps; readers that map files need the alignment."""
    path = tmp_path / "out.safetensors"
    write_safetensors(path, {name: host_tensor(array) for name, array in arrays().items()})
    tensors = read_safetensors(path)
    end = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert end % 8 == 0
    for tensor in tensors.values():
        assert tensor.offset == end
        assert tensor.offset % NUMPY_TYPES[tensor.dtype].itemsize == 0
        end += tensor.nbytes
    assert end == path.stat().st_size


def test_the_same_tensors_give_the_same_file_in_any_order(tmp_path: Path) -> None:
    tensors = {name: host_tensor(array) for name, array in arrays().items()}
    digest = write_safetensors(tmp_path / "one", tensors)
    assert digest == write_safetensors(tmp_path / "two", dict(reversed(tensors.items())))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_reported_as_the_system_does() -> None:
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(Path("/dev/full"), {"a": HostTensor("float32", np.zeros(10, np.float32))})


def test_names_and_types_that_the_format_lacks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    data = np.zeros(3, np.float32)
    for tensors in (
        {"__metadata__": HostTensor("float32", data)},
        {"a": HostTensor("complex64", data)},
        {"a": HostTensor("float16", data)},
    ):
        with pytest.raises(ValueError, match="can't be"):
            write_safetensors(tmp_path / "out", tensors)
    assert not list(tmp_path.iterdir())


def test_float64_and_gaps_are_read(tmp_path: Path) -> None:
    header = {"a": entry(dtype="F64", shape=[2], data_offsets=[8, 24]), "__metadata__": {"by": "hand"}}
    path = write_raw(tmp_path / "in", header, bytes(8) + np.array([1.5, -2]).tobytes() + bytes(3))
    assert read_safetensors(path)["a"].read().tolist() == [1.5, -2]


BAD_HEADERS: dict[str, tuple[object, str]] = {
    "not JSON": (b"<html></html>", "can't be read"),
    "bad UTF-8": (b'{"\xff": 1}', "can't be read"),
    "a list": ([], "is a list"),
    "nested without end": (b"[" * 200_000, "nested too deeply"),
    "a number of a million digits": (b'{"a": ' + b"9" * 1_000_000 + b"}", "can't be read"),
    "a name twice": (b'{"a": {}, "a": {}}', "a name occurs twice"),
    "a key twice": (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "a name occurs twice"),
    "tensor is no table": ({"a": 3}, "is described by 3"),
    "unknown type": ({"a": entry(dtype="F8_E4M3")}, "dtype 'F8_E4M3'"),
    "type is a list": ({"a": entry(dtype=["F32"])}, "dtype"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 24]}}, "has shape None"),
    "negative size": ({"a": entry(shape=[-2, -3])}, r"has shape \[-2, -3\]"),
    "fractional size": ({"a": entry(shape=[2.0, 3.0])}, r"has shape \[2.0, 3.0\]"),
    "bool as a size": ({"a": entry(shape=[True, 6])}, "has shape"),
    "axis beyond 32 bits": ({"a": entry(shape=[2**31, 0], data_offsets=[0, 0])}, "has shape"),
    "too many axes": ({"a": entry(shape=[1] * 500)}, "has shape"),
    "size overflows 64 bits": ({"a": entry(shape=[2**30] * 30)}, "doesn't take the 24 bytes"),
    "offsets missing": ({"a": {"dtype": "F32", "shape": []}}, "data_offsets None"),
    "three offsets": ({"a": entry(data_offsets=[0, 24, 48])}, "data_offsets"),
    "offsets backwards": ({"a": entry(data_offsets=[24, 0])}, "data_offsets"),
    "negative offset": ({"a": entry(data_offsets=[-24, 0])}, "data_offsets"),
    "beyond the file": ({"a": entry(data_offsets=[10, 34])}, r"ends at byte"),
    "far beyond the file": ({"a": entry(shape=[2**20] * 2, data_offsets=[0, 2**42])}, r"ends at byte"),
    "offsets and shape disagree": ({"a": entry(shape=[2, 2])}, "doesn't take the 24 bytes"),
    "overlap": (
        {"a": entry(shape=[4], data_offsets=[0, 16]), "b": entry(shape=[3], data_offsets=[12, 24])},
        "'a' and 'b' overlap",
    ),
    "overlap of a tensor within another": (
        {"a": entry(), "b": entry(shape=[1], data_offsets=[4, 8]), "c": entry(shape=[1], data_offsets=[8, 12])},
        "overlap",
    ),
    "a name of two lines": ({"a\nb": entry(shape=[1])}, r"'a\\nb'"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_ends_in_one_line(case: str, tmp_path: Path) -> None:
    header, finding = BAD_HEADERS[case]
    path = write_raw(tmp_path / "weights.safetensors", header, bytes(24))
    with pytest.raises(UserError, match=finding) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**63, 2**64 - 1])
def test_a_header_of_impossible_length_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        read_safetensors(write_raw(tmp_path / "in", {}, length=length))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    with pytest.raises(UserError, match="No such file"):
        read_safetensors(path)
    with pytest.raises(UserError, match="Is a directory"):
        read_safetensors(tmp_path)
    for data in (b"", b"1234567", struct.pack("<Q", 17 << 20) + bytes(8)):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not a whole safetensors file"):
            read_safetensors(path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 17 << 20))
        file.truncate(18 << 20)
    with pytest.raises(UserError, match="at most 16,777,216 are read"):
        read_safetensors(path)


def test_mutated_files_end_in_tensors_within_the_file_or_in_one_line(tmp_path: Path) -> None:
    """Whatever a damaged header says, evaluate.py must not read outside of the file or show a traceback."""
    path = tmp_path / "in.safetensors"
    write_safetensors(path, {name: host_tensor(array) for name, array in arrays().items() if name != "big"})
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    source = random.Random(0)
    refused = read = 0
    cases = int(os.environ.get("HRM_FUZZ_CASES", "300"))
    for _ in range(cases):
        data = bytearray(whole)
        for _ in range(source.randint(1, 3)):
            at, what = source.randrange(start), source.random()
            if what < 0.4:
                data[at] ^= 1 << source.randrange(8)
            elif what < 0.8:
                data[at : at + 1] = bytes([source.choice(b'0123456789-",[]{}')])
            else:
                del data[at : at + source.randrange(20)]
        path.write_bytes(data[: source.randrange(len(data))] if source.random() < 0.1 else data)
        try:
            tensors = read_safetensors(path)
        except UserError as error:
            refused += str(path) in str(error)
        else:
            read += all(tensor.read().shape == tensor.shape for tensor in tensors.values())
    assert refused + read == cases
    assert min(refused, read) > 0


def test_metadata_are_the_texts_of_the_header_whatever_else_stands_there(tmp_path: Path) -> None:
    """A file that says strange things of itself still has its tensors."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": HostTensor("float32", np.ones(1, np.float32))}, {"step": "12"})
    assert read_metadata(path) == {"step": "12"}
    for metadata, found in ((None, {}), ([], {}), ({"step": 5, "format": "pt"}, {"format": "pt"})):
        assert read_metadata(write_raw(tmp_path / "raw", {"__metadata__": metadata})) == found
    assert read_metadata(write_raw(tmp_path / "none", {})) == {}
