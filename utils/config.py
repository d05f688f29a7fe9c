"""Typed configuration: what Hydra composes or a checkpoint holds, checked key by key. Needs no Hydra itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import coolname
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import UserError, describe_validation_error
from common.files import HomePath, replacing
from utils.evaluation.thinking import MAX_SAMPLES, MAX_STEPS, Choose, Thinking, check_samples
from utils.plain_yaml import read_yaml
from utils.ranks.watchdog import DEFAULT_TIMEOUT

CONFIG_FILE = "all_config.yaml"  # beside the step folders of a run; the same name as in the PyTorch code

# step_preds: the predictions after every outer step, with step_q_halt_logits, step_q_continue_logits and step_halted;
# samples: the answer of every sample, with sample_q_halt_logits, sample_movement and sample_steps
PredictionKey = Literal[
    "inputs",
    "labels",
    "puzzle_identifiers",
    "preds",
    "logits",
    "q_halt_logits",
    "q_continue_logits",
    "step_preds",
    "samples",
]
DEFAULT_PREDICTION_KEYS: tuple[PredictionKey, ...] = (
    "inputs",
    "labels",
    "puzzle_identifiers",
    "preds",
    "q_halt_logits",
    "q_continue_logits",
)

# Rows of a slice, of each rank; auto: as many as the device has memory for; null: the whole batch
MicroBatchSize = Annotated[int, Field(ge=1)] | Literal["auto"] | None

# What a model gets as its table of puzzle embeddings: the stored one, the mean of its rows in every row, or zeros
LoadPuzzleEmb = Literal["exact", "mean", "skip"]


def check_outputs(thinking: Thinking, eval_halt: str, save_outputs: list[PredictionKey], prefix: str = "") -> None:
    """Check that what is to be saved of an evaluation exists there.

    Args:
        thinking: how far the evaluation thinks.
        eval_halt: `max` or `q`.
        save_outputs: the arrays to save.
        prefix: before the names of the keys, for messages; eval_halt has the same name everywhere.

    Raises:
        ValueError: if step_preds are saved where examples take different numbers of outer steps, or logits where they
            are those of a copy with other tokens.
    """
    if "step_preds" in save_outputs and (eval_halt == "q" or not thinking.is_plain):
        what = "eval_halt = 'q'" if eval_halt == "q" else f"{prefix}samples or {prefix}max_steps"
        raise ValueError(
            f"{prefix}save_outputs has step_preds, the predictions after every outer step, but with {what} examples "
            "take different numbers of outer steps; use eval_halt=max without them, or leave step_preds out"
        )
    if "logits" in save_outputs and thinking.relabel:
        raise ValueError(
            f"{prefix}save_outputs has logits, but with {prefix}relabel they are those of other tokens; leave one of "
            "them out"
        )


class NamedConfig(BaseModel):
    """A class that a configuration names, and its options, which that class checks.

    Attributes:
        name: `module@Class` below `models`, or for optimisers a class of `mlx.optimizers`.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(max_length=200)  # an import of thousands of nested packages exhausts the stack

    def options(self) -> dict[str, Any]:
        """Return the keys beside `name`. Unset ones (null) are left out."""
        return {key: value for key, value in (self.__pydantic_extra__ or {}).items() if value is not None}


class ArchConfig(NamedConfig):
    """The architecture, and in `loss` its loss head."""

    loss: NamedConfig


