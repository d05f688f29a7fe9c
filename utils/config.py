"""Typed configuration: what Hydra composes or a checkpoint holds, checked key by key before anything else happens."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import coolname
import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import UserError, describe_validation_error
from utils.ranks.watchdog import DEFAULT_TIMEOUT

CONFIG_FILE = "all_config.yaml"  # beside the step folders of a run; the same name as in the PyTorch code
_MAX_FILE_BYTES = 64 << 10  # of a saved configuration; a run writes about 1.5 kB
_MAX_DEPTH = 8  # of values within one another; a run writes 4

# step_preds: the prediction after every outer step and, in step_q_halt_logits and step_q_continue_logits, its Q values
PredictionKey = Literal[
    "inputs", "labels", "puzzle_identifiers", "preds", "logits", "q_halt_logits", "q_continue_logits", "step_preds"
]
DEFAULT_PREDICTION_KEYS: tuple[PredictionKey, ...] = (
    "inputs",
    "labels",
    "puzzle_identifiers",
    "preds",
    "q_halt_logits",
    "q_continue_logits",
)


def check_film(eval_halt: str, save_outputs: list[PredictionKey], key: str) -> None:
    """Refuse what can't be had: predictions after outer steps that are not taken.

    Raises:
        ValueError: if `save_outputs`, the value of the configuration's `key`, has step_preds while rows stop by Q.
    """
    if eval_halt == "q" and "step_preds" in save_outputs:
        raise ValueError(
            f"{key} has step_preds, the predictions after every outer step, and with eval_halt = 'q' examples take "
            f"different numbers of them; use eval_halt=max, or leave step_preds out"
        )


class LossConfig(BaseModel):
    """The loss head: `name` is `module@Class` below `models`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=200)  # an import of thousands of packages within one another exhausts the stack
    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"]


class ArchConfig(BaseModel):
    """The architecture: `name` is `module@Class` below `models`; the other keys are checked by that class's config."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(max_length=200)
    loss: LossConfig

    def model_fields_only(self) -> dict[str, Any]:
        """The keys meant for the model's own config. Unset ones (null) are left out."""
        return {key: value for key, value in (self.__pydantic_extra__ or {}).items() if value is not None}


class StopWhen(BaseModel):
    """Early stopping: stop once `metric` is ≥ `at_least` or ≤ `at_most`; off while `metric` is null."""

    model_config = ConfigDict(extra="forbid")

    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    window: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> StopWhen:
        if self.metric is None:
            if self.at_least is not None or self.at_most is not None:
                raise ValueError("set stop_when.metric too, such as train/exact_accuracy")
            return self
        if not self.metric.startswith(("train/", "eval/")):
            raise ValueError(f"metric = {self.metric!r}; name a logged one, such as train/exact_accuracy")
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("set one of stop_when.at_least and stop_when.at_most")
        return self

    def reason(self, found: dict[str, float], over: str = "") -> str | None:
        """What asks to stop, if the metrics found do: the metric, its value and `over` what it was averaged."""
        value = (
            None if self.metric is None else found.get(self.metric)
        )  # absent if eval_max_examples leaves its set out
        if value is None:
            return None
        met = (self.at_least is not None and value >= self.at_least) or (
            self.at_most is not None and value <= self.at_most
        )
        return f"{self.metric} = {value:.4f}{over}" if met else None


