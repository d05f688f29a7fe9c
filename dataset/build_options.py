"""The command lines of the builders: common options, their checks, and the command that repeats a build."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Optional

from pydantic import BaseModel, ConfigDict, Field

from common.errors import UserError

OptionalInt = Optional[int]  # noqa: UP045 - argdantic doesn't support `int | None`


class BuildOptions(BaseModel):
    """The options of a builder. Each builder adds its own, and a default for `output_dir`."""

    model_config = ConfigDict(extra="forbid")

    output_dir: str
    seed: int = Field(42, description="Same seed, same files")
    overwrite: bool = Field(False, description="Replace the data set that is there already")

    def check_minimums(self, **minimums: int) -> None:
        """Check options against their minimum. An option left at None is not checked.

        Args:
            minimums: by the name of the field.

        Raises:
            UserError: if an option is below its minimum.
        """
        for key, low in {**minimums, "seed": 0}.items():
            value = getattr(self, key)
            if value is not None and value < low:
                raise UserError(f"{_flag(key)} is {value}, expected at least {low}")

    def command(self, script: str) -> str:
        """Return the command line with these options, quoted for a shell and without defaults.

        `--output-dir` and `--overwrite` are left out: wherever a data set is built, its files are the same.

        Args:
            script: the builder's `__file__`.
        """
        words = ["python", f"dataset/{Path(script).name}"]
        for key, value in self.model_dump(exclude_defaults=True, exclude={"output_dir", "overwrite"}).items():
            if isinstance(value, bool):
                words.append(_flag(key if value else f"no_{key}"))
            else:
                words += [_flag(key), *map(str, value if isinstance(value, list) else [value])]
        return shlex.join(words)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
