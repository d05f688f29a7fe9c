"""The state of a training run, and the one compiled function that takes it a step further."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from pydantic import ValidationError

from common.errors import UserError, describe_validation_error
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import Batch
from models.common import on_gpu
from models.hrm.hrm_act_v1 import Carry
from models.losses import ACTLossHead
from models.optimizers import AdamATan2, learning_rate
from models.sparse_embedding import sign_sgd_rows
from utils.checkpoints.stored_tensors import StoredTensor
from utils.config import ArchConfig, PretrainConfig, load_model_class
from utils.ranks.ranks import Ranks

Metrics = dict[str, mx.array]


def default_forward_dtype() -> str:
    """`bfloat16` on a GPU; `float32` on a CPU, whose bfloat16 matrix products are many times slower."""
    return "bfloat16" if on_gpu() else "float32"


def with_forward_dtype(config: PretrainConfig) -> PretrainConfig:
    """Choose `arch.forward_dtype` where it is unset, so that the run's saved configuration names the one in use."""
    values = config.arch.model_dump()
    if values.get("forward_dtype") is None:
        values["forward_dtype"] = default_forward_dtype()
    return config.model_copy(update={"arch": ArchConfig.model_validate(values)})


def build_model(arch: ArchConfig, metadata: PuzzleDatasetMetadata, key: mx.array) -> ACTLossHead:
    """Make the model that `arch` names, in the sizes of a data set, with random weights drawn from `key`.

    Raises:
        UserError: if `arch` has unknown, missing or impossible values.
    """
    model_class, head_class = load_model_class(arch.name), load_model_class(arch.loss.name)
    fields = {"forward_dtype": default_forward_dtype()} | arch.model_fields_only()
    sizes = {name: getattr(metadata, name) for name in ("seq_len", "vocab_size", "num_puzzle_identifiers")}
    if not hasattr(model_class, "Config"):
        raise UserError(f"arch.name = {arch.name!r} is not a model; it has no Config")
    if not issubclass(head_class, ACTLossHead):
        raise UserError(f"arch.loss.name = {arch.loss.name!r} is not a loss head; expected losses@ACTLossHead")
    try:
        model_config = model_class.Config.model_validate(fields | sizes)
    except ValidationError as error:
        raise UserError(describe_validation_error(error, "the configuration", "arch.")) from error
    return head_class(model_class(model_config, key), arch.loss.loss_type)


def count_parameters(head: ACTLossHead) -> int:
    """Number of trainable weights; the puzzle embedding and the fixed initial states are not among them."""
    return sum(parameter.size for parameter in dict(tree_flatten(head.trainable_parameters())).values())


def to_device(batch: Batch) -> dict[str, mx.array]:
    """The arrays of a batch as MLX arrays."""
    return {name: mx.array(array) for name, array in batch.arrays.items()}


def all_finite(arrays: Any) -> mx.array:
    """Whether a tree of arrays holds neither NaN nor infinity: a bool scalar, computed on the device.

    Judged by the sum of each array, the cheapest look at all of its elements: one that is not finite makes the sum so.
    Finite elements beyond 1e30 may overflow it as well, and are called what they are about to become.
    """
    # In float32: the sum of a large float16 array overflows by nothing but the number of its elements.
    found = dict(tree_flatten(arrays)).values()
    # Columns first: they are added side by side, in half the time of the elements of a row.
    columns = [array.astype(mx.float32).sum(axis=0) if array.ndim else array for array in found if array is not None]
    return mx.isfinite(mx.stack([column.astype(mx.float32).sum() for column in columns])).all()


