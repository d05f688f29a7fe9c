"""Finder of the uncompressed entries of an untrusted zip file. `zipfile` reads the directory; nothing is extracted.

Each entry is within the file, apart from the others, and described alike in front of its data and in the directory.
"""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

from common.errors import shown

_END = struct.Struct("<4s4H2IH")  # closes the file: …, entries on this disk, entries, …, length of the comment
_HEADER = struct.Struct("<4s5H3I2H")  # in front of an entry's data, before its name: what the directory has of it

_ENCRYPTED = 0x0001 | 0x0040 | 0x2000  # the bits of three kinds of encryption
_SIZES_FOLLOW = 0x0008  # the header in front has no sizes, they come after the data; so PyTorch writes
_UTF8 = 0x0800
_MAX_ENTRIES = 10_000  # one a tensor; HRM has some 60
_MAX_DIRECTORY_BYTES = 2 << 20  # twice what they take


class ZipError(ValueError):
    """What is wrong with a zip file, in words that follow its name."""


@dataclass(frozen=True)
class Span:
    """The bytes of an entry in the file, and the CRC-32 that they should have."""

    offset: int
    size: int
    crc: int


class _Bounded:
    """A file for `zipfile` that refuses large reads, whatever length its directory claims to have."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1, /) -> bytes:
        if size > _MAX_DIRECTORY_BYTES:
            raise ZipError(f"a zip directory of {size:,} bytes; at most {_MAX_DIRECTORY_BYTES:,} are read")
        return self.file.read(size)


def read_directory(file: BinaryIO) -> tuple[list[zipfile.ZipInfo], int]:
    """Read the directory of a zip file; `locate` checks its entries.

    Args:
        file: the zip file.

    Returns:
        The entries as the directory describes them, and where it begins.

    Raises:
        ZipError: if there is no directory, or it is damaged.
    """
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            entries, begin, comment = archive.infolist(), archive.start_dir, archive.comment
    except ZipError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise ZipError(f"its zip directory is damaged or cut short: {shown(str(error))}") from error
    if len(entries) > _MAX_ENTRIES:
        raise ZipError(f"a zip directory of {len(entries):,} entries; at most {_MAX_ENTRIES:,} are read")
    # zipfile takes the last end that it finds, and neither counts the entries nor refuses files in several parts.
    end = _read(file, os.fstat(file.fileno()).st_size - _END.size - len(comment), _END.size)
    signature, disk, first_disk, here, count, _, _, comment_length = _END.unpack(end)
    if signature != b"PK\5\6" or comment_length != len(comment):
        raise ZipError("its zip directory doesn't end where the file does")
    if disk != 0 or first_disk != 0 or not here == count == len(entries):
        counted = f"{count:,} on {disk + 1:,} disks"
        raise ZipError(f"its zip directory has {len(entries):,} entries, but the end of the file counts {counted}")
    return entries, begin


def locate(file: BinaryIO, entries: list[zipfile.ZipInfo], limit: int) -> dict[str, Span]:
    """Find the data of each entry.

    Args:
        file: the zip file.
        entries: what its directory holds.
        limit: where the directory begins; all data has to lie before it.

    Returns:
        The entries' data by name, in the order of the directory.

    Raises:
        ZipError: if an entry is compressed or encrypted, has no plain path for a name, reaches beyond `limit` or into
            another, occurs twice, or is described differently in front of its data.
    """
    spans: dict[str, Span] = {}
    end, before = 0, ""
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        full_name = entry.orig_filename  # `filename` ends at a NUL
        name, parts = shown(full_name), full_name.split("/")
        if "" in parts or "." in parts or ".." in parts or any(sign in full_name for sign in "\\:\0"):
            raise ZipError(f"an entry is named {name}, which is no plain path")
        if full_name in spans:
            raise ZipError(f"there are two entries named {name}")
        if entry.flag_bits & _ENCRYPTED:
            raise ZipError(f"entry {name} is encrypted")
        if entry.compress_type != zipfile.ZIP_STORED:
            method = entry.compress_type
            raise ZipError(f"entry {name} is compressed (method {method}); PyTorch stores tensors as they are")
        if entry.compress_size != entry.file_size:
            sizes = f"{entry.compress_size:,} bytes, and {entry.file_size:,} unpacked"
            raise ZipError(f"entry {name} has {sizes}, uncompressed")
        beyond = ZipError(
            f"entry {name} of {entry.file_size:,} bytes at {entry.header_offset:,} reaches beyond the file's data, "
            f"bytes 0 to {limit:,}"
        )
        if not 0 <= entry.header_offset <= limit - _HEADER.size - entry.file_size:
            raise beyond
        if entry.header_offset < end:
            raise ZipError(f"entries {shown(before)} and {name} overlap in the file")
        begin = _data_begin(file, entry)
        end, before = begin + entry.file_size, full_name
        if end > limit:
            raise beyond
        spans[full_name] = Span(begin, entry.file_size, entry.CRC)
    return {entry.orig_filename: spans[entry.orig_filename] for entry in entries}


def _data_begin(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Find where an entry's data begins, behind the header in front of it."""
    header = _HEADER.unpack(_read(file, entry.header_offset, _HEADER.size))
    signature, _, flags, method, _, _, _, stored, size, name_length, extra_length = header
    name_begin = entry.header_offset + _HEADER.size
    name = entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437")
    if signature != b"PK\3\4" or _read(file, name_begin, name_length) != name:
        raise ZipError(f"entry {shown(entry.orig_filename)} is not where the zip directory has it")
    # Sizes that follow the data are 0 here, those in 64 bits 0xFFFFFFFF.
    possible = {entry.file_size, 0xFFFFFFFF, 0 if flags & _SIZES_FOLLOW else entry.file_size}
    if (flags, method) != (entry.flag_bits, entry.compress_type) or not {stored, size} <= possible:
        differing = "is described in two ways, in front of it and in the zip directory"
        raise ZipError(f"entry {shown(entry.orig_filename)} {differing}")
    return name_begin + name_length + extra_length


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    data = file.read(length)
    if len(data) < length:
        raise ZipError("it is cut short")
    return data