class PretrainConfig(BaseModel):
    """All keys of pretrain.py. Defaults are in config/cfg_pretrain.yaml, which says what each is for."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # run_name=5

    arch: ArchConfig
    data_path: str = Field(min_length=1)

    global_batch_size: int = Field(ge=1)
    epochs: int = Field(ge=1)
    eval_interval: int | None = Field(default=None, ge=1)
    checkpoint_every_eval: bool = False
    checkpoint_interval: int | None = Field(default=None, ge=1)
    keep_checkpoints: int | None = Field(default=None, ge=1)
    resume: str | None = Field(default=None, min_length=1)

    lr: float = Field(ge=0)
    lr_min_ratio: float = Field(ge=0)
    lr_warmup_steps: int = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    puzzle_emb_lr: float = Field(ge=0)
    puzzle_emb_weight_decay: float = Field(ge=0)

    project_name: str | None = None
    run_name: str | None = None
    checkpoint_path: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**64)
    eval_save_outputs: list[PredictionKey] = []

    eval_halt: Literal["max", "q"] = "max"
    eval_max_examples: int | None = Field(default=None, ge=1)
    log_interval: int = Field(default=1, ge=1)
    log_examples: int = Field(default=0, ge=0)
    load_weights: str | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    stop_when: StopWhen = StopWhen()
    rank_timeout: float = Field(default=DEFAULT_TIMEOUT, ge=1)

    @model_validator(mode="after")
    def _whole_intervals(self) -> PretrainConfig:
        if self.eval_interval is not None and self.epochs % self.eval_interval:
            nearest = max(1, round(self.epochs / self.eval_interval)) * self.eval_interval
            raise ValueError(
                f"epochs = {self.epochs} is not a multiple of eval_interval = {self.eval_interval}; "
                f"try epochs={nearest}, or an eval_interval that divides it"
            )
        return self

    @model_validator(mode="after")
    def _film_is_complete(self) -> PretrainConfig:
        check_film(self.eval_halt, self.eval_save_outputs, "eval_save_outputs")
        return self

    @property
    def epochs_per_iteration(self) -> int:
        """Epochs from one evaluation to the next."""
        return self.eval_interval or self.epochs


class TrainedConfig(BaseModel):
    """What a trained model's configuration has to hold for its weights to be used; the other keys are the training's.

    The bound on `global_batch_size` keeps a file from elsewhere from asking for more memory than there is.
    """

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    arch: ArchConfig
    data_path: str = Field(min_length=1, max_length=4096)
    global_batch_size: int = Field(default=768, ge=1, le=65_536)
    seed: int = Field(default=0, ge=0, lt=2**64)


@contextlib.contextmanager
def hydra_errors() -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise within into UserError, in this project's words."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = " ".join(lines) or type(error).__name__
        if isinstance(error, OverrideParseException):
            quoted = "'{}=\"{}\"'".format(*error.override.partition("=")[::2])
            message = (
                f"{error.override!r} can't be read: {lines[0]}; quote a value with special characters, as in {quoted}"
            )
        elif lines and lines[0].startswith("Could not override"):
            key = lines[0].removeprefix("Could not override").strip(" '.\"")
            message = f"unknown key {key!r} on the command line; `--cfg job` lists the known ones"
        raise UserError(message) from error


def parse_pretrain_config(config: DictConfig | dict[str, Any], origin: str = "the configuration") -> PretrainConfig:
    """Check a composed configuration.

    Raises:
        UserError: one line that names the key, what was found and what is expected.
    """
    with hydra_errors():
        values = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    try:
        return PretrainConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, origin)) from error


def with_names(config: PretrainConfig) -> PretrainConfig:
    """Choose the names that are unset: project `<Data set> ACT-mlx`, run `<Class> <two words>`, and the checkpoint path
    `checkpoints/<project>/<run>`."""
    project = config.project_name or f"{Path(config.data_path).name.capitalize()} ACT-mlx"
    run = config.run_name or f"{config.arch.name.split('@')[-1]} {coolname.generate_slug(2)}"
    path = config.checkpoint_path or str(Path("checkpoints", project, run))
    return config.model_copy(update={"project_name": project, "run_name": run, "checkpoint_path": path})


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases and of little depth: a few lines of nested aliases stand for more than memory holds."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.line + 1} has an alias (*name); write out what it stands for")
        if self._depth == _MAX_DEPTH:
            raise yaml.YAMLError(f"line {self.line + 1} has more than {_MAX_DEPTH} values within one another")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _read_values(path: Path) -> dict[Any, Any]:
    """The values of a saved configuration that nobody vouches for."""
    try:
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
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # PyYAML lets values' own ones through
        raise UserError(f"{path} can't be read: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no configuration: expected keys and values, found {type(values).__name__}")
    return values


def read_saved_config(folder: Path) -> PretrainConfig:
    """Read the `all_config.yaml` that pretrain.py wrote into a run's folder, to go on with that run.

    Raises:
        UserError: if it is missing, not plain YAML, or does not hold a training configuration.
    """
    path = folder / CONFIG_FILE
    return parse_pretrain_config(_read_values(path), str(path))


def read_trained_config(folder: Path) -> TrainedConfig:
    """Read what the `all_config.yaml` beside a trained model says of it, whichever code wrote it and with what keys.

    Raises:
        UserError: if it is missing, not plain YAML, or lacks the model or its data set.
    """
    path = folder / CONFIG_FILE
    try:
        return TrainedConfig.model_validate(_read_values(path))
    except ValidationError as error:
        raise UserError(describe_validation_error(error, str(path))) from error


def write_saved_config(config: PretrainConfig, folder: Path) -> None:
    """Write `all_config.yaml`; `read_saved_config` gives back an equal configuration."""
    text = yaml.safe_dump(config.model_dump(), sort_keys=True, allow_unicode=True)
    temporary = folder / f".{CONFIG_FILE}.partial"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(folder / CONFIG_FILE)


def load_model_class(identifier: str) -> type:
    """The class that `module@Class` names below the package `models`, such as `losses@ACTLossHead`.

    Raises:
        UserError: if it is not of that form, or there is no such module or class. No module from elsewhere is imported.
    """
    module_path, separator, class_name = identifier.partition("@")
    parts = [*module_path.split("."), class_name]
    expected = "expected module@Class below models, such as hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1"
    if not separator or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise UserError(f"architecture name {identifier!r}: {expected}")
    module_name = f"models.{module_path}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"architecture name {identifier!r}: there is no module {module_name}; {expected}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or not found.__module__.startswith("models."):
        raise UserError(f"architecture name {identifier!r}: {module_name} defines no class {class_name}; {expected}")
    return found
