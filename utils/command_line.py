"""The `key=value` command lines: their keys explained, and those of evaluate.py and the programs in utils read.

Keys of pretrain.py are explained by the comments in config/, those of the others by the fields of a pydantic model
beside each `main`.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from common.errors import UserError, describe_validation_error, printable

_MAX_BRACKETS = 50  # of one argument; save_outputs has one, with twelve names

Options = TypeVar("Options", bound=BaseModel)

HELP = ("--help", "-h")
CONFIG = Path(__file__).resolve().parents[1] / "config"
_KEY_LINE = re.compile(r"(?P<indent> *)(?P<name>\w+):(?: +(?P<value>[^#\s].*?))?(?: +# *(?P<comment>.*))?")
_CONFIG_NAME = re.compile(r"(?:--config-name|-cn)(?:=(.*))?")
_NOT_KEYS = ("defaults", "hydra")  # Hydra's own
_COLUMN, _WIDEST = 28, 100  # where explanations begin, and lines end


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a command line.

    Attributes:
        default: as it would be typed; None if the key must be given.
        explanation: what it means.
    """

    default: str | None
    explanation: str


def refuse_deep_values(arguments: list[str]) -> None:
    """Raise UserError for an argument with so many brackets that a parser may exhaust the stack."""
    for argument in arguments:
        if sum(map(argument.count, "[{(")) > _MAX_BRACKETS:
            raise UserError(f"{printable(argument, 200)} has more than {_MAX_BRACKETS} brackets; no key takes so many")


def parse(
    arguments: list[str], kind: type[Options], command: str, *, verbatim: Collection[str] = (), **required: str
) -> Options:
    """Check the `key=value` arguments of a program; with --help among them, explain the keys and exit.

    Args:
        arguments: the command line without the program's name.
        kind: the pydantic model with the keys.
        command: how the program is called, for the usage line.
        verbatim: keys whose values are texts as they stand, whatever YAML would make of them.
        required: the keys that must be given, each with a placeholder for the usage line.

    Returns:
        The values, checked.

    Raises:
        UserError: one line that names the key, what was found and what is expected; or the usage line.
        SystemExit: with status 0, for --help.
    """
    given = " ".join(f"{name}={placeholder}" for name, placeholder in required.items())
    usage = f"usage: {command} {given} " + " ".join(f"[{name}=…]" for name in model_keys(kind) if name not in required)
    if not set(HELP).isdisjoint(arguments):
        print(format_help(f"usage: {command} {given} [key=value …]".replace("  ", " "), model_keys(kind)))
        raise SystemExit(0)
    pairs = [argument.partition("=") for argument in arguments]
    texts = {name: text for name, equals, text in pairs if equals and name in verbatim}
    others = ["".join(pair) for pair in pairs if not (pair[1] and pair[0] in verbatim)]
    refuse_deep_values(others)
    malformed = [argument for argument in others if "=" not in argument or argument.startswith("-")]
    if malformed:
        raise UserError(f"{malformed[0]!r} is not key=value; {usage}")
    if not required.keys() <= {name for name, _, _ in pairs}:
        raise UserError(f"{usage}; --help explains the keys")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.from_cli(others), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from error
    except yaml.YAMLError as error:
        raise UserError(f"{printable(' '.join(others), 300)} can't be read: {printable(error, 300)}") from error
    try:
        return kind.model_validate({**values, **texts})
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "the command line", known=model_keys(kind))) from error


def format_help(usage: str, keys: dict[str, Key]) -> str:
    """Format an explanation of keys.

    Args:
        usage: the first line.
        keys: by name.

    Returns:
        The usage, then for each key `name=default` and what it means, in lines that fit the terminal.
    """
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    lines = [usage, ""]
    for name, key in keys.items():
        head = f"  {name}" if key.default is None else f"  {name}={key.default}"
        explanation = key.explanation if key.default is not None else f"{key.explanation} (required)"
        if len(head) >= _COLUMN:
            lines.append(head)
            head = ""
        indent = " " * _COLUMN
        lines += textwrap.wrap(
            explanation, max(width, _COLUMN + 20), initial_indent=head.ljust(_COLUMN), subsequent_indent=indent
        )
    return "\n".join(lines)


