"""The state of a run, which every training step updates."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from common.errors import UserError
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import Batch, padding_arrays
from models.act import Carry
from utils.checkpoints.stored_tensors import StoredTensor
from utils.config import PretrainConfig
from utils.model import build_model, build_optimizer, count_parameters
from utils.ranks.ranks import Ranks
from utils.train.schedule import learning_rate
from utils.train.step import StepResult, make_train_step


def to_device(batch: Batch) -> dict[str, mx.array]:
    """Bring the arrays of a batch to the device."""
    return {name: mx.array(array) for name, array in batch.arrays.items()}


class TrainState:
    """Model, optimiser moments, random state, carry and step of a run.

    Args:
        config: the training configuration.
        metadata: the sizes of the training set.
        total_steps: steps of the whole run, for the learning rate schedule.
        micro_batch_size: rows of a slice in which a step is taken, of each rank; None: all at once.
        keep: outputs that `train_step` returns besides the metrics: any of `logits`, `q_halt_logits`,
            `q_continue_logits`, `target_q_continue`, …, and `gradients`.
        ranks: the processes that share each global batch. All have the same state, except for the carry, of which each
            has its rows.

    Attributes:
        head: the model with its loss.
        num_parameters: its weights, without the puzzle embedding and the fixed initial states.
        optimizer: of the weights.
        random: the random key, under `key`.
        ema: with `config.ema`, the moving average of the trainable weights, a tree under `weights`, from the first step
            on.
        carry: of this rank's rows; None before the first step.
        step: steps taken.
        metadata, total_steps, micro_batch_size: the arguments.
    """

    def __init__(
        self,
        config: PretrainConfig,
        metadata: PuzzleDatasetMetadata,
        *,
        total_steps: int,
        micro_batch_size: int | None = None,
        keep: Collection[str] = (),
        ranks: Ranks | None = None,
    ):
        self.ranks = ranks or Ranks()
        self.config = config
        self.metadata = metadata
        self.total_steps = total_steps
        self.micro_batch_size = micro_batch_size
        self.step = 0
        self.carry: Carry | None = None

        model_key, step_key = mx.random.split(mx.random.key(config.seed))
        self.head = build_model(config.arch, metadata, model_key)
        self.num_parameters = count_parameters(self.head)
        if config.freeze_weights:
            if self.head.model.puzzle_emb is None:
                raise UserError("freeze_weights leaves the puzzle embedding to be trained, and this model has none")
            self.head.freeze()
        self.optimizer = build_optimizer(config)
        self.optimizer.init(self.head.trainable_parameters())
        self.random = {"key": step_key}
        self.ema: dict[str, Any] = {}
        self._take_step = make_train_step(
            self.head,
            self.optimizer,
            self.random,
            self.ema,
            config,
            self.ranks,
            micro_batch_size=micro_batch_size,
            keep=keep,
        )

    @property
    def arrays(self) -> list[Any]:
        """Everything that a step reads and replaces, besides the carry."""
        return [self.head.state, self.optimizer.state, self.random, self.ema]

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averaged weights into the model for the duration of a block, in which no training step is taken."""
        weights = self.head.trainable_parameters()
        self.head.update(self.ema.get("weights", weights))
        try:
            yield
        finally:
            self.head.update(weights)

    def weights(self) -> dict[str, mx.array]:
        """Return all weights, averaged where there is an average, buffers and puzzle embeddings, by name."""
        return dict(tree_flatten(self.head.parameters())) | dict(tree_flatten(self.ema.get("weights", {})))

    def named_arrays(self) -> dict[str, mx.array]:
        """Return what the next step depends on besides `weights()`.

        That is `optimizer.…`, `random.key` and `carry.…`; with an average also `raw.…`, the weights that are trained.
        All ranks have to call this. On rank 0 the carry is that of the global batch, elsewhere of the rank's rows.
        """
        return self._named(self.ranks.rows_for_first(self.carry))

    def checkpoint_arrays(self, carry: Carry) -> list[Any]:
        """Return all arrays of a checkpoint, with this carry of the global batch."""
        return [self.weights(), self._named(carry)]

    def _named(self, carry: Carry) -> dict[str, mx.array]:
        tree = {"optimizer": self.optimizer.state, "random": self.random, "carry": carry}
        if self.config.ema:
            tree["raw"] = self.head.trainable_parameters()
        return dict(tree_flatten(tree))

    def restore(self, step: int, arrays: Mapping[str, StoredTensor], origin: str) -> None:
        """Restore the state of which `named_arrays` returned the arrays, once `head` has the weights of `weights()`.

        All ranks have to call this. The number of ranks may be another than when the arrays were saved.

        Args:
            step: steps taken.
            arrays: by name; only rank 0's are used.
            origin: where they are from, for the message.

        Raises:
            UserError: if names, shapes or dtypes are not those of this state.
        """
        padding = padding_arrays(self.metadata, self.config.global_batch_size)
        blank = {name: mx.array(array) for name, array in padding.items()}
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
        if self.config.ema:
            self.ema["weights"] = self.head.trainable_parameters()
            self.head.update(stored.get("raw", {}))
        self.carry = stored["carry"]
        self.step = step

    def learning_rates(self, step: int) -> tuple[float, float]:
        """Compute the learning rates of the weights and of the puzzle embedding for a step, counted from 1."""
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

    def train_step(self, batch: dict[str, mx.array], signal: float = 0.0) -> StepResult:
        """Take one step on a global batch.

        With one slice and one rank nothing is computed before the results are evaluated. Otherwise all but the update
        is.

        Args:
            batch: this rank's slice, int32 arrays `inputs` `[b, s]`, `labels` `[b, s]`, `puzzle_identifiers` `[b]`,
                and the fields of the data set.
            signal: a number to be summed over ranks.

        Returns:
            The results, on the device.
        """
        if self.carry is None:
            self.carry = self.head.model.initial_carry(batch)
            if self.config.ema:
                self.ema["weights"] = self.head.trainable_parameters()
        self.step += 1
        rates = (mx.array(rate, mx.float32) for rate in self.learning_rates(self.step))
        self.carry, result = self._take_step(self.carry, batch, *rates, mx.array(signal, mx.float32))
        return result


def _assign(tree: Any, values: Any) -> None:
    """Replace the arrays of a tree of dicts and lists in place, where the compiled step reads them."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        if isinstance(tree[key], mx.array):
            tree[key] = values[key]
        elif tree_flatten(tree[key]):  # frozen parameters, and optimisers without moments, leave an empty place
            _assign(tree[key], values[key])
