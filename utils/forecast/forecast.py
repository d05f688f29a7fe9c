"""`forecast=true`: whether a run or an evaluation fits this machine, and how long it takes, before it begins.

Model and data are the real ones, and a few steps are taken and timed. Nothing is written.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass

import mlx.core as mx

from dataset.puzzle_dataset import PuzzleDataset
from models.kernels import on_gpu
from models.losses import ACTLossHead
from utils.config import MicroBatchSize, PretrainConfig
from utils.evaluation.evaluate import Evaluator
from utils.evaluation.micro_batch import measure_outer_steps, most_rows
from utils.evaluation.predictions import SAMPLES
from utils.evaluation.search import Search
from utils.forecast.plan import Plan, plan_of
from utils.forecast.report import duration_text, table
from utils.forecast.timing import number_of, seconds_of, seconds_of_outer_step
from utils.memory import SHARE, DeviceMemory, RowMemory, device_memory, size_text
from utils.model import count_parameters
from utils.ranks.ranks import Ranks
from utils.train.micro_batch import measure_step, why_not
from utils.train.state import TrainState
from utils.train.step import make_gradients_of_slice

_SECONDS = 5.0  # about what a slice may take that is timed; more rows would take their share of time more


def forecast_run(
    config: PretrainConfig,
    train_set: PuzzleDataset,
    test_set: PuzzleDataset,
    total_steps: int,
    ranks: Ranks,
) -> str:
    """Forecast a whole run of pretrain.py, from its first step on. All ranks have to call this.

    Args:
        config: the training configuration.
        train_set: the training split.
        test_set: the test split.
        total_steps: of the learning rate schedule.
        ranks: the processes of the run.

    Returns:
        The forecast, in lines.
    """
    if ranks.first:
        print("measuring …", file=sys.stderr)
    device, most = device_memory(ranks), train_set.batch_size
    memory = measure_step(config, train_set, device.budget)
    fitting = min(ranks.gather(memory.fitting(device.budget, most)))
    asked = _asked(config.micro_batch_size, fitting, most)
    rows = max(1, min(asked, fitting))  # what is computed here, which has to fit
    state, step_seconds = _time_training(config, train_set, memory.rows, rows, ranks)
    keep_samples = SAMPLES in config.eval_save_outputs
    search = Search(config.thinking, test_set.metadata, seed=config.seed, keep_samples=keep_samples, prefix="eval_")
    evaluator = Evaluator(state.head, config.eval_halt, search)
    evaluation = _time_evaluation(evaluator, test_set, config.eval_max_examples, memory.rows, rows, ranks)

    plan = plan_of(config, total_steps, train_set)
    about = "" if plan.is_exact else "about "
    training, evaluating = plan.steps * step_seconds, plan.evaluations * evaluation.seconds
    lines = [
        *_model_lines(state.head),
        ("checkpoint", _checkpoint_text(memory.checkpoint, plan, config)),
        ("memory", _memory_text(memory.of(asked), asked, most, device)),
        ("a training step", f"{duration_text(step_seconds)}, {config.global_batch_size:,} rows"),
        ("an evaluation", f"{duration_text(evaluation.seconds)}, {evaluation.text}"),
        ("training", f"{duration_text(training)}, {about}{plan.steps:,} steps"),
        ("evaluations", f"{duration_text(evaluating)}, {about}{plan.evaluations:,} of them"),
        ("the whole run", f"{about}{duration_text(training + evaluating)}"),
        ("fits", _verdict(memory.of(asked), fitting, most, device) if fitting else f"no: {why_not(memory, device)}"),
    ]
    return table(_title(config.arch.name, config.data_path, state.head, device, ranks), lines)


def forecast_evaluation(
    evaluator: Evaluator,
    dataset: PuzzleDataset,
    asked: MicroBatchSize,
    max_examples: int | None,
    name: str,
    ranks: Ranks,
) -> str:
    """Forecast an evaluation of evaluate.py, without the scoring of ARC tasks. All ranks have to call this.

    Args:
        evaluator: the model.
        dataset: the test split.
        asked: `micro_batch_size`.
        max_examples: only the first so many examples; None means all.
        name: of the checkpoint.
        ranks: the processes that share the test split.

    Returns:
        The forecast, in lines.
    """
    if ranks.first:
        print("measuring …", file=sys.stderr)
    device, most, model_bytes = device_memory(ranks), most_rows(dataset, max_examples), mx.get_active_memory()
    memory = measure_outer_steps(evaluator, dataset, most, device.budget - model_bytes)
    fitting = min(ranks.gather(memory.fitting(device.budget - model_bytes, most)))
    rows_asked = _asked(asked, fitting, most)
    rows = max(1, min(rows_asked, fitting))
    evaluation = _time_evaluation(evaluator, dataset, max_examples, memory, rows, ranks)
    needed = model_bytes + memory.of(rows_asked)
    lines = [
        *_model_lines(evaluator.head),
        ("memory", _memory_text(needed, rows_asked, most, device)),
        ("the evaluation", f"{duration_text(evaluation.seconds)}, {evaluation.text}"),
        ("fits", _verdict(needed, fitting, most, device)),
    ]
    return table(_title(name, str(dataset.path), evaluator.head, device, ranks), lines)


# ---------------------------------------------------------------------------------------------------- what is timed


def _asked(micro_batch_size: MicroBatchSize, fitting: int, most: int) -> int:
    """Return the rows at a time that a configuration asks for."""
    return max(1, fitting) if micro_batch_size == "auto" else min(micro_batch_size or most, most)


def _time_training(
    config: PretrainConfig, train_set: PuzzleDataset, memory: RowMemory, rows: int, ranks: Ranks
) -> tuple[TrainState, float]:
    """Take some training steps of at most two slices, and scale their time to whole batches.

    Args:
        config: the training configuration.
        train_set: the training split.
        memory: of the rows of a slice; the largest that was measured is timed first.
        rows: of a slice. Where they would take long, slices with fewer are timed.
        ranks: the processes of the run.

    Returns:
        The state, with weights that are of no use; and the seconds of a step.
    """
    few = _measured(memory, rows)
    state, of_slice, of_step = _time_slices(config, train_set, few, ranks)
    if (more := _in_seconds(few, of_slice, rows)) > few:
        few = more
        del state
        state, of_slice, of_step = _time_slices(config, train_set, few, ranks)
    most = train_set.batch_size
    return state, of_step + (most - min(2 * few, most)) / few * of_slice


def _time_slices(
    config: PretrainConfig, train_set: PuzzleDataset, rows: int, ranks: Ranks
) -> tuple[TrainState, float, float]:
    """Return a state, the seconds of its forward and backward pass of a slice, and those of a step of two slices.

    Where a batch has fewer rows than two slices, the step is one of a whole batch.
    """
    of_step = min(2 * rows, train_set.batch_size)
    config = config.model_copy(update={"global_batch_size": of_step * ranks.size})
    state = TrainState(config, train_set.metadata, total_steps=1_000_000, micro_batch_size=rows, ranks=ranks)
    example = next(train_set.train_batches(0, epochs=config.epochs_per_iteration))
    batch = {name: mx.array(array[:of_step]) for name, array in example.arrays.items()}
    of_slice = {name: array[:rows] for name, array in batch.items()}
    carry, gradients_of_slice = state.head.model.initial_carry(of_slice), make_gradients_of_slice(state.head, of_step)
    slice_seconds = max(ranks.gather(seconds_of(lambda: gradients_of_slice(carry, of_slice))))
    step_seconds = seconds_of(
        lambda: (state.train_step(batch), state.carry, state.arrays), number_of(slice_seconds * of_step / rows)
    )
    return state, slice_seconds, max(ranks.gather(step_seconds))


def _measured(memory: RowMemory, rows: int) -> int:
    """Return the largest measured number of rows that is at most `rows`."""
    return max(size for size in memory.measured if size <= rows)


def _in_seconds(few: int, seconds: float, most: int) -> int:
    """Return how many rows, at most `most`, take no longer than may be, when `few` take so many seconds."""
    return min(most, int(few * _SECONDS / seconds))


@dataclass(frozen=True)
class _TimedEvaluation:
    """The time of an evaluation, in seconds, and a text that says what it consists of."""

    seconds: float
    text: str


def _time_evaluation(
    evaluator: Evaluator,
    dataset: PuzzleDataset,
    max_examples: int | None,
    memory: RowMemory,
    rows: int,
    ranks: Ranks,
) -> _TimedEvaluation:
    """Take some outer steps, and scale their time to all examples, each of which takes all its outer steps."""
    rows = min(rows, most_rows(dataset, max_examples))
    few = _measured(memory, rows)
    seconds = max(ranks.gather(seconds_of_outer_step(evaluator, dataset, few)))
    if (more := _in_seconds(few, seconds, rows)) > few:
        few, seconds = more, max(ranks.gather(seconds_of_outer_step(evaluator, dataset, more)))
    examples = dataset.num_examples if max_examples is None else min(max_examples, dataset.num_examples)
    thinking = evaluator.search.thinking
    outer_steps = thinking.max_steps or evaluator.head.model.config.halt_max_steps
    batches = -(-examples * thinking.samples // (few * ranks.size))
    samples = f" × {thinking.samples} samples" if thinking.samples > 1 else ""
    return _TimedEvaluation(
        seconds * batches * outer_steps,
        f"{'at most, ' if evaluator.in_slots else ''}{examples:,} examples{samples} × {outer_steps} outer steps",
    )


# ---------------------------------------------------------------------------------------------------- what is said


def _title(model: str, data_path: str, head: ACTLossHead, device: DeviceMemory, ranks: Ranks) -> str:
    kind = "GPU" if on_gpu() else "CPU"
    together = f", {ranks.size} ranks" if ranks.size > 1 else ""
    return f"{model} on {data_path}: {device.device} ({kind}), {head.model.config.forward_dtype}{together}"


def _model_lines(head: ACTLossHead) -> list[tuple[str, str]]:
    lines = [("parameters", f"{count_parameters(head):,}")]
    if (table := head.model.puzzle_emb) is not None:
        count, width = table.weights.shape
        lines.append(("puzzle embeddings", f"{count:,} × {width}, {size_text(table.weights.nbytes)}"))
    return lines


def _checkpoint_text(size: int, plan: Plan, config: PretrainConfig) -> str:
    all_kept = plan.kept * size
    text = f"{size_text(size)}; the run keeps {plan.kept:,}, {size_text(all_kept)}"
    folder = next(folder for folder in (config.run_folder, *config.run_folder.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if all_kept > free:
        text += f", and {size_text(free)} are free: keep_checkpoints={max(1, free // (2 * size))} keeps fewer"
    return text


def _memory_text(needed: int, rows: int, most: int, device: DeviceMemory) -> str:
    slices = "the whole batch at once" if rows >= most else f"{rows:,} of {most:,} rows at a time"
    share = f"{SHARE:.0%} of {size_text(device.total)}" + (f" / {device.sharing} ranks" if device.sharing > 1 else "")
    return f"{size_text(needed)}, {slices}; {size_text(device.budget)} may be used, {share}"


def _verdict(needed: int, fitting: int, most: int, device: DeviceMemory) -> str:
    if not fitting:
        return "no: not even one row at a time does; a smaller model, or more memory"
    auto = "the whole batch" if fitting >= most else f"micro_batch_size={fitting}"
    if needed > device.budget:
        return f"no; micro_batch_size=auto would take {fitting:,} rows at a time, as the times above do"
    return f"yes; micro_batch_size=auto would take {auto}"
