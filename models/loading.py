"""Classes and functions of this package that a configuration names as `module@Name`, and their options."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model

from common.errors import UserError, describe_validation_error


def load(name: str, key: str) -> Any:
    """Return the class or function that `module@Name` names below the package `models`, such as `losses@ACTLossHead`.

    Args:
        name: of the form `module@Name`. No module outside `models` is imported.
        key: where the name stands in the configuration, for the message.

    Returns:
        The class or function.

    Raises:
        UserError: if the name is not of that form, or there is no such module, or the module defines no such name.
    """
    module_path, separator, attribute = name.partition("@")
    parts = [*module_path.split("."), attribute]
    expected = "expected module@Name below models, such as hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1"
    if not separator or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise UserError(f"{key} = {name!r}: {expected}")
    module_name = f"models.{module_path}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(str(error.name)):  # the module is there, and imports one that is not
            raise UserError(f"{key} = {name!r}: {module_name} needs the package {error.name}; install it") from error
        raise UserError(f"{key} = {name!r}: there is no module {module_name}; {expected}") from error
    found = getattr(module, attribute, None)
    if not callable(found) or not getattr(found, "__module__", "").startswith("models."):
        raise UserError(f"{key} = {name!r}: {module_name} defines no {attribute}; {expected}")
    return found


def checked_options(function: Callable[..., Any], options: Mapping[str, Any], key: str, *, given: int = 0) -> dict:
    """Check options against the parameters of a function or class, and convert them to its annotated types.

    Args:
        function: the function or class that gets them.
        options: values by the name of the parameter.
        key: where they stand in the configuration, such as `arch.loss`.
        given: number of leading parameters that the caller passes itself.

    Returns:
        The options, converted. If the function takes `**` anything, further options are among them unchanged.

    Raises:
        UserError: one line that names the option, if it is unknown, missing or of the wrong type.
    """
    called: Any = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    hints = typing.get_type_hints(called)
    parameters = list(inspect.signature(function).parameters.values())[given:]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    config = ConfigDict(extra="allow" if takes_any else "forbid", arbitrary_types_allowed=True)
    try:
        found = create_model("Options", __config__=config, **fields).model_validate(dict(options))
    except ValidationError as error:
        message = describe_validation_error(error, "the configuration", f"{key}.")
        raise UserError(f"{message} ({key} takes {', '.join(fields) or 'no options'})") from error
    return {name: getattr(found, name) for name in options}
