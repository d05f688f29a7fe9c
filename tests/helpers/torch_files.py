"""Write files as `torch.save` does, by hand and without PyTorch, with a handle on whatever could be wrong in one.

A pickle is put together from the functions below, each of which gives the bytes of one value; `zip_file` puts entries
around it, and `torch_file` does both for a dict of tensors.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

OLD_TYPES = {
    "bfloat16": "BFloat16Storage",
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
NEW_TYPES = ("uint16", "uint32", "uint64")  # those that have no storage class of their own
MARK, TUPLE, REDUCE, BUILD, STOP = b"(", b"t", b"R", b"b", b"."
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tuple_of(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE


def numbers(*values: int) -> bytes:
    return tuple_of(*(number(value) for value in values))


def call(function: str, *arguments: bytes) -> bytes:
    return name(function) + tuple_of(*arguments) + REDUCE


def table(items: Mapping[str, bytes] | Sequence[tuple[bytes, bytes]], start: bytes = b"}") -> bytes:
    pairs = [(text(key), value) for key, value in items.items()] if isinstance(items, Mapping) else items
    return start + MARK + b"".join(key + value for key, value in pairs) + b"u"


def no_hooks() -> bytes:
    return name("collections.OrderedDict") + b")" + REDUCE


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + STOP


def storage(kind: str = "torch.FloatStorage", key: str = "0", count: int = 6, device: str = "cpu") -> bytes:
    return tuple_of(text("storage"), name(kind), text(key), text(device), number(count)) + b"Q"


def tensor(
    numbers_of: bytes | None = None,
    offset: int = 0,
    shape: Sequence[int] = (2, 3),
    strides: Sequence[int] = (3, 1),
    *more: bytes,
    function: str = "torch._utils._rebuild_tensor_v2",
) -> bytes:
    """A tensor of six float32 unless told otherwise; `more` are arguments behind the usual six."""
    parts = (numbers_of or storage(), number(offset), numbers(*shape), numbers(*strides), FALSE, no_hooks(), *more)
    return call(function, *parts)


def parameter(of: bytes) -> bytes:
    return call("torch._utils._rebuild_parameter", of, TRUE, no_hooks())


@dataclass
class Entry:
    """An entry of a zip file. What is None is what it truthfully should be; the rest is written as given."""

    name: str | bytes
    data: bytes
    flags: int = 0x0808  # as PyTorch has it: names in UTF-8, sizes behind the data
    method: int = 0
    crc: int | None = None
    size: int | None = None
    stored_size: int | None = None
    header: int | None = None  # where the directory says that the entry begins
    local_name: str | bytes | None = None
    local_sizes: tuple[int, int] = (0, 0)
    local_flags: int | None = None
    local_extra: bytes = b""
    wide: bool = False  # sizes and place in 64 bits
    extra: bytes = b""

    @property
    def raw_name(self) -> bytes:
        return self.name.encode() if isinstance(self.name, str) else self.name


@dataclass
class End:
    """What closes a zip file, to be written otherwise than it is."""

    wide: bool = True  # PyTorch always writes the 64-bit form as well
    changes: dict[str, int] = field(default_factory=dict)  # count, length, directory, disk, comment
    locator: int | None = None
    comment: bytes = b""


def zip_file(entries: Sequence[Entry], end: End | None = None) -> bytes:
    end = end or End()
    data, directory = bytearray(), bytearray()
    for entry in entries:
        begin = len(data)
        crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
        size = len(entry.data) if entry.size is None else entry.size
        stored_size = len(entry.data) if entry.stored_size is None else entry.stored_size
        header = begin if entry.header is None else entry.header
        local_name = entry.raw_name if entry.local_name is None else entry.local_name
        local_name = local_name.encode() if isinstance(local_name, str) else local_name
        local_flags = entry.flags if entry.local_flags is None else entry.local_flags
        lengths = (len(local_name), len(entry.local_extra))
        data += struct.pack("<4s5H3I2H", b"PK\3\4", 0, local_flags, entry.method, 0, 0, 0, *entry.local_sizes, *lengths)
        data += local_name + entry.local_extra + entry.data
        data += struct.pack("<4s3I", b"PK\7\x08", crc, len(entry.data) & 0xFFFFFFFF, len(entry.data) & 0xFFFFFFFF)
        extra = entry.extra
        if entry.wide:
            extra += struct.pack("<2H3Q", 1, 24, size, stored_size, header)
            size = stored_size = header = 0xFFFFFFFF
        directory += struct.pack("<4s6H", b"PK\1\2", 0, 0, entry.flags, entry.method, 0, 0)
        directory += struct.pack("<3I", crc, stored_size, size)
        directory += struct.pack("<5H2I", len(entry.raw_name), len(extra), 0, 0, 0, 0, header) + entry.raw_name + extra
    values = {"count": len(entries), "length": len(directory), "directory": len(data), "disk": 0} | end.changes
    count, length, begin, disk = (values[key] for key in ("count", "length", "directory", "disk"))
    closing = b""
    if end.wide:
        place = len(data) + len(directory) if end.locator is None else end.locator
        closing += struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0, 0, disk, 0, count, count, length, begin)
        closing += struct.pack("<4sIQI", b"PK\6\7", 0, place, 1)
    comment = values.get("comment", len(end.comment))
    short = (min(count, 0xFFFF), min(count, 0xFFFF), min(length, 0xFFFFFFFF), min(begin, 0xFFFFFFFF), comment)
    return bytes(data + directory) + closing + struct.pack("<4s4H2IH", b"PK\5\6", disk, 0, *short) + end.comment


def entries_of(pickle: bytes, storages: Mapping[str, bytes], root: str = "archive") -> list[Entry]:
    """The entries that PyTorch writes, in its order."""
    return [
        Entry(f"{root}/data.pkl", pickle),
        Entry(f"{root}/byteorder", b"little"),
        *(Entry(f"{root}/data/{key}", data, local_extra=b"FB\1\0Z") for key, data in storages.items()),
        Entry(f"{root}/version", b"3\n"),
    ]


SIX = np.arange(6, dtype=np.float32).tobytes()


def file_of(pickle: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """A sound zip file around a pickle; one storage "0" of six float32, unless told otherwise."""
    return zip_file(entries_of(pickle, {"0": SIX} if storages is None else storages))


def torch_file(tensors: Mapping[str, tuple[str, np.ndarray]]) -> bytes:
    """A state dict of (dtype, contiguous data) as PyTorch's `torch.save(OrderedDict)` would write it."""
    storages, values = {}, {}
    for key, (full_name, (dtype, data)) in enumerate(tensors.items()):
        storages[str(key)] = data.tobytes()
        strides = [stride // data.itemsize for stride in np.ascontiguousarray(data).strides][: data.ndim]
        if dtype in OLD_TYPES:
            of = storage(f"torch.{OLD_TYPES[dtype]}", str(key), data.size)
            values[full_name] = tensor(of, 0, data.shape, strides)
        else:
            of = storage("torch.storage.UntypedStorage", str(key), data.nbytes)
            function = "torch._utils._rebuild_tensor_v3"
            values[full_name] = tensor(of, 0, data.shape, strides, name(f"torch.{dtype}"), function=function)
    versions = table({"_metadata": no_hooks() + text("") + table({"version": number(1)}) + b"s"})
    return file_of(pickled(table(values, no_hooks()) + versions + BUILD), storages)