def _assign(tree: Any, values: Any) -> None:
    """Replace the arrays of a tree of dicts and lists in place, where the compiled step looks for them."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        if isinstance(tree[key], mx.array):
            tree[key] = values[key]
        elif tree[key]:  # what is frozen has no moments, but an empty place
            _assign(tree[key], values[key])


class TrainState:
    """Model, optimiser moments, random state, carry and step of a run.

    Args:
        config: the training configuration.
        metadata: the sizes of the training set.
        total_steps: steps of the whole run, for the learning rate schedule.
        keep: outputs that `train_step` shall return besides the metrics: any of `logits`, `q_halt_logits`,
            `q_continue_logits`, `target_q_continue`, `gradients`.
        ranks: the processes that share each global batch. The state of all of them is the same, but for the carry, of
            which each has its rows.
    """

    def __init__(
        self,
        config: PretrainConfig,
        metadata: PuzzleDatasetMetadata,
        *,
        total_steps: int,
        keep: Collection[str] = (),
        ranks: Ranks | None = None,
    ):
        self.ranks = ranks or Ranks()
        self.config = config
        self._metadata = metadata
        self.total_steps = total_steps
        self.step = 0
        self.carry: Carry | None = None

        model_key, step_key = mx.random.split(mx.random.key(config.seed))
        self.head = build_model(config.arch, metadata, model_key)
        self.optimizer = AdamATan2(config.lr, (config.beta1, config.beta2), config.weight_decay)
        self.optimizer.init(self.head.trainable_parameters())
        self.random = {"key": step_key}
        self.trace_count = 0  # how often MLX traced the step; more than once means that a shape or dtype changed
        self.uncompiled_step = self._make_step(frozenset(keep))
        self._compiled_step = mx.compile(self.uncompiled_step, inputs=self.arrays, outputs=self.arrays)

    @property
    def arrays(self) -> list[Any]:
        """Everything that a step reads and replaces, besides the carry."""
        return [self.head.state, self.optimizer.state, self.random]

    def weights(self) -> dict[str, mx.array]:
        """All weights, buffers and puzzle embeddings, under their names in a checkpoint."""
        return dict(tree_flatten(self.head.parameters()))

    def named_arrays(self) -> dict[str, mx.array]:
        """What the next step depends on besides the weights: `optimizer.…`, `random.key` and `carry.…`.

        With several ranks, all have to call this. The carry is that of the global batch on rank 0, elsewhere the own.
        """
        return self._named(self.ranks.rows_for_first(self.carry))

    def _named(self, carry: Carry) -> dict[str, mx.array]:
        return dict(tree_flatten({"optimizer": self.optimizer.state, "random": self.random, "carry": carry}))

    def restore(self, step: int, arrays: Mapping[str, StoredTensor], origin: str) -> None:
        """Become what `named_arrays` was taken of after `step` steps. The weights are restored apart from this.

        With several ranks, all have to call this; only rank 0's `arrays` count. How many ranks there were before
        doesn't matter.

        Raises:
            UserError: if names, shapes or dtypes are not those of this state; `origin` stands in the message.
        """
        c, meta = self.config, self._metadata
        rows, tokens = mx.zeros((c.global_batch_size,), mx.int32), (c.global_batch_size, meta.seq_len)
        blank = {"inputs": mx.zeros(tokens, mx.int32), "labels": mx.zeros(tokens, mx.int32), "puzzle_identifiers": rows}
        expected = self._named(self.head.model.initial_carry(blank))
        for name, own in expected.items() if self.ranks.first else ():
            found = arrays.get(name)
            dtype = str(own.dtype).rpartition(".")[2]
            if found is None or (found.shape, found.dtype) != (own.shape, dtype):
                what = "is missing" if found is None else f"is {found.dtype} {found.shape}"
                raise UserError(
                    f"{origin}: {name} {what}, expected {dtype} {own.shape}; was it made by another version?"
                )
        restored = {}
        for name, own in expected.items():
            array = self.ranks.share(arrays[name].read() if self.ranks.first else own)
            restored[name] = self.ranks.own_rows(array) if name.startswith("carry.") else array
            mx.eval(restored[name])
        stored = tree_unflatten(list(restored.items()))
        _assign(self.optimizer.state, stored["optimizer"])
        _assign(self.random, stored["random"])
        self.carry = stored["carry"]
        self.step = step

    def learning_rates(self, step: int) -> tuple[float, float]:
        """The rates of AdamATan2 and of the puzzle embedding for a step, counted from 1."""
        c = self.config
        weights_lr, puzzle_emb_lr = (
            learning_rate(
                step,
                base=base,
                warmup_steps=c.lr_warmup_steps,
                total_steps=self.total_steps,
                min_ratio=c.lr_min_ratio,
            )
            for base in (c.lr, c.puzzle_emb_lr)
        )
        return weights_lr, puzzle_emb_lr

    def train_step(self, batch: dict[str, mx.array], flag: float = 0.0) -> tuple[Metrics, dict[str, Any]]:
        """Take one step on a global batch. Nothing is computed before the results are evaluated.

        Args:
            batch: this rank's slice of it, int32 arrays `inputs` `[b, s]`, `labels` `[b, s]` and `puzzle_identifiers`
                `[b]`.
            flag: a number whose sum over several ranks shall be among the metrics, as `flags`.

        Returns:
            The metric sums over the global batch (float32 scalars, `loss` among them) with the bool `finite`, and the
            outputs asked for with `keep`, of this rank's rows. Where `finite` is false, loss or gradients held an
            infinity or NaN, and the step left parameters, moments, puzzle embeddings and carry as they were.
        """
        if self.carry is None:
            self.carry = self.head.model.initial_carry(batch)
        self.step += 1
        rates = [mx.array(rate, mx.float32) for rate in self.learning_rates(self.step)]
        if self.ranks.size > 1:
            rates.append(mx.array(flag, mx.float32))
        self.carry, metrics, kept = self._compiled_step(self.carry, batch, *rates)
        return metrics, kept

    def _make_step(self, keep: frozenset[str]) -> Callable[..., tuple[Carry, Metrics, dict[str, Any]]]:
        head, optimizer, random, config, ranks = self.head, self.optimizer, self.random, self.config, self.ranks

        def step(
            carry: Carry,
            batch: dict[str, mx.array],
            lr: mx.array,
            puzzle_emb_lr: mx.array,
            flag: mx.array | None = None,
        ) -> tuple[Carry, Metrics, dict[str, Any]]:
            self.trace_count += 1  # runs at tracing only
            random["key"], exploration_key = mx.random.split(random["key"])
            earlier_carry, carry = carry, head.model.begin_step(carry, batch)
            puzzle_rows = head.model.puzzle_rows(carry)

            def loss_fn(parameters: dict, rows: mx.array | None) -> tuple[mx.array, Any]:
                head.update(parameters)
                loss, new_carry, metrics, outputs = head(
                    carry, rows, training=True, key=exploration_key, rank=ranks.rank, num_ranks=ranks.size
                )
                return loss / config.global_batch_size, (loss, new_carry, metrics, outputs)

            argnums = 0 if puzzle_rows is None else (0, 1)
            (_, (loss, carry, metrics, outputs)), gradients = mx.value_and_grad(loss_fn, argnums=argnums)(
                head.trainable_parameters(), puzzle_rows
            )
            gradient, row_gradients = (gradients, None) if puzzle_rows is None else gradients
            metrics |= {"loss": loss}
            identifiers = carry["current_data"]["puzzle_identifiers"]
            if ranks.size > 1:
                gradient, metrics = ranks.sum((gradient, metrics | {"flags": flag}))
                if row_gradients is not None:
                    identifiers, row_gradients = ranks.all_rows(identifiers), ranks.all_rows(row_gradients)
                    puzzle_rows = head.model.inner.puzzle_emb(identifiers)
            # Judged after the sums, so that all ranks come to the same verdict.
            gradients = gradient if row_gradients is None else (gradient, row_gradients)
            # The squares, because AdamATan2's second moment is made of them. Once that is infinite, its parameter stays
            # where it is for ever; and infinities of either sign don't cancel one another.
            finite = all_finite([metrics["loss"], tree_map(mx.square, gradients)])

            optimizer.learning_rate = lr
            optimizer.update_if(finite, head, gradient)
            if puzzle_rows is not None and row_gradients is not None:
                sign_sgd_rows(
                    head.model.inner.puzzle_emb.weights,
                    identifiers,
                    puzzle_rows,
                    mx.where(finite, row_gradients, 0.0),
                    mx.where(finite, puzzle_emb_lr, 0.0),  # with both zero the rows stay as they are, bit for bit
                    config.puzzle_emb_weight_decay,
                )

            carry = tree_map(lambda new, old: mx.where(finite, new, old), carry, earlier_carry)
            outputs |= {"gradients": (gradient, row_gradients)}
            return carry, metrics | {"finite": finite}, {name: outputs[name] for name in keep}

        return step