class StopWhen(BaseModel):
    """Early stopping.

    Attributes:
        metric: a logged metric; null turns early stopping off.
        at_least: stop once the metric is ≥ this.
        at_most: or once it is ≤ this.
        window: steps over which a training metric is averaged first.
    """

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
        """Return why to stop: the metric, its value and `over` what it was averaged; None to go on."""
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
    """The keys of pretrain.py; config/cfg_pretrain.yaml has their defaults and describes them."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # run_name=5

    arch: ArchConfig
    data_path: HomePath = Field(min_length=1)

    global_batch_size: int = Field(ge=1)
    micro_batch_size: MicroBatchSize = None
    epochs: int = Field(ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    eval_interval: int | None = Field(default=None, ge=1)
    min_eval_interval: int = Field(default=0, ge=0)
    checkpoint_every_eval: bool = False
    checkpoint_interval: int | None = Field(default=None, ge=1)
    keep_checkpoints: int | None = Field(default=None, ge=1)
    resume: HomePath | None = Field(default=None, min_length=1)

    lr: float = Field(ge=0)
    lr_min_ratio: float = Field(ge=0)
    lr_warmup_steps: int = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    optimizer: NamedConfig = NamedConfig(name="optimizers@AdamATan2")
    puzzle_emb_lr: float = Field(ge=0)
    puzzle_emb_weight_decay: float = Field(ge=0)
    ema: bool = False
    ema_rate: float = Field(default=0.999, ge=0, lt=1)
    freeze_weights: bool = False

    project_name: str | None = None
    run_name: str | None = None
    checkpoint_path: HomePath | None = None
    seed: int = Field(default=0, ge=0, lt=2**64)
    eval_save_outputs: list[PredictionKey] = []

    eval_batch_size: int | None = Field(default=None, ge=1)
    eval_halt: Literal["max", "q"] = "max"
    eval_max_examples: int | None = Field(default=None, ge=1)
    eval_samples: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    eval_max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    eval_noise: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    eval_random_init: bool = False
    eval_relabel: bool = False
    eval_choose: Choose = "auto"
    log_interval: int = Field(default=1, ge=1)
    log_examples: int = Field(default=0, ge=0)
    load_weights: HomePath | None = None
    load_puzzle_emb: LoadPuzzleEmb = "exact"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    stop_when: StopWhen = StopWhen()
    rank_timeout: float = Field(default=DEFAULT_TIMEOUT, ge=1)
    forecast: bool = False

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
    def _evaluation_is_possible(self) -> PretrainConfig:
        check_samples(self.eval_samples, self.eval_noise, self.eval_random_init, self.eval_relabel, "eval_")
        check_outputs(self.thinking, self.eval_halt, self.eval_save_outputs, "eval_")
        return self

    @model_validator(mode="after")
    def _puzzle_emb_is_of_weights(self) -> PretrainConfig:
        if self.load_puzzle_emb != "exact" and self.load_weights is None:
            raise ValueError(
                f"load_puzzle_emb = {self.load_puzzle_emb!r} is about the puzzle embeddings in load_weights, which is "
                "not set; give load_weights too, or leave load_puzzle_emb out"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """The folder of the run, once `with_names` has chosen `checkpoint_path`."""
        return Path(str(self.checkpoint_path))

    @property
    def thinking(self) -> Thinking:
        """How far evaluations think about each puzzle."""
        return Thinking(**{name: getattr(self, f"eval_{name}") for name in Thinking.model_fields})

    @property
    def epochs_per_iteration(self) -> int:
        """Epochs from one evaluation to the next."""
        return self.eval_interval or self.epochs


def parse_pretrain_config(values: dict[str, Any], origin: str = "the configuration") -> PretrainConfig:
    """Check a composed configuration.

    Args:
        values: what Hydra composed, or a file holds.
        origin: where it is from, for messages.

    Raises:
        UserError: one line that names the key, what was found and what is expected.
    """
    try:
        return PretrainConfig.model_validate(values)
    except ValidationError as error:
        arch = values.get("arch") if isinstance(values, dict) else None
        known = [*PretrainConfig.model_fields, *(f"stop_when.{key}" for key in StopWhen.model_fields)]
        known += [f"arch.{key}" for key in arch] if isinstance(arch, dict) else []
        raise UserError(describe_validation_error(error, origin, known=known)) from error


def with_names(config: PretrainConfig) -> PretrainConfig:
    """Choose the names that are unset.

    The project is `<Data set> ACT-mlx`, the run `<Class> <two words>`, the path `checkpoints/<project>/<run>`.

    Raises:
        UserError: if that path would not lie right there, because a name has a `/` or is `..`.
    """
    project = config.project_name or f"{Path(config.data_path).name.capitalize()} ACT-mlx"
    run = config.run_name or f"{config.arch.name.split('@')[-1]} {coolname.generate_slug(2)}"
    for key, name in (("project_name", project), ("run_name", run)):
        if config.checkpoint_path is None and ("/" in name or name in (".", "..")):
            raise UserError(
                f"{key} = {name!r} can't name a folder in checkpoints; leave '/' and '..' out, or give checkpoint_path "
                "as well"
            )
    path = config.checkpoint_path or str(Path("checkpoints", project, run))
    return config.model_copy(update={"project_name": project, "run_name": run, "checkpoint_path": path})


def read_saved_config(folder: Path) -> PretrainConfig:
    """Read the `all_config.yaml` that pretrain.py wrote into a run's folder.

    Raises:
        UserError: if it is missing, not plain YAML, or does not hold a training configuration.
    """
    path = folder / CONFIG_FILE
    return parse_pretrain_config(read_yaml(path), str(path))


def write_saved_config(config: PretrainConfig, folder: Path) -> None:
    """Write `all_config.yaml`; `read_saved_config` returns an equal configuration."""
    text = yaml.safe_dump(config.model_dump(), sort_keys=True, allow_unicode=True)
    with replacing(folder / CONFIG_FILE) as partial:
        partial.write_text(text, encoding="utf-8")
