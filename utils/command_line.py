"""The `key=value` command lines of evaluate.py and of the programs in utils.

Their keys are the fields of a pydantic model beside each `main`.
"""

from __future__ import annotations

from typing import TypeVar

import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from common.errors import UserError, describe_validation_error, printable
from utils.config import hydra_errors

_MAX_BRACKETS = 50  # of one argument; save_outputs has one, with twelve names

Options = TypeVar("Options", bound=BaseModel)


def refuse_deep_values(arguments: list[str]) -> None:
    """Raise UserError for an argument with so many brackets that a parser may exhaust the stack."""
    for argument in arguments:
        if sum(map(argument.count, "[{(")) > _MAX_BRACKETS:
            raise UserError(f"{printable(argument, 200)} has more than {_MAX_BRACKETS} brackets; no key takes so many")


def parse(arguments: list[str], kind: type[Options], command: str, **required: str) -> Options:
    """Check the `key=value` arguments of a program.

    Args:
        arguments: the command line without the program's name.
        kind: the pydantic model with the keys.
        command: how the program is called, for the usage line.
        required: the keys that must be given, each with a placeholder for the usage line.

    Returns:
        The values, checked.

    Raises:
        UserError: one line that names the key, what was found and what is expected; or the usage line.
    """
    given = " ".join(f"{name}={placeholder}" for name, placeholder in required.items())
    usage = f"usage: {command} {given} " + " ".join(f"[{name}=…]" for name in kind.model_fields if name not in required)
    refuse_deep_values(arguments)
    malformed = [argument for argument in arguments if "=" not in argument or argument.startswith("-")]
    if malformed:
        raise UserError(f"{malformed[0]!r} is not key=value; {usage}")
    if not all(any(argument.startswith(f"{name}=") for argument in arguments) for name in required):
        raise UserError(usage)
    try:
        with hydra_errors():
            values = OmegaConf.to_container(OmegaConf.from_cli(arguments), resolve=True)
    except yaml.YAMLError as error:
        raise UserError(f"{printable(' '.join(arguments), 300)} can't be read: {printable(error, 300)}") from error
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "the command line")) from error
