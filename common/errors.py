"""Mistakes that the user can correct: one line instead of a traceback."""

from __future__ import annotations

import difflib
import functools
import os
import reprlib
import signal
import sys
from collections.abc import Callable, Collection
from typing import ParamSpec

from pydantic import ValidationError

# Hydra's variable for whole tracebacks, taken for all programs here. Read now, because pretrain.py sets it for Hydra.
_WHOLE_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"

_KEY_LENGTH = 80  # of a key in a message; no key of this code is longer, those of a file from elsewhere may be
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
    key = ".".join(str(part)[:_KEY_LENGTH] for part in first["loc"])
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
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
    return None


def one_line(main: Callable[P, object]) -> Callable[P, None]:
    """Decorate an entry point: a mistake of the user ends it with one line on stderr and exit status 1.

    `HYDRA_FULL_ERROR=1` in the environment brings the traceback back.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
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
