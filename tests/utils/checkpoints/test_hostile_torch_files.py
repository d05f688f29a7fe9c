"""Files that want to run code, to fill memory or to reach outside of themselves: each ends in one line, without more
happening. A checkpoint is downloaded from strangers; opening it must be as safe as opening a picture."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from tests.helpers.torch_files import (
    BUILD,
    FALSE,
    MARK,
    NONE,
    REDUCE,
    SIX,
    TUPLE,
    End,
    Entry,
    call,
    entries_of,
    file_of,
    name,
    no_hooks,
    number,
    numbers,
    parameter,
    pickled,
    storage,
    table,
    tensor,
    text,
    tuple_of,
    zip_file,
)
from utils.checkpoints.torch_file import read_torch_file
from utils.checkpoints.torch_pickle import MAX_INSTRUCTIONS, MAX_PICKLE_BYTES

MEMORY = 64 << 20  # bytes that a hostile file may make us allocate; the largest of them has 10 MB

Builder = Callable[[str], bytes]


def state(value: bytes) -> bytes:
    return pickled(table({"model.weight": value}))


def of(value: bytes) -> Builder:
    """A sound file, of a state dict whose only tensor is `value`."""
    return lambda command: file_of(state(value))


def plain(whole: bytes) -> Builder:
    """A sound file around a whole pickle."""
    return lambda command: file_of(whole)


def running(payload: Callable[[str], bytes]) -> Builder:
    """A sound file with a pickle that runs a command, were it given to `pickle.loads`."""
    return lambda command: file_of(pickled(payload(command)))


# --- Pickles that run a command. `test_the_payloads_are_live` makes sure that they would.

PAYLOADS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "os.system": (lambda command: call("os.system", text(command)), "has the name 'os.system'"),
    "posix.system": (lambda command: call("posix.system", text(command)), "has the name 'posix.system'"),
    "subprocess": (lambda command: call("subprocess.getoutput", text(command)), "has the name 'subprocess.getoutput'"),
    "builtins.eval": (
        lambda command: call("builtins.eval", text(f"__import__('os').system({command!r})")),
        r"has the name 'builtins\.eval'",
    ),
    "builtins.exec": (
        lambda command: call("builtins.exec", text(f"import os; os.system({command!r})")),
        r"has the name 'builtins\.exec'",
    ),
    "__builtin__ of Python 2": (
        lambda command: call("__builtin__.eval", text(f"__import__('os').system({command!r})")),
        r"has the name '__builtin__\.eval'",
    ),
    "getattr of a module": (
        lambda command: (
            (name("builtins.getattr") + tuple_of(call("builtins.__import__", text("os")), text("system")) + REDUCE)
            + tuple_of(text(command))
            + REDUCE
        ),
        r"has the name 'builtins\.getattr'",
    ),
    "within a tensor's arguments": (
        lambda command: tuple_of(number(0), number(0), call("os.system", text(command))),
        "has the name 'os.system'",
    ),
    "as a key": (
        lambda command: table([(call("os.system", text(command)), number(1))]),
        "has the name 'os.system'",
    ),
    "within metadata": (
        lambda command: tuple_of(table({"_metadata": call("os.system", text(command))})),
        "has the name 'os.system'",
    ),
    "called by INST": (
        lambda command: MARK + text(command) + b"ios\nsystem\n",
        "instruction INST",
    ),
    "called by OBJ": (
        lambda command: MARK + name("os.system") + text(command) + b"o",
        "has the name 'os.system'",
    ),
    "named by STACK_GLOBAL": (
        lambda command: text("os") + text("system") + b"\x93" + tuple_of(text(command)) + REDUCE,
        "instruction STACK_GLOBAL",
    ),
    "after the stack was emptied": (
        lambda command: number(1) + b"0" + call("os.system", text(command)),
        "instruction POP",
    ),
}


@pytest.mark.parametrize("case", PAYLOADS)
def test_the_payloads_are_live(case: str, tmp_path: Path) -> None:
    """If they could do nothing, the tests below would prove nothing."""
    canary = tmp_path / "canary"
    pickle.loads(pickled(PAYLOADS[case][0](f"touch '{canary}'")))
    assert canary.exists()


# --- Pickles that misuse what a state dict may hold.

DEEP = 30_000
SHARED = b"q\1" + b"h\1\x86q\1" * 200  # a tuple of 2**200 leaves in 200 pairs

BIG = tensor(storage(count=6_000), 0, (6_000,), (1,))

PICKLES: dict[str, tuple[Builder, str]] = {
    "a refused name that is never called": (of(name("os.system")), "has the name 'os.system'"),
    "a name within a known module": (of(name("torch.load")), "has the name 'torch.load'"),
    "a dotted name": (of(b"ctorch\n_utils._rebuild_tensor_v2.__globals__\n"), "has the name 'torch._utils._reb"),
    "a known name split elsewhere": (of(b"c\ntorch.FloatStorage\n"), r"has the name '\.torch\.FloatStorage'"),
    "a name of two lines": (of(b"ca\rb\nc\x85d\n"), "'ascii' codec can't decode byte 0x85"),
    "reduce of a text": (of(text("os.system") + tuple_of(text("x")) + REDUCE), "calls a value of type str"),
    "reduce of a reduce": (of(tensor() + b")" + REDUCE), "calls a tensor"),
    "reduce without a tuple": (of(name("torch._utils._rebuild_tensor_v2") + text("x") + REDUCE), "calls the name"),
    "OrderedDict from a list": (of(call("collections.OrderedDict", b"]")), "makes an OrderedDict"),
    "a storage class called": (of(call("torch.FloatStorage", number(1 << 40))), "is made by torch.FloatStorage"),
    "a dtype called": (of(call("torch.float32")), "is made by torch.float32"),
    "too few arguments": (of(call("torch._utils._rebuild_tensor_v2", storage())), "from 1 things"),
    "a parameter of a parameter": (of(parameter(parameter(tensor()))), "is a parameter in a form"),
    "a parameter of a number": (of(parameter(number(3))), "is a parameter in a form"),
    "BUILD on a tensor": (of(tensor() + table({"_metadata": b"}"}) + BUILD), "sets attributes of a tensor"),
    "BUILD on a plain dict": (of(b"}" + table({"_metadata": b"}"}) + BUILD), "sets attributes of a table"),
    "BUILD of __dict__": (of(no_hooks() + table({"__class__": b"}"}) + BUILD), "sets attributes of a table"),
    "BUILD of a slot state": (
        of(no_hooks() + tuple_of(NONE, table({"_metadata": b"}"})) + BUILD),
        "sets attributes of a table",
    ),
    "NEWOBJ": (of(name("collections.OrderedDict") + b")\x81"), "instruction NEWOBJ"),
    "NEWOBJ_EX": (of(name("collections.OrderedDict") + b")}\x92"), "instruction NEWOBJ_EX"),
    "EXT1": (of(b"\x82\1"), "instruction EXT1"),
    "EXT4": (of(b"\x84\1\0\0\0"), "instruction EXT4"),
    "a persistent id in text": (of(b"P../../../etc/passwd\n"), "instruction PERSID"),
    "a persistent id that is no tuple": (of(tensor(text("../../etc/passwd") + b"Q")), "in a form that PyTorch doesn't"),
    "a persistent id that is a number": (of(tensor(number(3) + b"Q")), "in a form that PyTorch doesn't"),
    "a persistent id that can't be hashed": (of(tensor(b"]Q")), "in a form that PyTorch doesn't"),
    "a persistent id of four": (of(tensor(tuple_of(*[text("storage")] * 4) + b"Q")), "in a form that PyTorch doesn't"),
    "a persistent id of a module": (
        of(tensor(tuple_of(text("module"), name("torch.FloatStorage"), text("0"), text("cpu"), number(6)) + b"Q")),
        "in a form that PyTorch doesn't",
    ),
    "a key that is a path": (of(tensor(storage(key="../../../../etc/passwd"))), "'../../../../etc/passwd' of the zip"),
    "a key that is absolute": (of(tensor(storage(key="/etc/passwd"))), "entry '/etc/passwd' of the zip"),
    "a key that is the pickle": (of(tensor(storage(key="../data.pkl"))), r"entry '\.\./data.pkl' of the zip"),
    "a key that is a tuple": (
        of(tensor(tuple_of(text("storage"), name("torch.FloatStorage"), b")", text("cpu"), number(6)) + b"Q")),
        "in a form that PyTorch doesn't",
    ),
    "a device that is a number": (
        of(tensor(tuple_of(text("storage"), name("torch.FloatStorage"), text("0"), number(0), number(6)) + b"Q")),
        "in a form that PyTorch doesn't",
    ),
    "numbers of bytes without a type": (of(tensor(storage("torch.storage.UntypedStorage", "0", 24))), "without a type"),
    "numbers of the class OrderedDict": (of(tensor(storage("collections.OrderedDict"))), "without a type"),
    "a tensor for numbers": (of(tensor(tensor())), "in a form that PyTorch doesn't"),
    "more numbers than the entry has": (of(tensor(storage(count=7))), "has 7 numbers of 4 bytes in 24 bytes"),
    "fewer numbers than the entry has": (of(tensor(storage(count=5))), "has 5 numbers of 4 bytes in 24 bytes"),
    "numbers of a wider type": (of(tensor(storage("torch.LongStorage"))), "has 6 numbers of 8 bytes in 24 bytes"),
    "a negative count of numbers": (of(tensor(storage(count=-6))), "has -6 numbers"),
    "2**64 numbers": (of(tensor(storage(count=1 << 64))), "has 18446744073709551616 numbers"),
    "a shape beyond the numbers": (of(tensor(None, 0, (3, 3))), "reaches beyond the 6 numbers"),
    "an offset beyond the numbers": (of(tensor(None, 1)), "reaches beyond the 6 numbers"),
    "an offset of an empty tensor beyond": (of(tensor(None, 7, (0,), (1,))), "reaches beyond the 6 numbers"),
    "strides beyond the numbers": (of(tensor(None, 0, (2, 3), (4, 1))), "reaches beyond the 6 numbers"),
    "a stride that overflows 64 bits": (of(tensor(None, 0, (2, 1), (1 << 64, 1))), "reaches beyond the 6 numbers"),
    "a shape whose product overflows": (of(tensor(None, 0, (1 << 30,) * 5, (0,) * 5)), "repeats the 6 numbers"),
    "a product that overflows to 6": (
        of(tensor(None, 0, (6, (1 << 30) + 1, 1 << 30), (1, 0, 0))),
        "repeats the 6 numbers",
    ),
    "an expanded tensor": (of(tensor(None, 0, (1 << 30, 6), (0, 1))), "repeats the 6 numbers"),
    "a sliding window": (of(tensor(None, 0, (4, 3), (1, 1))), "repeats the 6 numbers"),
    "a negative size": (of(tensor(None, 0, (-2, -3), (3, 1))), "negative or missing sizes"),
    "a negative stride": (of(tensor(None, 5, (6,), (-1,))), "negative or missing sizes"),
    "a negative offset": (of(tensor(None, -1, (2,), (1,))), "negative or missing sizes"),
    "fewer strides than sizes": (of(tensor(None, 0, (2, 3), (1,))), "negative or missing sizes"),
    "an axis beyond 31 bits": (of(tensor(None, 0, (1 << 31, 0), (1, 1))), "more than 2,147,483,647 along one"),
    "a thousand axes": (of(tensor(None, 0, (1,) * 1000, (1,) * 1000)), "more than 32 axes"),
    "a shape of texts": (of(tensor(None, 0).replace(numbers(2, 3), tuple_of(text("2")))), "not whole"),
    "a shape of bools": (of(tensor(None, 0).replace(numbers(2, 3), tuple_of(FALSE, FALSE))), "not whole numbers"),
    "a shape that is a list": (of(tensor(None, 0).replace(numbers(2, 3), b"]")), "not whole numbers"),
    "a shape of tuples within tuples": (
        of(tensor(None, 0).replace(numbers(2, 3), b")" + b"\x85" * DEEP)),
        "not whole numbers",
    ),
    "a shape of 2**200 leaves": (of(tensor(None, 0).replace(numbers(2, 3), b")" + SHARED)), "not whole numbers"),
    "hooks": (of(tensor().replace(no_hooks(), table({"0": number(1)}))), "has hooks"),
    "a negative view": (of(tensor(None, 0, (2, 3), (3, 1), table({"neg": b"\x88"}))), "conjugate or negative view"),
    "one storage under 100 names": (
        lambda command: file_of(
            pickled(table({"first": BIG + b"q\1", **{str(i): b"h\1" for i in range(99)}})), {"0": bytes(24_000)}
        ),
        "take over 2 times the file's",
    ),
    "4,001 empty tensors": (
        plain(pickled(table({str(i): tensor(None, 0, (0,)) + b"q\1" if i == 0 else b"h\1" for i in range(4_001)}))),
        "holds 4,001 tensors",
    ),
    "a number for a tensor": (of(number(3)), "a value of type int under 'model.weight'"),
    "numbers without a tensor": (of(storage()), "a storage without a tensor under 'model.weight'"),
    "a tensor for a table": (plain(pickled(tensor())), "holds a tensor, not a table"),
    "a number for a name": (plain(pickled(table([(number(1), tensor())]))), "has the number 1 for a key"),
    "numbers that collide as keys": (
        plain(pickled(table([(number(i * (2**61 - 1)), NONE) for i in range(1, 30_000)]))),
        "has the number 2305843009213693951 for a key",
    ),
    "a name twice": (plain(pickled(table([(text("a"), tensor())] * 2))), "has the key 'a' twice"),
    "a tuple for a name": (plain(pickled(table([(b")", tensor())]))), "a value of type tuple for a key"),
    "a name of 2**200 leaves": (plain(pickled(table([(b")" + SHARED, tensor())]))), "a value of type tuple for a key"),
    "a list for a name": (plain(pickled(table([(b"]", tensor())]))), "a value of type list for a key"),
    "a name that is not UTF-8": (plain(pickled(table([(text(b"\xff\xfe"), tensor())]))), "'utf-8' codec"),
    "a name of two lines and a surrogate": (plain(pickled(table([(text(b"\n\xed\xa0\x80"), tensor())]))), "not UTF-8"),
    "an odd number of items": (plain(pickled(b"}" + MARK + text("a") + b"u")), "sets items of a table"),
    "items of a tensor": (plain(pickled(tensor() + text("a") + number(1) + b"s")), "sets items of a tensor"),
    "appending to a tensor": (plain(pickled(tensor() + number(1) + b"a")), "appends to a tensor"),
    "a table within itself": (plain(pickled(b"}q\0" + text("a") + b"h\0s")), "a table under 'a'"),
    "a list within itself": (of(b"]q\0h\0a"), "a value of type list under 'model.weight'"),
    "DUP": (of(number(1) + b"2"), "instruction DUP"),
    "a list doubled 40 times": (of(b"]q\1" + b"(h\1h\1lq\1" * 40), "instruction LIST"),
    "BINBYTES8 of 2**62 bytes": (of(b"\x8e" + struct.pack("<Q", 1 << 62)), "in a bytes8, but only 2 remain"),
    "BINUNICODE of 4 GB": (of(b"X\xff\xff\xff\xffabc"), "cut short"),
    "BYTEARRAY8 of 2**40 bytes": (of(b"\x96" + struct.pack("<Q", 1 << 40)), "in a bytearray8, but only 2 remain"),
    "a number of a million digits": (of(b"L" + b"9" * 900_000 + b"L\n"), "instruction LONG,|damaged or cut short"),
    "a number of a million bytes": (of(b"\x8b" + struct.pack("<I", 900_000) + b"\xff" * 900_000), "LONG4"),
    "a name of a million letters": (of(b"c" + b"a" * 1_000_000 + b"\nb\n"), "has the name 'aaa"),
    "memo index of 2**32 - 1": (of(number(1) + b"r\xff\xff\xff\xff" + b"0"), "instruction POP"),
    "a memo item that isn't there": (of(b"h\7"), "recalls item 7"),
    "MEMOIZE": (of(number(1) + b"\x94"), "instruction MEMOIZE"),
    "protocol 4": (plain(b"\x80\4" + table({"a": tensor()}) + b"."), "not of protocol 2"),
    "a frame": (plain(b"\x80\2\x95" + bytes(8) + b"."), "instruction FRAME"),
    "an unknown instruction": (plain(b"\x80\2\xff."), r"opcode b'\\\\xff' unknown"),
    "an empty stack": (plain(pickled(b"")), "something left over"),
    "reaching below a mark": (plain(pickled(number(1) + MARK + b"\x85")), "takes more than it has put down"),
    "a tuple without a mark": (plain(pickled(TUPLE)), "takes more than it has put down"),
    "a reduce of nothing": (plain(pickled(REDUCE)), "takes more than it has put down"),
    "two objects": (plain(pickled(b"}}")), "something left over"),
    "an open mark": (plain(pickled(b"}(")), "something left over"),
    "a second pickle behind the first": (plain(pickled(b"}") + pickled(call("os.system", text("x")))), "left over"),
    "no STOP": (plain(b"\x80\2}"), "cut short"),
    "nothing": (plain(b""), "cut short"),
    "a pickle cut in two": (lambda command: file_of(state(tensor())[:60]), "cut short"),
    "instructions without end": (plain(b"\x80\2" + b"}" * MAX_INSTRUCTIONS), "more than 100,000 instructions"),
    "OrderedDicts without end": (
        plain(b"\x80\2" + name("collections.OrderedDict") + b"q\0" + b"h\0)R" * (MAX_INSTRUCTIONS // 3)),
        "more than 100,000 instructions",
    ),
    "memo items without end": (
        plain(b"\x80\2N" + b"".join(b"r" + struct.pack("<I", i) for i in range(MAX_INSTRUCTIONS))),
        "more than 100,000 instructions",
    ),
    "a pickle beyond 1 MB": (plain(pickled(text("a" * (MAX_PICKLE_BYTES + 1)))), "data.pkl has 1,048,"),
    "tuples within tuples": (of(b")" + b"\x85" * DEEP), "a value of type tuple under"),
    "tables within tables": (
        plain(pickled(b"}" + (text("a") + b"}") * DEEP + b"s" * DEEP)),
        "a table under 'a'",
    ),
    "lists within lists": (of(b"]" * DEEP + b"a" * (DEEP - 1)), "a value of type list under"),
    "references within references": (of(NONE + b"Q" * DEEP), "a storage without a tensor under"),
    "calls within calls": (
        of(name("torch.float32") + b"q\0" + b"h\0" * DEEP + b")" + b"R" + b"\x85R" * (DEEP - 1) + b"\x86"),
        "a value of type tuple under",
    ),
    "marks within marks": (of(MARK * DEEP), "sets items of|left over|takes more"),
}

# --- Zip files that lie.

GOOD = state(tensor())


def entries(**changes: Any) -> list[Entry]:
    """The entries of a good file; the changes are to its storage."""
    made = entries_of(GOOD, {"0": SIX})
    for key, value in changes.items():
        setattr(made[2], key, value)
    return made


def changed(at: int = 2, **changes: Any) -> Builder:
    def build(command: str) -> bytes:
        made = entries_of(GOOD, {"0": SIX})
        for key, value in changes.items():
            setattr(made[at], key, value)
        return zip_file(made)

    return build


def added(*more: Entry) -> Builder:
    return lambda command: zip_file([*entries(), *more])


def ending(**changes: Any) -> Builder:
    return lambda command: zip_file(entries(), End(**changes))


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def bomb(command: str) -> bytes:
    """A pickle of 200 MB in 200 KB."""
    made = entries()
    packed = deflated(bytes(200 << 20))
    made[0] = Entry("archive/data.pkl", packed, method=8, size=200 << 20)
    return zip_file(made)


def overlapping(command: str) -> bytes:
    """A second storage within the first, whose numbers look like the header of an entry."""
    header = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0x0808, 0, 0, 0, 0, 0, 0, len("archive/data/1"), 0) + b"archive/data/1"
    )
    made = entries(data=header + SIX)
    begin = zip_file(made).index(header)
    made.append(Entry("archive/data/1", b"", header=begin, size=24, stored_size=24))
    return zip_file(made)


def spliced(command: str) -> bytes:
    """Two lines of the directory for one entry."""
    made = entries()
    begin = zip_file(made).index(b"PK\3\4", 50)
    made.append(Entry("archive/data/1", b"", header=begin))
    return zip_file(made)


def many_entries(command: str) -> bytes:
    return zip_file([*entries(), *(Entry(str(i), b"") for i in range(10_000))])


WIDE: dict[str, Any] = {"wide": True, "local_sizes": (0xFFFFFFFF, 0xFFFFFFFF)}

ZIPS: dict[str, tuple[Builder, str]] = {
    "a pickle of 200 MB in 200 KB": (bomb, "'archive/data.pkl' is compressed"),
    "a pickle of declared 2**40 bytes": (changed(0, size=1 << 40, stored_size=1 << 40, **WIDE), "reaches beyond"),
    "a pickle of declared 2**64 - 2 bytes": (
        changed(0, size=(1 << 64) - 2, stored_size=(1 << 64) - 2, **WIDE),
        "reaches beyond",
    ),
    "a storage of declared 2**40 bytes": (changed(size=1 << 40, stored_size=1 << 40, **WIDE), "reaches beyond"),
    "a storage that grows unpacked": (changed(size=1 << 20), "has 24 bytes, and 1,048,576 unpacked"),
    "a storage up to the end of the file": (changed(size=700, stored_size=700), "reaches beyond|overlap"),
    "a last entry into the directory": (
        changed(3, size=25, stored_size=25),
        "'archive/version' of 25 bytes at .* reaches beyond",
    ),
    "a byte order of 2**20 bytes": (changed(1, data=b"little" * 200_000), "byteorder has 1,200,000 bytes"),
    "a compressed storage": (changed(data=deflated(SIX), method=8, size=24), "'archive/data/0' is compressed"),
    "an encrypted storage": (changed(flags=0x0809), "'archive/data/0' is encrypted"),
    "a strongly encrypted storage": (changed(flags=0x0841), "'archive/data/0' is encrypted"),
    "an encrypted directory": (changed(flags=0x2808), "'archive/data/0' is encrypted"),
    "a name with ..": (changed(name="archive/data/../../../../etc/cron.d/x"), "which is no plain path"),
    "a name with a backslash": (changed(name="archive/data\\..\\x"), "which is no plain path"),
    "a name with a NUL": (changed(name="archive/data/0\0.txt"), "which is no plain path"),
    "a name with a drive": (changed(name="archive/C:x"), "which is no plain path"),
    "a name with a single dot": (changed(name="archive/./data/0"), "which is no plain path"),
    "a folder": (added(Entry("archive/data/", b"")), "which is no plain path"),
    "an absolute name": (added(Entry("/etc/cron.d/x", b"")), "'/etc/cron.d/x' beside the folder 'archive'"),
    "a name outside of the root": (added(Entry("other/data/0", SIX)), "'other/data/0' beside the folder 'archive'"),
    "a name that is not UTF-8": (changed(name=b"archive/data/\xff\xfe"), "'utf-8' codec"),
    "a name of two lines": (added(Entry("a\nb", b"")), r"'a\\nb' beside the folder"),
    "a second data.pkl": (added(Entry("evil/data.pkl", GOOD)), "and not one data.pkl"),
    "the same data.pkl twice": (added(Entry("archive/data.pkl", GOOD)), "and not one data.pkl"),
    "a storage twice": (added(Entry("archive/data/0", SIX)), "two entries named 'archive/data/0'"),
    "data.pkl in the root of the zip": (lambda command: zip_file([Entry("data.pkl", GOOD)]), "and not one data.pkl"),
    "an entry within another": (overlapping, "entries 'archive/data/0' and 'archive/data/1' overlap"),
    "two names for one entry": (spliced, "overlap"),
    "another name in front of the data": (changed(local_name="archive/data/1"), "not where the zip directory has it"),
    "other sizes in front of the data": (changed(local_sizes=(25, 25)), "described in two ways"),
    "another flag in front of the data": (changed(local_flags=0x0809), "described in two ways"),
    "no header in front of the data": (changed(header=3), "overlap|not where the zip directory has it"),
    "a header beyond the file": (changed(header=(1 << 63) + 1, **WIDE), "reaches beyond"),
    "64-bit sizes that are missing": (changed(size=0xFFFFFFFF, stored_size=0xFFFFFFFF), "4,294,967,295 bytes at"),
    "64-bit sizes that are cut short": (
        changed(size=0xFFFFFFFF, stored_size=0xFFFFFFFF, extra=struct.pack("<2HQ", 1, 16, 5)),
        r"extra field 0001 \(size=16\)",
    ),
    "extra fields longer than the directory": (
        changed(size=0xFFFFFFFF, extra=struct.pack("<2H", 1, 0xFFFF)),
        r"extra field 0001 \(size=65535\)",
    ),
    "a pickle with a flipped bit": (changed(0, crc=zlib.crc32(GOOD) ^ 1), "checksum of its data.pkl is wrong"),
    "more entries than there are": (ending(changes={"count": 99}), "has 4 entries, .* counts 99 on"),
    "fewer entries than there are": (ending(changes={"count": 1}), "has 4 entries, .* counts 1 on"),
    "2**40 entries": (ending(changes={"count": 1 << 40}), "has 4 entries, .* counts 65,535 on"),
    "10,004 entries": (many_entries, "10,004 entries"),
    "a directory beyond the file": (ending(changes={"directory": 1 << 63}), "at -.* reaches beyond"),
    "a directory of 2**63 bytes": (ending(changes={"length": 1 << 63}), "damaged or cut short|of 9,223,372,"),
    "a directory of 3 MB": (
        lambda command: zip_file(entries(data=bytes(4 << 20)), End(changes={"length": 3 << 20, "directory": 0})),
        "of 3,145,728 bytes; at most 2,097,152",
    ),
    "a directory elsewhere": (ending(changes={"directory": 7}), "reaches beyond"),
    "several disks": (ending(changes={"disk": 1}), "on 2 disks"),
    "a comment longer than the file": (ending(changes={"comment": 9}), "doesn't end where the file does"),
    "a second end within the comment": (
        ending(comment=b"PK\5\6" + bytes(18)),
        "holds nothing, and not one data.pkl",
    ),
    "only the end of a zip file": (lambda command: b"PK\3\4" + zip_file([], End(wide=False)), "holds nothing"),
    "cut in the middle": (lambda command: zip_file(entries())[:300], "cut short"),
    "the last byte missing": (lambda command: zip_file(entries())[:-1], "doesn't end where|cut short"),
    "the first kilobyte missing": (lambda command: b"PK\3\4" + zip_file(entries())[400:], "at -.* reaches beyond"),
}

CASES: dict[str, tuple[Builder, str]] = {
    **{f"runs {case}": (running(payload), finding) for case, (payload, finding) in PAYLOADS.items()},
    **PICKLES,
    **{f"zip: {case}": value for case, value in ZIPS.items()},
}


@pytest.mark.timeout(60)  # ends one that keeps us busy for ever; none takes a second
@pytest.mark.parametrize("case", CASES)
def test_a_hostile_file_ends_in_one_line_and_nothing_else_happens(case: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "step_1"
    build, finding = CASES[case]
    path.write_bytes(build(f"touch '{canary}'"))
    before = sorted(tmp_path.iterdir())
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=finding) as caught:
            read_torch_file(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    assert sorted(tmp_path.iterdir()) == before
    assert peak < MEMORY


def test_a_wrong_place_of_the_64_bit_directory_leads_nowhere_else(tmp_path: Path) -> None:
    """Newer versions of zipfile refuse the file, the others find the directory by where the file ends."""
    path = tmp_path / "step_1"
    path.write_bytes(zip_file(entries(), End(locator=0)))
    try:
        stored = read_torch_file(path)
    except UserError:
        return
    assert stored["model.weight"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
