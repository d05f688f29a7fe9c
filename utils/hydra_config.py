"""Hydra and OmegaConf at the edge of the command lines: their containers become plain values, their errors one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import UserError, describe_unknown_key, printable, shown


def plain_values(config: DictConfig) -> dict[str, Any]:
    """Return the values of a composed configuration, resolved.

    Raises:
        UserError: if one can't be resolved.
    """
    with hydra_errors():
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


@contextlib.contextmanager
def hydra_errors(known_keys: Callable[[], Collection[str]] = tuple) -> Iterator[None]:
    """Turn exceptions of Hydra and OmegaConf into one-line errors.

    Args:
        known_keys: returns the keys that there are, to suggest one in place of an unknown key.

    Raises:
        UserError: in their place.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).partition("Config search path")[0].splitlines() if line.strip()]
        message = " ".join(lines) or type(error).__name__
        if isinstance(error, OverrideParseException):
            key, _, value = error.override.partition("=")
            message = (
                f"{shown(error.override, 200)} can't be read: {printable(lines[0], 300)}; quote a value with special "
                f"characters, as in '{key}=\"{value if len(value) <= 200 else '…'}\"'"
            )
        elif lines and lines[0].startswith("Could not override"):
            key = lines[0].removeprefix("Could not override").strip(" '.\"")
            message = f"{describe_unknown_key(key, 'the command line', known_keys())} (--help lists all)"
        raise UserError(message) from error
