"""Take a pickle apart without doing what it asks for: calls and references become records, nothing is imported,
no class is made, no function is called. Only the instructions are known that PyTorch writes."""

from __future__ import annotations

import pickletools
import struct
from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass

from common.errors import shown

ORDERED_DICT = "collections.OrderedDict"

# Against files that only want to fill memory. PyTorch takes some 25 instructions and 200 bytes a tensor, and the HRM
# has some 60. Each instruction makes at most one small object; nothing here calls itself, so depth needs no limit.
MAX_PICKLE_BYTES = 1 << 20
MAX_INSTRUCTIONS = 100_000

_INSTRUCTIONS = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_PROTOCOL = 2  # PyTorch's, in all its versions, unless it is told otherwise


class StateDictError(ValueError):
    """What keeps a file from being a plain state dict, in words to be put behind the file's name."""


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class that the pickle names; only its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `function` with `arguments` that the pickle asks for. It isn't made."""

    function: str
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """The description of something beside the pickle, such as a tensor's numbers."""

    description: object


def describe(value: object) -> str:
    """What a value from a pickle is, without saying what it holds."""
    if isinstance(value, Global):
        return f"the name {shown(value.name)}"
    names: dict[type, str] = {
        type(None): "None",
        dict: "a table",
        OrderedDict: "a table",
        Call: "a tensor",
        Reference: "a storage without a tensor",
    }
    return names.get(type(value), f"a value of type {type(value).__name__}")


def parse_pickle(data: bytes, known: Set[str]) -> object:
    """The object that a pickle describes, of dict, OrderedDict, list, tuple, str, int, float, bool, None, `Global`,
    `Call` and `Reference`. The keys of its dicts are str or int.

    Args:
        data: a pickle of protocol 2.
        known: the only names, as `module.name`, that it may mention.

    Raises:
        StateDictError: if it is damaged, too long, mentions another name or holds another instruction.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise StateDictError(f"its pickle has {len(data):,} bytes; at most {MAX_PICKLE_BYTES:,} are read")
    return _Parser(data, known).run()


class _Parser:
    """The stack machine that pickles are written for."""

    def __init__(self, data: bytes, known: Set[str]) -> None:
        self.data, self.known = data, known
        self.at = 0
        self.stack: list[object] = []
        self.marks: list[int] = []  # heights of the stack; nothing below the last is in reach
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.take(1)
            if code == b".":
                if len(self.stack) != 1 or self.marks or self.at != len(self.data):
                    raise StateDictError("its pickle ends with something left over")
                return self.stack[0]
            self.perform(code)
        raise StateDictError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions, a state dict needs fewer")

    def perform(self, code: bytes) -> None:
        match code:
            case b"\x80":  # PROTO
                if self.take(1)[0] != _PROTOCOL:
                    raise StateDictError(f"its pickle is not of protocol {_PROTOCOL}; save it without pickle_protocol=")
            # Names, and what is done with them.
            case b"c":  # GLOBAL
                self.push(self.known_global(self.take_line(), self.take_line()))
            case b"R":  # REDUCE
                arguments, function = self.pop(), self.pop()
                self.push(self.call(function, arguments))
            case b"Q":  # BINPERSID
                self.push(Reference(self.pop()))
            case b"b":  # BUILD
                self.build(state=self.pop(), target=self.top())
            # Values.
            case b"X":  # BINUNICODE
                self.push(self.take_text())
            case b"K":  # BININT1
                self.push(self.take(1)[0])
            case b"M":  # BININT2
                self.push(int.from_bytes(self.take(2), "little"))
            case b"J":  # BININT
                self.push(int.from_bytes(self.take(4), "little", signed=True))
            case b"\x8a":  # LONG1
                self.push(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))
            case b"G":  # BINFLOAT
                self.push(struct.unpack(">d", self.take(8))[0])
            case b"N":  # NONE
                self.push(None)
            case b"\x88":  # NEWTRUE
                self.push(True)
            case b"\x89":  # NEWFALSE
                self.push(False)
            # Containers.
            case b"(":  # MARK
                self.marks.append(len(self.stack))
            case b")":  # EMPTY_TUPLE
                self.push(())
            case b"\x85" | b"\x86" | b"\x87":  # TUPLE1, TUPLE2, TUPLE3
                items = [self.pop() for _ in range(code[0] - 0x84)]
                self.push(tuple(reversed(items)))
            case b"t":  # TUPLE
                self.push(tuple(self.pop_to_mark()))
            case b"]":  # EMPTY_LIST
                self.push([])
            case b"a":  # APPEND
                self.append([self.pop()])
            case b"e":  # APPENDS
                self.append(self.pop_to_mark())
            case b"}":  # EMPTY_DICT
                self.push({})
            case b"s":  # SETITEM
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case b"u":  # SETITEMS
                self.set_items(self.pop_to_mark())
            # Things that occur more than once.
            case b"q":  # BINPUT
                self.memo[self.take(1)[0]] = self.top()
            case b"r":  # LONG_BINPUT
                self.memo[int.from_bytes(self.take(4), "little")] = self.top()
            case b"h":  # BINGET
                self.recall(self.take(1)[0])
            case b"j":  # LONG_BINGET
                self.recall(int.from_bytes(self.take(4), "little"))
            case _:
                name = _INSTRUCTIONS.get(code, f"{code!r}")
                raise StateDictError(f"its pickle holds the instruction {name}, which no state dict needs")

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise StateDictError("its pickle is cut short")
        self.at += count
        return taken

    def take_line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise StateDictError("its pickle is cut short")
        line = self.take(end + 1 - self.at)[:-1]
        return line.decode("latin-1")  # ASCII in all names that are known; any byte can be shown

    def take_text(self) -> str:
        text = self.take(int.from_bytes(self.take(4), "little"))
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise StateDictError(f"its pickle holds a text that is not UTF-8: {shown(text)}") from error

    def push(self, value: object) -> None:
        self.stack.append(value)

    def top(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise StateDictError("its pickle takes more than it has put down")
        return self.stack[-1]

    def pop(self) -> object:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            raise StateDictError("its pickle takes more than it has put down")
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise StateDictError(f"its pickle recalls item {index}, which it hasn't stored")
        self.push(self.memo[index])

    def known_global(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        if full not in self.known:
            raise StateDictError(f"its pickle asks for {shown(full)}, a name that is not known here; nothing was run")
        return Global(full)

    def call(self, function: object, arguments: object) -> object:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise StateDictError(f"its pickle calls {describe(function)} with {describe(arguments)}")
        if function.name != ORDERED_DICT:
            return Call(function.name, arguments)
        if arguments:
            raise StateDictError("its pickle makes an OrderedDict in a way that PyTorch doesn't")
        return OrderedDict()

    def build(self, state: object, target: object) -> None:
        """Give an object attributes: state dicts have one, the versions of their modules, which nobody needs."""
        if type(target) is not OrderedDict or type(state) is not dict or state.keys() != {"_metadata"}:
            raise StateDictError(f"its pickle sets attributes of {describe(target)}")

    def append(self, items: list[object]) -> None:
        target = self.top()
        if type(target) is not list:
            raise StateDictError(f"its pickle appends to {describe(target)}")
        target.extend(items)

    def set_items(self, items: list[object]) -> None:
        target = self.top()
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise StateDictError(f"its pickle sets items of {describe(target)}")
        assert isinstance(target, dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # tuples of tuples would take for ever to hash
                raise StateDictError(f"a table in its pickle has {describe(key)} for a key")
            if key in target:
                raise StateDictError(f"a table in its pickle has the key {shown(key)} twice")
            target[key] = value