def model_keys(kind: type[BaseModel]) -> dict[str, Key]:
    """Return the keys of a pydantic model, explained by the descriptions of its fields; its bases' come last."""

    def typed(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return {None: "null", True: "true", False: "false"}[value]
        return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)

    return {
        field.alias or name: Key(None if field.is_required() else typed(field.default), field.description or "")
        for name, field in sorted(kind.model_fields.items(), key=lambda item: item[0] not in kind.__annotations__)
    }


def pretrain_help(arguments: Iterable[str]) -> str:
    """Explain the keys of pretrain.py, with the defaults of the configuration and architecture that are chosen.

    Args:
        arguments: of its command line, such as `--config-name cfg_demo` and `arch=hrm_demo`.
    """
    usage = (
        "usage: python pretrain.py [--config-name cfg_demo] [arch=<file of config/arch>] [key=value …]\n"
        "Hydra's own: --cfg job prints the configuration, --multirun does a run for each of lr=1e-4,2e-4"
    )
    return format_help(usage, pretrain_keys(arguments))


def pretrain_keys(arguments: Iterable[str] = ()) -> dict[str, Key]:
    """Return the keys of pretrain.py, explained by the comments in config/.

    Args:
        arguments: the command line, which may name another configuration or architecture.

    Returns:
        Keys by their dotted names. Of a configuration or architecture that is not there, none.
    """
    arguments = list(arguments)
    config_name, arch = "cfg_pretrain", None
    for position, argument in enumerate(arguments):
        if match := _CONFIG_NAME.fullmatch(argument):
            config_name = match[1] or next(iter(arguments[position + 1 :]), config_name)
        elif argument.startswith("arch="):
            arch = argument.partition("=")[2]
    keys, chosen = _file_keys(CONFIG / config_name)
    of_arch, _ = _file_keys(CONFIG / "arch" / (arch or chosen or ""))
    return keys | {f"arch.{name}": key for name, key in of_arch.items()}


def _file_keys(stem: Path) -> tuple[dict[str, Key], str | None]:
    """Return the keys of a configuration file and of those that it builds upon, and the architecture it chooses."""
    path = stem.with_suffix(".yaml")
    if not path.is_file():
        return {}, None
    text = path.read_text(encoding="utf-8")
    keys: dict[str, Key] = {}
    arch = None
    for entry in yaml.safe_load(text).get("defaults", []):
        if isinstance(entry, dict):
            arch = entry.get("override arch", entry.get("arch", arch))
        elif entry != "_self_":
            keys, arch = _file_keys(path.parent / entry)
    for name, key in _explained(text).items():
        before = keys.get(name)
        keys[name] = key if key.explanation or before is None else dataclasses.replace(before, default=key.default)
    return keys, arch


def _explained(text: str) -> dict[str, Key]:
    """Return the keys in the text of a YAML file, each with the comment above it and the one beside it."""
    keys: dict[str, Key] = {}
    above: list[str] = []
    sections: list[tuple[int, str, str]] = []  # that the line stands in: their indentation, name and comment
    for line in text.splitlines():
        match = _KEY_LINE.fullmatch(line.rstrip())
        if match is None:
            above = [*above, line.strip("# ")] if line.lstrip().startswith("#") else []
            continue
        indent = len(match["indent"])
        sections = [section for section in sections if section[0] < indent]
        name = ".".join([*(section[1] for section in sections), match["name"]])
        comment = " ".join(filter(None, [*above, match["comment"]]))
        above = []
        if match["value"] is None:
            sections.append((indent, match["name"], comment))
        elif name.partition(".")[0] not in _NOT_KEYS:
            keys[name] = Key(match["value"], comment or " ".join(section[2] for section in sections))
    return keys
