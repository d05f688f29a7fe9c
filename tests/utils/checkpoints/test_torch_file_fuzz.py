"""Valid PyTorch files, damaged at random: each is read within its bounds or refused in one line. `HRM_FUZZ_CASES` says
how many are tried; a case depends on its number alone, so that it can be made again."""

from __future__ import annotations

import os
import pickletools
import random
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

from common.errors import UserError
from tests.helpers.torch_files import (
    NEW_TYPES,
    OLD_TYPES,
    SIX,
    End,
    entries_of,
    file_of,
    name,
    no_hooks,
    number,
    parameter,
    pickled,
    storage,
    table,
    tensor,
    torch_file,
    zip_file,
)
from utils.checkpoints.stored_tensors import NUMPY_TYPES
from utils.checkpoints.torch_file import read_torch_file

CASES = int(os.environ.get("HRM_FUZZ_CASES", "400"))
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rope_stablemax" / "step_8"
# As PyTorch does, with each name written once and recalled afterwards.
FUNCTION, KIND, HOOKS = "torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict"


def recalling(pickle: bytes) -> bytes:
    for index, full in enumerate((FUNCTION, KIND, HOOKS)):
        first, *others = pickle.split(name(full))
        pickle = first + name(full) + b"q" + bytes([index]) + (b"h" + bytes([index])).join(others)
    return pickle


VIEWS = recalling(
    pickled(
        table(
            {
                "whole": tensor(),
                "tied": tensor(),
                "transposed": tensor(None, 0, (3, 2), (1, 3)),
                "number": tensor(None, 5, (), ()),
                "empty": tensor(storage(key="1", count=0), 0, (0, 4), (4, 1)),
                "parameter": parameter(tensor(None, 1, (2, 2), (2, 1))),
            },
            no_hooks(),
        )
    )
)
STORAGES = {"0": SIX, "1": b""}
TYPES = torch_file({dtype: (dtype, np.ones((2, 3), NUMPY_TYPES[dtype])) for dtype in (*OLD_TYPES, *NEW_TYPES)})
PLAIN = zip_file(entries_of(pickled(table({"a": tensor()})), STORAGES), End(wide=False))
WHOLE_FILES = [file_of(VIEWS, STORAGES), TYPES, PLAIN]
EDGES = [0, 1, 127, 255, 65535, *(2**31 + i for i in (-1, 0)), 2**32 - 2, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]


def instructions(pickle: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(pickle) if place is not None]
    return [pickle[begin:end] for begin, end in pairwise([*places, len(pickle)])]


INSTRUCTIONS = instructions(VIEWS)


def rearranged(source: random.Random) -> bytes:
    """A pickle of sound instructions, one to three of which are others than they were, or elsewhere."""
    out = list(INSTRUCTIONS)
    for _ in range(source.randint(1, 3)):
        at = source.randrange(len(out))
        what = source.random()
        if what < 0.5:
            at = source.choice([place for place, one in enumerate(out) if one[:1] in b"KMJ\x8a"])
            out[at] = number(source.choice([*EDGES, *(-edge for edge in EDGES), *range(8)]))
        elif what < 0.7:
            out[at] = source.choice(INSTRUCTIONS)
        elif what < 0.8:
            out.insert(at, source.choice(INSTRUCTIONS))
        elif what < 0.9:
            del out[at]
        else:
            other = source.randrange(len(out))
            out[at], out[other] = out[other], out[at]
    return b"".join(out)


def overwritten(data: bytes, source: random.Random) -> bytes:
    """`data` with one to three fields of its zip headers and directory replaced; its length stays."""
    out = bytearray(data)
    headers = [at for at in range(len(data) - 4) if data[at : at + 2] == b"PK"]
    for _ in range(source.randint(1, 3)):
        at = source.choice(headers) + 4 + 2 * source.randrange(26)
        size = source.choice([1, 2, 4, 8])
        value = source.choice([*EDGES, *range(40), len(data), source.choice(headers)])
        out[at : at + size] = struct.pack("<Q", value)[: len(out[at : at + size])]
    return bytes(out)


def damaged(data: bytes, other: bytes, source: random.Random) -> bytes:
    """`data` with one to four random faults, some of them pieces of `other`."""
    out = bytearray(data)
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(out) + 1)
        length = source.choice([1, 2, 4, 8, 30, 200])
        match source.randrange(7):
            case 0 | 1 if out:
                out[at % len(out)] ^= 1 << source.randrange(8)
            case 2 if out:
                out[at % len(out)] = source.randrange(256)
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[at : at + length] * source.randint(1, 3)
            case 5:
                begin = source.randrange(len(other))
                out[at : at + source.randrange(100)] = other[begin : begin + source.randrange(100)]
            case 6 if source.random() < 0.2:
                del out[at:]
    return bytes(out)


def case(index: int) -> bytes:
    """A damaged file, or a sound zip file around a damaged pickle, whose checksum is right."""
    source = random.Random(index)
    if index % 40 == 0:
        return damaged(GOLDEN.read_bytes(), TYPES, source)
    match index % 5:
        case 0:
            return damaged(source.choice(WHOLE_FILES), source.choice(WHOLE_FILES), source)
        case 1:
            return overwritten(source.choice(WHOLE_FILES), source)
        case 2:
            return file_of(damaged(VIEWS, TYPES, source), STORAGES)
        case _:
            return file_of(rearranged(source), STORAGES)


def test_damaged_files_are_read_within_their_bounds_or_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "step_1"
    read = refused = 0
    for index in range(CASES):
        data = case(index)
        path.write_bytes(data)  # the file of a case that fails stays there
        try:
            stored = read_torch_file(path)
        except UserError as error:
            message = str(error)
            refused += message.startswith(str(path)) and message.isprintable() and len(message) < len(str(path)) + 400
            continue
        assert sum(tensor.nbytes for tensor in stored.values()) <= 2 * len(data)
        assert all(0 <= tensor.offset <= tensor.offset + tensor.extent <= len(data) for tensor in stored.values())
        read += all(tensor.read().shape == tensor.shape for tensor in stored.values())
    assert read + refused == CASES, "a message of several lines, or a shape that isn't the one that was told"
    assert min(read, refused) > CASES // 20, "the faults are too mild or too hard to find anything"
