"""Mistakes that the user can correct: one line instead of a traceback."""

from __future__ import annotations

import difflib
import errno
import functools
import os
import re
import reprlib
import signal
import sys
from collections.abc import Callable, Collection
from typing import ParamSpec

from pydantic import ValidationError

# Hydra's variable for whole tracebacks, taken for all programs here. Read now, because pretrain.py sets it for Hydra.
_WHOLE_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LINE_LENGTH = 4000  # of a whole message; two paths may be in it
_PLAIN_NAME = re.compile(r"[\w.-]{1,120}", re.ASCII)  # no name or key of this code is longer
_BRIEFLY = reprlib.Repr()
_BRIEFLY.maxlevel, _BRIEFLY.maxtuple, _BRIEFLY.maxlist = 2, 8, 8

P = ParamSpec("P")


class UserError(Exception):
    """A mistake that the user can correct. The message names the key or file, what was found, and what to do."""


class Interrupted(Exception):
    """The end of the program by SIGINT or SIGTERM.

    Attributes:
        signal_number: the signal.
        exit_status: 128 + `signal_number`, as shells report it.
    """

    def __init__(self, signal_number: int):
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number
        super().__init__(f"ended by {signal.Signals(signal_number).name}")


def shown(value: object, limit: int = 80) -> str:
    """Quote a value from an untrusted file, in one line of at most `limit` characters.

    Nested lists and dicts are shortened too, so that no structure takes long to show.
    """
    try:
        quoted = repr(value[: limit + 1]) if isinstance(value, str | bytes) else _BRIEFLY.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        quoted = f"{type(value).__name__} with too many digits to show"
    return quoted if len(quoted) <= limit else quoted[: limit - 1] + "…"


def nearest(key: str, known: Collection[str]) -> str | None:
    """Return the known key that is most like an unknown one, or None.

    Args:
        key: as it was given, with or without what stands before its dots.
        known: the whole keys, such as `arch.hidden_size`.
    """
    whole = {name.rpartition(".")[2]: name for name in known}
    whole |= {name: name for name in known}  # a key of its own counts more than the end of another one
    last = key.rpartition(".")[2]
    close = [last] if last in whole else []
    for text in (key, last):
        close = close or difflib.get_close_matches(text, whole, n=1, cutoff=0.7)
    return whole[close[0]] if close else None


def describe_unknown_key(key: str, origin: str, known: Collection[str] = ()) -> str:
    """Return one line about a key that is not among the `known` ones, with the nearest of them."""
    near = nearest(key, known)
    return f"unknown key {key!r} in {origin}; " + (
        f"did you mean {near}?" if near is not None else "remove it or check its spelling"
    )


def shown_name(name: object) -> str:
    """Write a name or a key from an untrusted file as it is if it is plain, or else as `shown` does."""
    text = str(name)
    return text if _PLAIN_NAME.fullmatch(text) else shown(text)


def printable(text: object, limit: int = _LINE_LENGTH) -> str:
    """Write a text in one line of at most `limit` characters, without what a terminal would obey."""
    line = " ".join(str(text)[: limit + 1].split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def describe_validation_error(
    error: ValidationError, origin: str, prefix: str = "", known: Collection[str] = ()
) -> str:
    """Put the first error that pydantic found into one line that names the key, the value and the remedy.

    Args:
        error: what pydantic raised.
        origin: where the values come from, such as `the command line`.
        prefix: what stands before the key in the whole configuration, such as `arch.`.
        known: the keys that there are, with their prefix, to suggest one in place of an unknown key.

    Returns:
        The line, with the number of further errors.
    """
    first = error.errors()[0]
    key = ".".join(map(shown_name, first["loc"]))
    key = prefix + key if key else prefix.rstrip(".")
    kind = first["type"]
    if kind == "extra_forbidden":
        text = describe_unknown_key(key, origin, known)
    elif kind == "missing":
        text = f"key {key!r} is missing in {origin}; set it"
    elif kind == "value_error":
        reason = str(first["ctx"]["error"])
        text = f"{key}: {reason}" if key else reason  # a check of several keys names them itself
    else:
        text = f"{key} = {shown(first['input'])} in {origin}: {first['msg'][0].lower()}{first['msg'][1:]}"
    more = error.error_count() - 1
    return text + (f" (and {more} more)" if more else "")


def explain(error: BaseException) -> str | None:
    """Return one line for a mistake that the user can correct; None for other exceptions, which are bugs."""
    if isinstance(error, UserError):
        return printable(error)
    if isinstance(error, OSError):
        remedy = "; free some space, or choose a folder on another disk" if error.errno in NO_SPACE else ""
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error) + remedy
    return None


def one_line(main: Callable[P, object]) -> Callable[P, None]:
    """Decorate an entry point: a mistake of the user ends it with one line on stderr and exit status 1.

    `HYDRA_FULL_ERROR=1` in the environment brings the traceback back.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as quiet_imports has it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(*args, **kwargs)
        except (UserError, OSError) as error:
            if _WHOLE_TRACEBACK:
                raise
            print(f"error: {explain(error)}", file=sys.stderr)
            sys.exit(1)
        except Interrupted as interruption:
            print(interruption, file=sys.stderr)
            sys.exit(interruption.exit_status)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)  # as shells report it

    return run
