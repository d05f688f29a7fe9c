"""The `key=value` command lines of evaluate.py and of the modules of utils that are run: their keys, checked."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from common.errors import UserError, describe_validation_error
from utils.config import DEFAULT_PREDICTION_KEYS, PredictionKey, check_film, hydra_errors
from utils.ranks.watch import DEFAULT_TIMEOUT


class EvaluateConfig(BaseModel):
    """All keys of evaluate.py; null, where it is allowed, means: as the checkpoint was trained."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # data_path=2024

    checkpoint: str
    data_path: str | None = None
    save_outputs: list[PredictionKey] = list(DEFAULT_PREDICTION_KEYS)
    output_path: str | None = None
    eval_halt: Literal["max", "q"] = "max"
    global_batch_size: int | None = Field(default=None, ge=1)
    max_examples: int | None = Field(default=None, ge=1)
    forward_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    show_examples: int = Field(default=0, ge=0)
    rank_timeout: float = Field(default=DEFAULT_TIMEOUT, ge=1)

    @model_validator(mode="after")
    def _film_is_complete(self) -> EvaluateConfig:
        check_film(self.eval_halt, self.save_outputs, "save_outputs")
        return self


class ExportConfig(BaseModel):
    """All keys of `python -m utils.export`.

    `checkpoint`: what evaluate.py takes. `out`: the file to write. `prefix`: put before every name, such as
    `_orig_mod.` for a model under torch.compile. `overwrite`: replace a file that is there.
    """

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    checkpoint: str
    out: str = Field(min_length=1)
    prefix: str = ""
    overwrite: bool = False


class ArcConfig(BaseModel):
    """All keys of `python -m utils.arc`.

    `predictions`: folders, or patterns such as `run/step_1000_all_preds.*`. `data_path`: the data set; null means the
    one that the run was trained on. `submission`, `table`: files to write, if any.
    """

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    predictions: Annotated[
        list[str], BeforeValidator(lambda value: value if isinstance(value, list) else [value]), Field(min_length=1)
    ]
    data_path: str | None = None
    submission: str | None = None
    table: str | None = None


CommandLine = TypeVar("CommandLine", bound=BaseModel)


def parse_evaluate_config(arguments: list[str]) -> EvaluateConfig:
    """Check the `key=value` arguments of evaluate.py.

    Raises:
        UserError: one line that names the key, what was found and what is expected.
    """
    return parse(arguments, EvaluateConfig, "python evaluate.py", checkpoint="<step folder, file or hub id>")


def parse_export_config(arguments: list[str]) -> ExportConfig:
    """Check the `key=value` arguments of `python -m utils.export`.

    Raises:
        UserError: one line that names the key, what was found and what is expected.
    """
    required = {"checkpoint": "<step folder, file or hub id>", "out": "<name>.safetensors"}
    return parse(arguments, ExportConfig, "python -m utils.export", **required)


def parse_arc_config(arguments: list[str]) -> ArcConfig:
    """Check the `key=value` arguments of `python -m utils.arc`.

    Raises:
        UserError: one line that names the key, what was found and what is expected.
    """
    return parse(arguments, ArcConfig, "python -m utils.arc", predictions="<folder or pattern>")


def parse(arguments: list[str], kind: type[CommandLine], command: str, **required: str) -> CommandLine:
    """Check `key=value` arguments.

    Args:
        arguments: what follows the program's name on the command line.
        kind: has all keys as its fields.
        command: how the program is called.
        required: keys that have to be there, each with what stands for its value in the usage line.

    Raises:
        UserError: one line that names the key, what was found and what is expected.
    """
    given = " ".join(f"{name}={placeholder}" for name, placeholder in required.items())
    usage = f"usage: {command} {given} " + " ".join(f"[{name}=…]" for name in kind.model_fields if name not in required)
    malformed = [argument for argument in arguments if "=" not in argument or argument.startswith("-")]
    if malformed:
        raise UserError(f"{malformed[0]!r} is not key=value; {usage}")
    if not all(any(argument.startswith(f"{name}=") for argument in arguments) for name in required):
        raise UserError(usage)
    try:
        with hydra_errors():
            values = OmegaConf.to_container(OmegaConf.from_cli(arguments), resolve=True)
    except yaml.YAMLError as error:
        raise UserError(f"{' '.join(arguments)} can't be read: {error}") from error
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "the command line")) from error
