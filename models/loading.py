"""Classes and functions of this package that a configuration names as `module@Name`, and their options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError, create_model

from common.errors import UserError, describe_validation_error


def load(name: str, key: str, example: str = "losses@ACTLossHead", default_module: str = "") -> Any:
    """Return the class or function that `module@Name` names below the package `models`.

    Args:
        name: of the form `module@Name`. No module outside `models` is imported.
        key: where the name stands in the configuration, for the message.
        example: a name that could stand there.
        default_module: the module of a name without `module@`.

    Returns:
        The class or function.

    Raises:
        UserError: if the name is not of that form, there is no such module, or the module defines no such name, has a
            syntax error or an import that fails.
    """
    module_path, separator, attribute = name.rpartition("@")
    if default_module and not separator:
        module_path, separator = default_module, "@"
    parts = [*module_path.split("."), attribute]
    expected = f"expected module@Name below models, such as {example}"
    if not separator or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise UserError(f"{key} = {name!r}: {expected}")
    module_name = f"models.{module_path}"
    try:
        module = importlib.import_module(module_name)
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise UserError(f"{key} = {name!r}: {error.msg} in {where}; correct it") from error
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(f"{key} = {name!r}: there is no module {module_name}; {expected}") from error
        # The module is there, and imports what is not.
        raise UserError(
            f"{key} = {name!r}: {module_name} can't be imported: {error.msg}; install the package or correct the import"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found) or not getattr(found, "__module__", "").startswith("models."):
        raise UserError(f"{key} = {name!r}: {module_name} defines no {attribute}; {expected}")
    return found


def checked_options(function: Callable[..., Any], options: Mapping[str, Any], key: str, *, given: int = 0) -> dict:
    """Check options against the parameters of a function or class, and convert them to its annotated types.

    Bounds may stand in the annotation, as in `smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0`.

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
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())[given:]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    fields: dict[str, Any] = {
        parameter.name: (
            Any if parameter.annotation is parameter.empty else parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    extra: Literal["allow", "forbid"] = "allow" if takes_any else "forbid"
    config = ConfigDict(extra=extra, arbitrary_types_allowed=True, protected_namespaces=())
    try:
        found = create_model("Options", __config__=config, **fields).model_validate(dict(options))
    except ValidationError as error:
        message = describe_validation_error(error, "the configuration", f"{key}.", [f"{key}.{name}" for name in fields])
        raise UserError(f"{message} ({function.__name__} takes {', '.join(fields) or 'no options'})") from error
    return {name: getattr(found, name) for name in options}
