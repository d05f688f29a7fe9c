"""Train the Hierarchical Reasoning Model: python pretrain.py key=value …

A run is config → data → state → (train → evaluate → checkpoint)*. All keys are in config/cfg_pretrain.yaml.
"""

from __future__ import annotations

import utils.cpu  # before mlx: on Linux it brings a fast BLAS

import re
import sys
from contextlib import ExitStack
from pathlib import Path

import hydra
import mlx.core as mx
from omegaconf import DictConfig
from tqdm import tqdm

from dataset.puzzle_dataset import PuzzleDataset, prefetch
from utils import errors
from utils.checkpoint import find_step_folder, load_weights, new_checkpoint_path, save_code, save_weights
from utils.config import PretrainConfig, parse_pretrain_config, with_names, write_saved_config
from utils.distribution import require_one_rank
from utils.evaluation import Evaluation, Evaluator, evaluate, examples_to_evaluate, metric_names
from utils.metrics import TRAIN_METRICS, TrainMetrics, check_metric
from utils.predictions import PredictionWriter, predictions_folder
from utils.tracking import Tracker
from utils.train_state import TrainState, count_parameters, to_device, with_forward_dtype


def load_data(config: PretrainConfig) -> tuple[PuzzleDataset, PuzzleDataset]:
    """Open both splits and check that they belong together and that there is something to train on."""
    require_one_rank()
    train_set, test_set = (
        PuzzleDataset(config.data_path, split, global_batch_size=config.global_batch_size, seed=config.seed)
        for split in ("train", "test")
    )
    for name in ("seq_len", "vocab_size", "num_puzzle_identifiers"):
        ours, theirs = getattr(train_set.metadata, name), getattr(test_set.metadata, name)
        if ours != theirs:
            raise errors.UserError(f"{config.data_path}: {name} is {ours} in train and {theirs} in test; build it anew")
    train_set.train_batches(0, epochs=config.epochs_per_iteration)  # raises if it has no batch at all
    return train_set, test_set


def steps_of_run(config: PretrainConfig, train_set: PuzzleDataset) -> int:
    """Number of steps after which the learning rate schedule, and the run, ends."""
    meta = train_set.metadata
    return int(config.epochs * meta.total_groups * meta.mean_puzzle_examples / config.global_batch_size)


def logged_metrics(state: TrainState, metrics: TrainMetrics) -> dict[str, float]:
    """Wait for the steps since the last call; their mean metrics and the learning rate, as W&B gets them."""
    means = metrics.read()
    del means["train/loss"]  # a weighted sum of the three losses that are logged
    return means | {"train/lr": state.learning_rates(state.step)[0]}


def train(
    config: PretrainConfig,
    state: TrainState,
    train_set: PuzzleDataset,
    iteration: int,
    metrics: TrainMetrics,
    tracker: Tracker,
    bar: tqdm,
) -> bool:
    """Train from one evaluation to the next; returns whether `stop_when` asks to end the run."""
    with prefetch(train_set.train_batches(iteration, epochs=config.epochs_per_iteration)) as batches:
        for batch in batches:
            if state.step >= state.total_steps:
                break
            step_metrics, _ = state.train_step(to_device(batch))
            mx.async_eval(state.arrays, state.carry, step_metrics)
            metrics.add(step_metrics)
            bar.update()
            if state.step % config.log_interval:
                continue

            logged = logged_metrics(state, metrics)
            recent = metrics.over_window()  # of a single step's rows few have halted, and so been counted, or none
            loss, exact = recent["train/loss"], recent["train/exact_accuracy"]
            bar.set_postfix(loss=f"{loss:.3f}", exact=f"{exact:.3f}", refresh=False)
            tracker.log(logged, state.step)
            stop = config.stop_when
            if stop.metric is not None and stop.metric.startswith("train/") and metrics.window_counts(stop.metric):
                value = recent[stop.metric]
                if stop.met_by(value):
                    tqdm.write(f"step {state.step}: {stop.metric} = {value:.4f} over {stop.window} steps, stopping")
                    return True
    return False


def evaluate_and_log(
    config: PretrainConfig, state: TrainState, evaluator: Evaluator, test_set: PuzzleDataset, tracker: Tracker
) -> Evaluation:
    """Evaluate the test split, write what `eval_save_outputs` names, and log metrics and pictures."""
    vocab_size = test_set.metadata.vocab_size
    num_examples = examples_to_evaluate(test_set, config.eval_max_examples)
    folder = predictions_folder(Path(str(config.checkpoint_path)), state.step)
    with ExitStack() as stack:
        writer = None
        if config.eval_save_outputs:
            writer = stack.enter_context(PredictionWriter(folder, config.eval_save_outputs, num_examples, vocab_size))
        result = evaluate(
            evaluator,
            test_set,
            max_examples=config.eval_max_examples,
            writer=writer,
            num_samples=config.log_examples,
        )
    tracker.log(result.metrics, state.step)
    tracker.log_examples(result.samples, vocab_size, state.step)
    tqdm.write(f"step {state.step}: " + "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    return result


@errors.one_line
@hydra.main(config_path=str(Path(__file__).resolve().parent / "config"), config_name="cfg_pretrain", version_base=None)
@errors.one_line
def launch(hydra_config: DictConfig) -> None:
    """A whole run."""
    config = with_forward_dtype(with_names(parse_pretrain_config(hydra_config)))
    train_set, test_set = load_data(config)
    stop = config.stop_when
    check_metric(stop.metric, [*TRAIN_METRICS, *metric_names(test_set)])
    state = TrainState(config, train_set.metadata, total_steps=steps_of_run(config, train_set))
    if config.load_weights is not None:
        load_weights(state.head, find_step_folder(config.load_weights))
    evaluator = Evaluator(state.head)

    checkpoint_path = new_checkpoint_path(config.checkpoint_path)
    write_saved_config(config, checkpoint_path)
    save_code(checkpoint_path)
    parameters = count_parameters(state.head)
    tqdm.write(f"{parameters:,} parameters, {state.total_steps:,} steps, BLAS {utils.cpu.blas}, {checkpoint_path}")

    with (
        Tracker(config) as tracker,
        tqdm(total=state.total_steps, desc="train", unit="step", dynamic_ncols=True) as bar,
    ):
        tracker.log({"num_params": parameters}, 0)
        tracker.log_code(checkpoint_path)
        metrics = TrainMetrics(config.global_batch_size, stop.window)
        for iteration in range(config.iterations):
            stopped = train(config, state, train_set, iteration, metrics, tracker, bar)
            result = evaluate_and_log(config, state, evaluator, test_set, tracker)
            if stop.metric is not None and stop.metric.startswith("eval/"):
                value = result.metrics.get(stop.metric)  # absent if eval_max_examples leaves its set out
                stopped = value is not None and stop.met_by(value)
                if stopped:
                    tqdm.write(f"step {state.step}: {stop.metric} = {value:.4f}, stopping")
            if config.checkpoint_every_eval or stopped or iteration == config.iterations - 1:
                tqdm.write(f"saved {save_weights(state.head, checkpoint_path, state.step)}")
            if stopped:
                break
        if metrics.pending:  # steps after the last multiple of log_interval
            tracker.log(logged_metrics(state, metrics), state.step)


def main() -> None:
    """The command line. With the PyTorch code, keys that its YAML lacks are given as `+key=value`; here the YAML has
    all keys, and Hydra wants `++` where a key exists already."""
    sys.argv[1:] = [re.sub(r"^\+(?=[^+])", "++", argument) for argument in sys.argv[1:]]
    launch()


if __name__ == "__main__":
    main()
