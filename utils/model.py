"""From a configuration to a model: the architecture, loss head and optimiser, in the sizes of a data set."""

from __future__ import annotations

import inspect
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_flatten
from pydantic import ValidationError

from common.errors import UserError, describe_validation_error
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import padding_arrays
from models.act import ACTModel
from models.kernels import on_gpu
from models.loading import checked_options, load
from models.losses import ACTLossHead
from utils.checkpoints.foreign_config import check_bounds
from utils.config import ArchConfig, PretrainConfig


def default_forward_dtype() -> str:
    """Return `bfloat16` on a GPU, `float32` on a CPU, whose bfloat16 matmuls are many times slower."""
    return "bfloat16" if on_gpu() else "float32"


def with_forward_dtype(config: PretrainConfig) -> PretrainConfig:
    """Choose `arch.forward_dtype` where it is unset, so that the run's saved configuration names the one in use."""
    values = config.arch.model_dump()
    if values.get("forward_dtype") is None:
        values["forward_dtype"] = default_forward_dtype()
    return config.model_copy(update={"arch": ArchConfig.model_validate(values)})


def build_model(arch: ArchConfig, metadata: PuzzleDatasetMetadata, key: mx.array) -> ACTLossHead:
    """Make the model that `arch` names, in its loss head, with random weights.

    Args:
        arch: the configuration of both.
        metadata: the sizes of the data set.
        key: random key of the weights.

    Raises:
        UserError: if `arch` has unknown, missing or impossible values.
    """
    check_bounds(arch.model_dump(), "the configuration")
    model_class, head_class = (
        load(arch.name, "arch.name", "my_file@MyModel"),
        load(arch.loss.name, "arch.loss.name"),
    )
    if not (isinstance(model_class, type) and issubclass(model_class, ACTModel)):
        raise UserError(f"arch.name = {arch.name!r} is not a model; expected a subclass of act@ACTModel")
    if not (isinstance(head_class, type) and issubclass(head_class, ACTLossHead)):
        raise UserError(f"arch.loss.name = {arch.loss.name!r} is not a loss head; expected losses@ACTLossHead")
    options = checked_options(head_class, arch.loss.options(), "arch.loss", given=1)
    fields = {"forward_dtype": default_forward_dtype()} | arch.options()
    sizes = {name: getattr(metadata, name) for name in ("seq_len", "vocab_size", "num_puzzle_identifiers")}
    try:
        model_config = model_class.Config.model_validate(fields | sizes)
    except ValidationError as error:
        known = [f"arch.{field.alias or key}" for key, field in model_class.Config.model_fields.items()]
        raise UserError(describe_validation_error(error, "the configuration", "arch.", known)) from error
    return head_class(model_class(model_config, key), **options)


def build_optimizer(config: PretrainConfig) -> mlx.optimizers.Optimizer:
    """Make the optimiser of the weights that `optimizer.name` names: `module@Class` below models, or one of MLX's.

    Its constructor gets `lr`, `beta1`, `beta2` and `weight_decay` as `learning_rate`, `betas` and `weight_decay`, where
    it has these parameters, and the further keys of `optimizer`, which take precedence.

    Raises:
        UserError: if there is no such optimiser, or it has no such options.
    """
    name = config.optimizer.name
    found: Any = (
        load(name, "optimizer.name", "optimizers@AdamATan2") if "@" in name else getattr(mlx.optimizers, name, None)
    )
    if not (isinstance(found, type) and issubclass(found, mlx.optimizers.Optimizer)):
        raise UserError(
            f"optimizer.name = {name!r} is no optimiser; expected optimizers@AdamATan2, a class of mlx.optimizers such "
            "as Lion, or module@Class below models"
        )
    common = {
        "learning_rate": config.lr,
        "betas": [config.beta1, config.beta2],
        "weight_decay": config.weight_decay,
    }
    takes = inspect.signature(found).parameters
    options = {key: value for key, value in common.items() if key in takes} | config.optimizer.options()
    return found(**checked_options(found, options, "optimizer"))


def count_parameters(head: ACTLossHead) -> int:
    """Count the trainable weights, without the puzzle embedding and the fixed initial states."""
    return sum(parameter.size for parameter in dict(tree_flatten(head.trainable_parameters())).values())


def metric_names(head: ACTLossHead, metadata: PuzzleDatasetMetadata, *, training: bool) -> list[str]:
    """List the metrics of a loss head, in training or in evaluation, from a graph that is not computed."""
    batch = {name: mx.array(array) for name, array in padding_arrays(metadata, 1).items()}
    carry = head.model.begin_step(head.model.initial_carry(batch), batch)
    _, _, metrics, _ = head(carry, head.model.puzzle_rows(carry), training=training)
    return [name for name in metrics if name != "count"]
