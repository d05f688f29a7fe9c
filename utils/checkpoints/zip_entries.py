"""Where the uncompressed entries of a zip file lie. Nothing is extracted, and nothing taken on trust: each entry lies
within the file, apart from the others, and is described alike in both places that describe it."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from common.errors import shown

_END = struct.Struct("<4s4H2IH")  # closes the file: …, entries here, entries, bytes and place of the directory, comment
_END64 = struct.Struct("<4sQ2H2I4Q")  # the same in 64 bits; PyTorch always writes both
_LOCATOR64 = struct.Struct("<4sIQI")  # between them: where the 64-bit one lies
_ENTRY = struct.Struct("<4s6H3I5H2I")  # one line of the directory, before its name, its extra fields and its comment
_HEADER = struct.Struct("<4s5H3I2H")  # the same again in front of the entry's data

_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # the bits of three ways to do so
_SIZES_FOLLOW = 0x0008  # the header in front has no sizes, they come after the data; so PyTorch writes
_MAX_COMMENT = 0xFFFF
_MAX_ENTRIES = 10_000  # one a tensor; the HRM has some 60
_MAX_DIRECTORY_BYTES = 2 << 20  # twice what they take


class ZipError(ValueError):
    """What is wrong with a zip file, in words to be put behind its name."""


@dataclass(frozen=True)
class ZipEntry:
    """An entry as the directory describes it. `header` is where the header in front of its data begins."""

    name: str
    flags: int
    method: int
    crc: int
    stored_size: int
    size: int
    header: int


@dataclass(frozen=True)
class Span:
    """The bytes of an entry in the file, and the CRC-32 that they should have."""

    offset: int
    size: int
    crc: int


def read_directory(file: BinaryIO) -> tuple[list[ZipEntry], int]:
    """The directory of a zip file, as written, and where it begins; `locate` checks what it says.

    Raises:
        ZipError: if there is none, or it contradicts itself.
    """
    count, directory, length = _find_directory(file)
    if count > _MAX_ENTRIES or length > _MAX_DIRECTORY_BYTES:
        raise ZipError(f"a zip directory of {count:,} entries in {length:,} bytes; at most {_MAX_ENTRIES:,} are read")
    data = _read(file, directory, length)
    entries = []
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > length:
            raise ZipError("its zip directory ends before its last entry")
        fields = _ENTRY.unpack_from(data, at)
        signature, _, _, flags, method, _, _, crc, stored, size, *lengths, disk, _, _, header = fields
        name_end = at + _ENTRY.size + lengths[0]
        extra_end = name_end + lengths[1]
        end = extra_end + lengths[2]
        if signature != b"PK\1\2" or disk != 0 or end > length:
            raise ZipError("its zip directory is damaged")
        try:
            name = data[at + _ENTRY.size : name_end].decode()
        except UnicodeDecodeError as error:
            raise ZipError(f"an entry's name is not UTF-8: {shown(error.object)}") from error
        size, stored, header = _in_64_bits(name, [size, stored, header], data[name_end:extra_end])
        entries.append(ZipEntry(name, flags, method, crc, stored, size, header))
        at = end
    if at != length:
        raise ZipError("its zip directory holds more than it says")
    return entries, directory


def locate(file: BinaryIO, entries: list[ZipEntry], limit: int) -> dict[str, Span]:
    """Where the data of each entry lies, by name; all of it has to lie before `limit`.

    Raises:
        ZipError: if an entry is compressed or encrypted, has a name that no plain file could have, reaches beyond
            `limit` or into another, occurs twice, or is described otherwise in front of its data.
    """
    spans: dict[str, Span] = {}
    end, before = 0, ""
    for entry in sorted(entries, key=lambda entry: entry.header):
        name = shown(entry.name)
        parts = entry.name.split("/")
        if "" in parts or "." in parts or ".." in parts or any(sign in entry.name for sign in "\\:\0"):
            raise ZipError(f"an entry is named {name}, which is no plain path")
        if entry.name in spans:
            raise ZipError(f"there are two entries named {name}")
        if entry.flags & _ENCRYPTED:
            raise ZipError(f"entry {name} is encrypted")
        if entry.method != 0:
            raise ZipError(f"entry {name} is compressed (method {entry.method}); PyTorch stores tensors as they are")
        if entry.stored_size != entry.size:
            raise ZipError(f"entry {name} has {entry.stored_size:,} bytes, and {entry.size:,} unpacked, uncompressed")
        if entry.header < end:
            raise ZipError(f"entries {shown(before)} and {name} overlap in the file")
        beyond = ZipError(f"entry {name} of {entry.size:,} bytes reaches beyond {limit:,}, where the zip directory is")
        if entry.header + _HEADER.size + entry.size > limit:
            raise beyond
        begin = _data_begin(file, entry)
        end, before = begin + entry.size, entry.name
        if end > limit:
            raise beyond
        spans[entry.name] = Span(begin, entry.size, entry.crc)
    return {entry.name: spans[entry.name] for entry in entries}


def _find_directory(file: BinaryIO) -> tuple[int, int, int]:
    """(number of entries, where the directory begins, its length in bytes)"""
    size = os.fstat(file.fileno()).st_size
    tail_begin = max(0, size - _END.size - _MAX_COMMENT)
    tail = _read(file, tail_begin, size - tail_begin)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(tail):
        raise ZipError("there is no zip directory at its end; it is cut short")
    _, disk, first_disk, here, count, length, directory, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise ZipError("its zip directory doesn't end where the file does")
    end = tail_begin + at
    if end >= _LOCATOR64.size + _END64.size:
        signature, locator_disk, end64, disks = _LOCATOR64.unpack(_read(file, end - _LOCATOR64.size, _LOCATOR64.size))
        if signature == b"PK\6\7":
            if locator_disk != 0 or disks > 1 or end64 != end - _LOCATOR64.size - _END64.size:
                raise ZipError("the 64-bit end of its zip directory is not where it should be")
            end = end64
            fields = _END64.unpack(_read(file, end64, _END64.size))
            signature, rest, _, _, disk, first_disk, here, count, length, directory = fields
            if signature != b"PK\6\6" or rest != _END64.size - 12:
                raise ZipError("the 64-bit end of its zip directory is damaged")
    if disk != 0 or first_disk != 0 or here != count:
        raise ZipError("it is one part of a zip file in several parts")
    if directory + length != end:
        raise ZipError(f"its zip directory of {length:,} bytes at {directory:,} doesn't end at {end:,}, as it should")
    return count, directory, length


def _in_64_bits(name: str, values: list[int], extra: bytes) -> list[int]:
    """Replace those of `values` that had no room in 32 bits by those in the extra field numbered 1."""
    if 0xFFFFFFFF not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if number == 1 and 8 * values.count(0xFFFFFFFF) <= length <= len(extra) - at:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at))
            return [next(wide) if value == 0xFFFFFFFF else value for value in values]
        at += length
    raise ZipError(f"entry {shown(name)} lacks its 64-bit sizes")


def _data_begin(file: BinaryIO, entry: ZipEntry) -> int:
    """Where the data behind the header in front of it begins."""
    header = _HEADER.unpack(_read(file, entry.header, _HEADER.size))
    signature, _, flags, method, _, _, _, stored, size, name_length, extra_length = header
    name_begin = entry.header + _HEADER.size
    if signature != b"PK\3\4" or _read(file, name_begin, name_length) != entry.name.encode():
        raise ZipError(f"entry {shown(entry.name)} is not where the zip directory says")
    # Sizes that follow the data are 0 here, those in 64 bits 0xFFFFFFFF.
    possible = {entry.size, 0xFFFFFFFF, 0 if flags & _SIZES_FOLLOW else entry.size}
    if (flags, method) != (entry.flags, entry.method) or not {stored, size} <= possible:
        raise ZipError(f"entry {shown(entry.name)} is described in two ways, in front of it and in the zip directory")
    return name_begin + name_length + extra_length


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise ZipError("it is cut short")
    return data
