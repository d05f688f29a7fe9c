"""The configuration beside a trained model, whichever code wrote it: the keys that its weights need, and bounds.

A file from elsewhere could describe a model that fills memory or takes hours to build. The bounds hold for any
architecture, and are beyond all models that fit on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import UserError, describe_validation_error, printable, shown, shown_name
from common.files import HomePath
from utils.config import CONFIG_FILE, ArchConfig, MicroBatchSize
from utils.plain_yaml import read_yaml

# Widths are the largest numbers; published: 512. Products of two fit the 31 bits of an MLX shape: beyond them MLX ends
# the process. Fractions are bounded too, since a model may take 1e9 for an integer.
_MAX_NUMBER = 16_384
_MAX_THETA = 1e12  # the base of rotary positions is no size
_MAX_BLOCKS = 4096  # applied one after the other in one outer step, all in one graph; MLX crashes on deeper ones
_MAX_STEPS = 1024  # outer steps, of which evaluation takes all; published: 16
_MAX_LENGTH = 200  # of a text or a list


class TrainedConfig(BaseModel):
    """The keys of a trained model's configuration that its weights need; the other keys are ignored.

    Attributes:
        arch: the architecture and its loss head.
        data_path: the data set; in a file of TRM's or URM's code, the only one in `data_paths`.
        global_batch_size: bounded, because a large one needs more memory than there is.
        micro_batch_size: of a run of this code.
        seed: of the training.
    """

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    arch: ArchConfig
    data_path: HomePath = Field(min_length=1, max_length=4096)
    global_batch_size: int = Field(default=768, ge=1, le=65_536)
    micro_batch_size: MicroBatchSize = None
    seed: int = Field(default=0, ge=0, lt=2**64)


def read_trained_config(folder: Path, data_path: str | None = None) -> TrainedConfig:
    """Read the `all_config.yaml` beside a trained model, whichever code wrote it and with what keys.

    Args:
        folder: where the file lies.
        data_path: the data set if the file has no `data_path`, whatever it has in `data_paths`.

    Returns:
        The model, its data set and what evaluation needs of the training.

    Raises:
        UserError: if it is missing, not plain YAML, lacks the model or its data set, names several, or exceeds a bound.
    """
    path = folder / CONFIG_FILE
    values = read_yaml(path)
    if values.get("data_path") is None and data_path:
        values["data_path"] = data_path
    elif values.get("data_path") is None and "data_paths" in values:
        values["data_path"] = _only_entry(values["data_paths"], str(path))
    try:
        config = TrainedConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, str(path))) from error
    check_bounds(config.arch.model_dump(), str(path))
    return config


def _only_entry(data_paths: object, origin: str) -> object:
    """Return the only entry of `data_paths`.

    Raises:
        UserError: if it is no list of one.
    """
    if not isinstance(data_paths, list) or not data_paths:
        raise UserError(f"data_paths = {shown(data_paths)} in {origin}; expected a list of the data set's folder")
    if len(data_paths) > _MAX_LENGTH:
        raise UserError(f"data_paths in {origin} has {len(data_paths):,} entries; at most {_MAX_LENGTH}")
    if len(data_paths) > 1:
        names = printable(", ".join(map(shown, data_paths)), 300)
        raise UserError(
            f"{origin} names {len(data_paths)} data sets in data_paths ({names}); give one as data_path=<folder>"
        )
    return data_paths[0]


def check_bounds(arch: dict[str, object], origin: str) -> None:
    """Check the values of any architecture against bounds.

    Args:
        arch: its keys and values.
        origin: where they are from, for the message.

    Raises:
        UserError: naming the key and the bound.
    """
    cycles, layers = 1.0, 0.0
    for key, value in _leaves("arch", arch):
        found = f"{origin}: {key} = {shown(value)}"
        if isinstance(value, str | list | dict) and len(value) > _MAX_LENGTH:
            raise UserError(f"{found} is too long; at most {_MAX_LENGTH} characters or items")
        number = _number(value)
        if number is None:
            continue
        limit = _MAX_THETA if key.endswith("theta") else _MAX_NUMBER
        if not abs(number) <= limit:  # nor is nan
            raise UserError(f"{found}; at most {limit:,.0f}")
        if key.endswith(("steps", "loops")) and number > _MAX_STEPS:
            raise UserError(f"{found}; at most {_MAX_STEPS:,} outer steps")
        if key.endswith("cycles"):
            cycles *= abs(number)
        elif key.endswith("layers"):
            layers += abs(number)
        if cycles * layers > _MAX_BLOCKS:
            raise UserError(
                f"{found} makes {cycles * layers:,.0f} blocks in one outer step, the product of all …cycles times the "
                f"sum of all …layers in arch; at most {_MAX_BLOCKS:,}"
            )


def _leaves(key: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield `value` and all values nested in it, each with its dotted key."""
    yield key, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{key}.{shown_name(name)}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(f"{key}.{index}", item)


def _number(value: object) -> int | float | None:
    """Return a number, or the number in a text that pydantic accepts as one: YAML reads `1e9` as a text."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
