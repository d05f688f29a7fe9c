"""Arrays from anywhere: what numpy writes is read, and what it would stumble over or wait for is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from dataset.npy_file import load_npy


def write(path: Path, header: str, data: bytes = bytes(64), version: bytes = b"\x01\x00") -> Path:
    """A file with a header of one's own."""
    text = header.encode("latin1").ljust(118) + b"\n"
    path.write_bytes(b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data)
    return path


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (), (2, 3, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, ">i4", np.float32, np.bool_])
def test_what_numpy_writes_is_read(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    for name, made in (("c.npy", array), ("fortran.npy", np.asfortranarray(array))):
        np.save(tmp_path / name, made)
        found = load_npy(tmp_path / name)
        assert (found.dtype, found.shape) == (made.dtype, made.shape)
        np.testing.assert_array_equal(found, made)
    if array.size:
        np.testing.assert_array_equal(load_npy(tmp_path / "c.npy", "r"), array)


FORM = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
HOSTILE = {
    "negative size": FORM % ("|u1", "(-64, 16)"),
    "negative in all": FORM % ("|u1", "(-8, -8)"),
    "boolean size": FORM % ("|u1", "(True, 16)"),
    "twenty digits": FORM % ("<i8", "(99999999999999999999, 2)"),
    "product of 2**64": FORM % ("<i8", "(4294967296, 4294967296)"),
    "one byte too many": FORM % ("|u1", "(65,)"),
    "huge text": FORM % ("<U999999999", "(1,)"),
    "float size": FORM % ("|u1", "(64.0,)"),
    "no type": FORM % ("nothing", "(1,)"),
    "objects": FORM % ("|O", "(8,)"),
    "brackets": "[" * 60_000,
    "deep": FORM % ("|u1", "(" * 5_000 + ")" * 5_000),
    "no header": "\0" * 100,
    "text": "'",
    "names": FORM % ("|u1", "(x,)"),
    "unclosed": "{'descr': (",
    "digits": FORM % ("|u1", "(" + "9" * 6_000 + ",)"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_numpy_stumbles_over_are_refused(name: str, tmp_path: Path) -> None:
    """Each ended in a traceback, filled the memory, or was read as something else."""
    path = write(tmp_path / "a.npy", HOSTILE[name])
    for mode in (None, "r"):
        with pytest.raises(ValueError, match=r"^[^\n]{5,250}$") as caught:
            load_npy(path, mode)
        assert str(caught.value).isprintable()


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A pipe was waited for, for ever."""
    os.mkfifo(tmp_path / "pipe.npy")
    np.savez(tmp_path / "zip.npy", a=1)
    os.rename(tmp_path / "zip.npy.npz", tmp_path / "zip.npy")
    write(tmp_path / "later.npy", FORM % ("|u1", "(64,)"), version=b"\x09\x00")
    (tmp_path / "folder.npy").mkdir()
    for name, reason in (
        ("pipe", "no regular file"),
        ("folder", "no regular file"),
        ("zip", "magic"),
        ("later", "format"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_npy(tmp_path / f"{name}.npy")
    with pytest.raises(FileNotFoundError):
        load_npy(tmp_path / "none.npy")
