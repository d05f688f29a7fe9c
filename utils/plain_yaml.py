"""Read untrusted YAML: plain values only, in a small file, not deeply nested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError, printable

_MAX_FILE_BYTES = 64 << 10  # of a saved configuration; a run writes about 1.5 kB
_MAX_DEPTH = 8  # of nested values; a run writes 4


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases and of little depth: a few lines of nested aliases can expand to more than memory holds."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.line + 1} has an alias (*name); write out what it stands for")
        if self._depth == _MAX_DEPTH:
            raise yaml.YAMLError(f"line {self.line + 1} is nested more than {_MAX_DEPTH} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read the keys and values of a saved configuration.

    Args:
        path: a YAML file that lies beside the step folders of a run.

    Returns:
        Its values, of YAML's types; keys may be of any of these.

    Raises:
        UserError: if it is missing, too large, not plain YAML, or has no keys.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise UserError(f"{path} can't be read: it is no regular file")
        with open(path, "rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; it belongs beside the step folders of a run") from None
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise UserError(f"{path} has more than {_MAX_FILE_BYTES:,} bytes; a training configuration takes about 1,500")
    try:
        values = yaml.load(content.decode(), _PlainLoader)
    # PyYAML lets the errors of a value through, such as that of 1:1:…:1.5, a float in base 60.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} can't be read: {printable(error, 300)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no configuration: expected keys and values, found {type(values).__name__}")
    return values
