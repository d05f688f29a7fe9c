"""Writer and reader of `.safetensors` files: the header's length in eight bytes, the header in JSON, then the tensors.

`mx.save_safetensors` can neither hash what it writes nor run beside training; `mx.load` does not check what it reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TypeGuard

import numpy as np

from common.errors import UserError, shown
from utils.checkpoints.stored_tensors import (
    MAX_DIMENSIONS,
    MAX_SIZE,
    NUMPY_TYPES,
    HostTensor,
    StoredTensor,
    dense_strides,
)

_CODES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}
_TYPES = {code: name for name, code in _CODES.items()}
_METADATA = "__metadata__"
_PIECE_BYTES = 4 << 20  # hashed, then written while it is still in the processor's cache
_MAX_HEADER_BYTES = 16 << 20  # some 100 bytes a tensor: room for 100,000 of them
_REMEDY = "copy or download the file again"


def write_safetensors(path: Path, tensors: Mapping[str, HostTensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors to a file, and sync it to the disk.

    Contiguous tensors are not copied. Uses no MLX, and releases the interpreter while it hashes and writes.

    Args:
        path: the file, which is replaced if it exists.
        tensors: of any shape and of the types that the format has, under their names.
        metadata: texts for the header.

    Returns:
        The hex sha256 of the file.

    Raises:
        OSError: as the system reports it; what was written so far stays.
        ValueError: if the format lacks the type of a tensor, or reserves its name.
    """
    if _METADATA in tensors:
        raise ValueError(f"a tensor can't be named {_METADATA}")
    # Widest elements first, so that each tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].data.itemsize, name))
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        dtype, data = tensors[name].dtype, tensors[name].data
        if dtype not in _CODES or data.dtype != NUMPY_TYPES[dtype]:
            raise ValueError(f"tensor {shown(name)} of type {dtype}, held as {data.dtype}, can't be stored")
        begin, end = end, end + data.nbytes
        header[name] = {"dtype": _CODES[dtype], "shape": list(data.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for piece in _pieces(struct.pack("<Q", len(text)) + text, *(tensors[name].data for name in names)):
            digest.update(piece)
            while piece:
                piece = piece[file.write(piece) :]
        os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(*parts: bytes | np.ndarray) -> Iterator[memoryview]:
    for part in parts:
        data = (
            memoryview(part) if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        )
        for begin in range(0, len(data), _PIECE_BYTES):
            yield data[begin : begin + _PIECE_BYTES]


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a file; only its header is read.

    Args:
        path: a `.safetensors` file.

    Returns:
        Where each tensor lies, under its name, in the order of the header.

    Raises:
        UserError: if the file can't be read, or is not a valid file of this format.
    """
    header, start, size = _read_header(path)
    header.pop(_METADATA, None)
    tensors = {name: _stored_tensor(path, name, entry, start, size) for name, entry in header.items()}
    end, before = start, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if tensor.nbytes and tensor.offset < end:
            raise UserError(f"{path}: tensors {shown(before)} and {shown(name)} overlap in the file; {_REMEDY}")
        end, before = max(end, tensor.offset + tensor.nbytes), name
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts in a file's header.

    Args:
        path: a `.safetensors` file.

    Returns:
        Its `__metadata__`, empty if there is none.

    Raises:
        UserError: if the file can't be read, or its header isn't valid.
    """
    metadata = _read_header(path)[0].get(_METADATA)
    if not isinstance(metadata, dict):
        return {}
    return {name: text for name, text in metadata.items() if isinstance(text, str)}


def _read_header(path: Path) -> tuple[dict[str, object], int, int]:
    """Return the header, the offset at which the tensors begin, and the size of the file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= size - 8:
                raise UserError(
                    f"{path} is not a whole safetensors file: {size:,} bytes, header of {length:,}; {_REMEDY}"
                )
            if length > _MAX_HEADER_BYTES:
                raise UserError(f"{path}: a header of {length:,} bytes; at most {_MAX_HEADER_BYTES:,} are read")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are both ValueErrors
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else shown(str(error))
        raise UserError(f"{path}: its safetensors header can't be read: {reason}; {_REMEDY}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: its safetensors header is a {type(header).__name__}, expected a table of tensors")
    return header, 8 + length, size


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _stored_tensor(path: Path, name: str, entry: object, start: int, size: int) -> StoredTensor:
    """Check the entry of one tensor; `start` is where the tensors begin, `size` where the file ends."""

    def refuse(finding: str) -> UserError:
        return UserError(f"{path}: tensor {shown(name)} {finding}; {_REMEDY}")

    if not isinstance(entry, dict):
        raise refuse(f"is described by {shown(entry)}, expected dtype, shape and data_offsets")
    code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(code, str) or code not in _TYPES:
        raise UserError(f"{path}: tensor {shown(name)} has dtype {shown(code)}, expected one of {', '.join(_TYPES)}")
    if not _is_counts(shape) or len(shape) > MAX_DIMENSIONS or any(axis > MAX_SIZE for axis in shape):
        raise refuse(f"has shape {shown(shape)}, expected at most {MAX_DIMENSIONS} sizes of 0 to {MAX_SIZE:,}")
    if not _is_counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1]:
        raise refuse(f"has data_offsets {shown(offsets)}, expected where it begins and ends")
    begin, end = offsets
    if start + end > size:
        raise refuse(f"ends at byte {start + end:,}, the file at {size:,}")
    needed = prod(shape) * NUMPY_TYPES[_TYPES[code]].itemsize
    if end - begin != needed:
        raise refuse(f"has shape {shown(shape)} of {code}, which doesn't take the {end - begin:,} bytes it has")
    return StoredTensor(path, _TYPES[code], tuple(shape), dense_strides(tuple(shape)), start + begin)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
