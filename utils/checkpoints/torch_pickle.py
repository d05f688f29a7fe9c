"""Parser of pickles that executes nothing: calls and references become records.

Nothing is imported, no class is made, no function is called. Only the instructions that PyTorch writes are accepted.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Iterator, Set
from dataclasses import dataclass

from common.errors import shown

ORDERED_DICT = "collections.OrderedDict"

# Against files made to fill memory. PyTorch takes some 25 instructions and 200 bytes a tensor, and HRM has some 60.
# Each instruction makes at most one small object; nothing here calls itself, so depth needs no limit.
MAX_PICKLE_BYTES = 1 << 20
MAX_INSTRUCTIONS = 100_000

_PROTOCOL = 2  # PyTorch's default in all its versions
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MARK = object()  # on the stack, where a tuple or several items begin; nothing below the last one is in reach


class StateDictError(ValueError):
    """Why a file is not a plain state dict, in words that follow the file's name."""


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class that the pickle names; only its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of `function` with `arguments` in the pickle. It isn't made."""

    function: str
    arguments: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """The description of something beside the pickle, such as a tensor's numbers."""

    description: object


def describe(value: object) -> str:
    """Return the kind of a value from a pickle in words, without its content."""
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
    """Build the object that a pickle describes out of inert parts.

    Args:
        data: a pickle of protocol 2, of at most `MAX_PICKLE_BYTES`.
        known: the names, as `module.name`, that it may contain.

    Returns:
        A value of dict, OrderedDict, list, tuple, str, int, float, bool, None, `Global`, `Call` and `Reference`. The
        keys of its dicts are str.

    Raises:
        StateDictError: if it is damaged, has too many instructions, another name or another instruction.
    """
    machine = _Machine(known)
    for number, (name, argument, at) in enumerate(_instructions(data)):
        if number == MAX_INSTRUCTIONS:
            raise StateDictError(f"its pickle has more than {number:,} instructions, a state dict needs fewer")
        if name == "STOP" and at + 1 < len(data):
            raise StateDictError("its pickle ends with something left over")
        machine.perform(name, argument)
    return machine.result()


def _instructions(data: bytes) -> Iterator[tuple[str, object, int]]:
    """Yield the instructions up to STOP, each with its decoded argument and its position."""
    try:
        for opcode, argument, at in pickletools.genops(data):
            yield opcode.name, argument, at or 0
    except ValueError as error:
        raise StateDictError(f"its pickle is damaged or cut short: {shown(str(error))}") from error


class _Machine:
    """The stack machine that pickles are written for."""

    def __init__(self, known: Set[str]) -> None:
        self.known = known
        self.stack: list[object] = []
        self.memo: dict[object, object] = {}

    def perform(self, name: str, argument: object) -> None:
        match name:
            case "STOP":
                pass
            case "PROTO":
                if argument != _PROTOCOL:
                    raise StateDictError(f"its pickle is not of protocol {_PROTOCOL}; save it without pickle_protocol=")
            # Names, and what is done with them.
            case "GLOBAL":
                self.push(self.known_global(str(argument)))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                self.push(self.call(function, arguments))
            case "BINPERSID":
                self.push(Reference(self.pop()))
            case "BUILD":
                self.build(state=self.pop(), target=self.top())
            # Values.
            case "BINUNICODE":
                self.push(self.plain_text(str(argument)))
            case "BININT1" | "BININT2" | "BININT" | "LONG1" | "BINFLOAT":
                self.push(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.push(_CONSTANTS[name])
            # Containers.
            case "MARK":
                self.push(_MARK)
            case "EMPTY_TUPLE":
                self.push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(name[-1]))]
                self.push(tuple(reversed(items)))
            case "TUPLE":
                self.push(tuple(self.pop_to_mark()))
            case "EMPTY_LIST":
                self.push([])
            case "APPEND":
                self.append([self.pop()])
            case "APPENDS":
                self.append(self.pop_to_mark())
            case "EMPTY_DICT":
                self.push({})
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            # Things that occur more than once.
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise StateDictError(f"its pickle recalls item {argument}, which it hasn't stored")
                self.push(self.memo[argument])
            case _:
                raise StateDictError(f"its pickle holds the instruction {name}, which no state dict needs")

    def result(self) -> object:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise StateDictError("its pickle ends with something left over")
        return self.stack[0]

    def push(self, value: object) -> None:
        self.stack.append(value)

    def top(self) -> object:
        if not self.stack or self.stack[-1] is _MARK:
            raise StateDictError("its pickle takes more than it has put down")
        return self.stack[-1]

    def pop(self) -> object:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        items = []
        while self.stack and self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        if not self.stack:
            raise StateDictError("its pickle takes more than it has put down")
        self.stack.pop()
        return items[::-1]

    def known_global(self, argument: str) -> Global:
        full = argument.replace(" ", ".", 1)  # module and name, as pickletools joins them
        if full not in self.known:
            raise StateDictError(f"its pickle has the name {shown(full)}, which no state dict needs; nothing was run")
        return Global(full)

    def plain_text(self, text: str) -> str:
        try:
            text.encode()  # pickletools lets halves of characters through, which can't be written anywhere
        except UnicodeEncodeError as error:
            raise StateDictError(f"its pickle holds a text that is not UTF-8: {shown(text)}") from error
        return text

    def call(self, function: object, arguments: object) -> object:
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise StateDictError(f"its pickle calls {describe(function)} with {describe(arguments)}")
        if function.name != ORDERED_DICT:
            return Call(function.name, arguments)
        if arguments:
            raise StateDictError("its pickle makes an OrderedDict in a way that PyTorch doesn't")
        return OrderedDict()

    def build(self, state: object, target: object) -> None:
        """Set attributes of an object: state dicts have one, the versions of their modules, which is ignored."""
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
            # Numbers could be chosen to collide, and tuples of tuples would take for ever to hash.
            if type(key) is int:
                raise StateDictError(
                    f"a table in its pickle has the number {shown(key)} for a key, as the state of an optimizer does"
                )
            if type(key) is not str:
                raise StateDictError(f"a table in its pickle has {describe(key)} for a key")
            if key in target:
                raise StateDictError(f"a table in its pickle has the key {shown(key)} twice")
            target[key] = value
