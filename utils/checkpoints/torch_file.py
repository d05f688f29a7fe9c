"""Reader of state dicts in files of `torch.save`, without PyTorch, and without running anything that is in them.

Such a file is a zip of uncompressed entries: `<root>/data.pkl` describes the tensors, `<root>/data/<key>` are their
numbers. Only the description and the zip's directory are read here, so that gigabytes open at once; a `StoredTensor`
reads its own numbers later. As in PyTorch, their checksums are not compared: a flipped bit in a weight goes unnoticed.
"""

from __future__ import annotations

import os
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeGuard

from common.errors import UserError, shown
from utils.checkpoints.stored_tensors import MAX_DIMENSIONS, MAX_SIZE, NUMPY_TYPES, StoredTensor
from utils.checkpoints.torch_pickle import (
    MAX_PICKLE_BYTES,
    ORDERED_DICT,
    Call,
    Global,
    Reference,
    StateDictError,
    describe,
    parse_pickle,
)
from utils.checkpoints.zip_entries import Span, ZipError, locate, read_directory

_STORAGES = {
    "torch.BFloat16Storage": "bfloat16",
    "torch.HalfStorage": "float16",
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.CharStorage": "int8",
    "torch.ShortStorage": "int16",
    "torch.IntStorage": "int32",
    "torch.LongStorage": "int64",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_TENSOR = "torch._utils._rebuild_tensor_v2"
_TENSOR_OF_NEW_TYPE = "torch._utils._rebuild_tensor_v3"  # for types that came too late for a storage class of their own
_PARAMETER = "torch._utils._rebuild_parameter"
_BYTES = "torch.storage.UntypedStorage"
_DTYPES = {f"torch.{name}": name for name in NUMPY_TYPES}
_KNOWN = frozenset({ORDERED_DICT, _TENSOR, _TENSOR_OF_NEW_TYPE, _PARAMETER, _BYTES, *_STORAGES, *_DTYPES})

_MAX_TENSORS = 4_000  # HRM has some 60
# All tensors together may take this many times the file's size in memory. Tied weights, and views of one storage, count
# each time; without a bound a small file could use its storage 4,000 times.
_MAX_EXPANSION = 2

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that PyTorch wrote before its 1.6
_REMEDY_SAVE = "expected what torch.save(model.state_dict(), …) writes"
_REMEDY_COPY = "copy or download it again"


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a PyTorch state dict; their numbers are not read.

    Args:
        path: a file that `torch.save(model.state_dict(), …)` wrote.

    Returns:
        Where each tensor lies, under its name and in the order of the state dict.

    Raises:
        UserError: if the file can't be read, is damaged or of another kind, or holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except ZipError as error:
        raise UserError(f"{path}: {error}; {_REMEDY_COPY}") from error
    except StateDictError as error:
        raise UserError(f"{path}: {error}; {_REMEDY_SAVE}") from error


def _read(path: Path, file: BinaryIO) -> dict[str, StoredTensor]:
    file_size = os.fstat(file.fileno()).st_size
    head = file.read(512)
    if not head.startswith((b"PK\3\4", b"PK\5\6")):
        raise UserError(f"{path} {_other_kind(head)}")
    entries, directory = read_directory(file)
    root = _root([entry.orig_filename for entry in entries])
    spans = locate(file, entries, directory)
    if f"{root}/byteorder" in spans:
        order = _read_whole(file, spans[f"{root}/byteorder"], 16, "byteorder")
        if order != b"little":
            raise UserError(f"{path} holds numbers in byte order {shown(order)}; save it again on a usual machine")
    pickle = parse_pickle(_read_whole(file, spans[f"{root}/data.pkl"], MAX_PICKLE_BYTES, "data.pkl"), _KNOWN)
    folder = f"{root}/data/"
    data = {name.removeprefix(folder): span for name, span in spans.items() if name.startswith(folder)}
    return _state_dict(path, pickle, data, file_size)


def _other_kind(head: bytes) -> str:
    """Return what a file that is no zip is instead, and the remedy."""
    if not head:
        return f"is empty; {_REMEDY_COPY}"
    if head.startswith(_LEGACY_MAGIC) or head[257:262] == b"ustar":
        return "is in PyTorch's old format; load it and torch.save it again with PyTorch 1.6 or later"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer in place of the file; fetch the file itself with `git lfs pull`"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "is a safetensors file; give it a name that ends in .safetensors"
    if head.lstrip()[:1] == b"<":
        return "is a web page, as a download without permission leaves behind; download the file itself"
    if head.startswith(b"\x80"):
        return f"is a bare pickle; {_REMEDY_SAVE} since PyTorch 1.6"
    return f"is no PyTorch file, it begins with {shown(head[:8])}; {_REMEDY_SAVE}"


def _root(names: list[str]) -> str:
    """Find the folder in the zip that everything is in.

    Raises:
        StateDictError: if there is not exactly one, with what the zip holds instead.
    """
    roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") for name in names):
        raise StateDictError("it is a TorchScript model, with code")
    if len(roots) != 1 or "/" in roots[0]:
        what = "a numpy .npz file" if names and all(name.endswith(".npy") for name in names) else "a zip file"
        held = ", ".join(shown(name, 40) for name in names[:3]) or "nothing"
        raise StateDictError(f"it is {what} that holds {held}{' …' * (len(names) > 3)}, and not one data.pkl")
    stray = [name for name in names if not name.startswith(f"{roots[0]}/")]
    if stray:
        raise StateDictError(f"it is a zip file with {shown(stray[0])} beside the folder {shown(roots[0])}")
    return roots[0]


def _read_whole(file: BinaryIO, span: Span, limit: int, name: str) -> bytes:
    """Read a small entry and compare its CRC, which is 0 where PyTorch was to leave checksums out."""
    if span.size > limit:
        raise ZipError(f"its {name} has {span.size:,} bytes, expected at most {limit:,}")
    file.seek(span.offset)
    data = file.read(span.size)
    if span.crc not in (0, zlib.crc32(data)):
        raise ZipError(f"the checksum of its {name} is wrong")
    return data


def _state_dict(path: Path, pickle: object, data: dict[str, Span], file_size: int) -> dict[str, StoredTensor]:
    if not isinstance(pickle, dict):
        raise StateDictError(f"it holds {describe(pickle)}, not a table of names and tensors")
    if len(pickle) > _MAX_TENSORS:
        raise StateDictError(f"it holds {len(pickle):,} tensors; at most {_MAX_TENSORS:,} are read")
    tensors: dict[str, StoredTensor] = {}
    total = 0
    for name, value in pickle.items():
        if not isinstance(value, Call):
            keys = ", ".join(shown(key, 40) for key in list(pickle)[:5]) + " …" * (len(pickle) > 5)
            found = f"{describe(value)} under {shown(name)}"
            raise StateDictError(f"it holds {found}, where only tensors are expected; its keys are {keys}")
        try:
            tensors[name] = _tensor(path, value, data)
        except StateDictError as error:
            raise StateDictError(f"tensor {shown(name)} {error}") from error
        total += tensors[name].nbytes
        if total > _MAX_EXPANSION * file_size:
            raise StateDictError(f"its tensors take over {_MAX_EXPANSION} times the file's {file_size:,} bytes")
    return tensors


def _tensor(path: Path, call: Call, data: dict[str, Span]) -> StoredTensor:
    """Describe a tensor by the call that would rebuild it.

    Raises:
        StateDictError: if PyTorch would make no such call, or the file doesn't hold the numbers for it.
    """
    function, arguments = call.function, call.arguments
    if function == _PARAMETER and len(arguments) == 3:
        inner, requires_grad, hooks = arguments
        if not isinstance(inner, Call) or inner.function == _PARAMETER or not _is_plain(requires_grad, hooks):
            raise StateDictError("is a parameter in a form that PyTorch doesn't write")
        function, arguments = inner.function, inner.arguments
    dtype = None
    if function == _TENSOR_OF_NEW_TYPE and len(arguments) in (7, 8):
        kind, arguments = arguments[6], arguments[:6] + arguments[7:]
        dtype = _DTYPES.get(kind.name) if isinstance(kind, Global) else None
        if dtype is None:
            raise StateDictError(f"is of type {describe(kind)}, expected one of {', '.join(_DTYPES)}")
    elif function != _TENSOR or len(arguments) not in (6, 7):
        raise StateDictError(f"is made by {function} from {len(arguments)} things")
    storage, first, shape, strides, requires_grad, hooks, *rest = arguments
    if not _is_plain(requires_grad, hooks) or any(extra not in ({}, None) for extra in rest):
        raise StateDictError("has hooks, or is a conjugate or negative view; save a plain copy of it")
    dtype, span = _storage(storage, dtype, data)
    if not (_is_integers(shape) and _is_integers(strides) and type(first) is int):
        raise StateDictError("has a shape, strides or an offset that are not whole numbers")
    form = f"of shape {shown(shape)}, strides {shown(strides)} and offset {shown(first)}"
    if len(shape) != len(strides) or min(first, *shape, *strides, 0) < 0:
        raise StateDictError(f"{form} has negative or missing sizes")
    if len(shape) > MAX_DIMENSIONS or max(shape, default=0) > MAX_SIZE:
        raise StateDictError(f"{form} has more than {MAX_DIMENSIONS} axes, or more than {MAX_SIZE:,} along one")
    item_size = NUMPY_TYPES[dtype].itemsize
    held = span.size // item_size
    if first + (0 if 0 in shape else _reach(shape, strides)) > held:
        raise StateDictError(f"{form} reaches beyond the {held:,} numbers that the file holds for it")
    if prod(shape) > held:
        raise StateDictError(f"{form} repeats the {held:,} numbers that the file holds for it; save a plain copy of it")
    return StoredTensor(path, dtype, shape, strides, span.offset + first * item_size)


def _storage(storage: object, dtype: str | None, data: dict[str, Span]) -> tuple[str, Span]:
    """Find the type and the bytes of a tensor's storage; `dtype` is given where the storage has only bytes."""
    description = storage.description if isinstance(storage, Reference) else None
    if not isinstance(description, tuple) or len(description) != 5 or description[0] != "storage":
        raise StateDictError("has its numbers in a form that PyTorch doesn't write")
    _, kind, key, device, count = description
    if not (isinstance(kind, Global) and isinstance(key, str) and isinstance(device, str) and type(count) is int):
        raise StateDictError("has its numbers in a form that PyTorch doesn't write")
    item_size = 1
    if dtype is None:
        dtype = _STORAGES.get(kind.name)
        if dtype is None:
            raise StateDictError(f"has numbers of kind {kind.name} without a type")
        item_size = NUMPY_TYPES[dtype].itemsize
    elif kind.name != _BYTES:
        raise StateDictError(f"has numbers of kind {kind.name}, expected {_BYTES}")
    if key not in data:
        raise StateDictError(f"has its numbers in entry {shown(key)} of the zip file, which there isn't")
    if data[key].size != count * item_size:
        raise StateDictError(f"has {shown(count)} numbers of {item_size} bytes in {data[key].size:,} bytes")
    return dtype, data[key]


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Count the elements of the storage from the first to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _is_plain(requires_grad: object, hooks: object) -> bool:
    return isinstance(requires_grad, bool) and isinstance(hooks, dict) and not hooks


def _is_integers(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(type(value) is int for value in values)
