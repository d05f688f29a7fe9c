"""Train a recursive reasoning model: python pretrain.py key=value …

A run is config → data → state → (train → evaluate → checkpoint)*. All keys are in config/cfg_pretrain.yaml, and
`--help` explains them.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import utils.linux_cpu  # before mlx: on Linux it brings a fast BLAS

import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import hydra
from omegaconf import DictConfig
from tqdm import tqdm

from common.errors import UserError, one_line
from common.memory_errors import memory_advice
from common.progress import progress_bar
from dataset.puzzle_dataset import PuzzleDataset
from utils.checkpoints.record import Progress
from utils.checkpoints.resume import (
    ResumePoint,
    changed_order,
    check_same_run,
    find_resume_point,
    make_way,
    progress_from,
    restore,
    with_saved_names,
)
from utils.checkpoints.run_folder import RunFolder
from utils.checkpoints.weights import start_from
from utils.checkpoints.writer import CheckpointWriter
from utils.command_line import HELP, pretrain_help, pretrain_keys, refuse_deep_values
from utils.config import PretrainConfig, parse_pretrain_config, with_names, write_saved_config
from utils.evaluation.evaluate import Evaluator, evaluate, prefix
from utils.evaluation.predictions import SAMPLES, PredictionWriter, predictions_folder, remove_surplus
from utils.evaluation.search import Search
from utils.evaluation.slots import OF_SEARCH
from utils.evaluation.validity import answer_checks
from utils.forecast.forecast import forecast_run
from utils.hydra_config import hydra_errors, plain_values
from utils.memory import how_to_save_memory
from utils.model import metric_names, with_forward_dtype
from utils.ranks.ranks import Ranks, checksum, connected
from utils.tracking import Tracker
from utils.train.history import History
from utils.train.interruption import Interruption
from utils.train.metrics import TrainMetrics, check_metric
from utils.train.micro_batch import rows_at_a_time
from utils.train.run import Run, planned_end, reason_to_end
from utils.train.state import TrainState


def launch(hydra_config: DictConfig, ranks: Ranks) -> None:
    """Do a whole run, or the rest of one. Rank 0 alone reads and writes the run's folder.

    Args:
        hydra_config: the composed configuration.
        ranks: this process among those of the run.
    """
    # Configuration, and the checkpoint to go on from
    config = ranks.from_first(
        lambda: with_forward_dtype(with_names(with_saved_names(parse_pretrain_config(plain_values(hydra_config))))),
        PretrainConfig,
    )
    advice = how_to_save_memory(config.micro_batch_size)
    if config.forecast:
        train_set, test_set = load_data(config, ranks)
        with memory_advice(advice):
            print(forecast_run(config, train_set, test_set, steps_of_run(config, train_set), ranks))
        return
    path = config.run_folder
    with RunFolder(path) as folder, ExitStack() as stack, memory_advice(advice):
        if ranks.first and config.resume is not None and path.is_dir():
            folder.claim()
        point = ranks.from_first(lambda: find_resume_point(config), ResumePoint | None)

        # Data
        train_set, test_set = load_data(config, ranks)
        data = {"train": train_set.fingerprint(), "test": test_set.fingerprint()}
        ranks.require_same("the data sets", data)
        keep_samples = SAMPLES in config.eval_save_outputs
        search = Search(config.thinking, test_set.metadata, seed=config.seed, keep_samples=keep_samples, prefix="eval_")
        changes = []
        if point is not None:
            changes = check_same_run(config, data, point) + changed_order(point, train_set.metadata)

        # State
        state = TrainState(
            config,
            train_set.metadata,
            total_steps=steps_of_run(config, train_set),
            micro_batch_size=rows_at_a_time(config, train_set, ranks),
            ranks=ranks,
        )
        check_metric(config.stop_when.metric, lambda: known_metrics(state, test_set))
        metrics = TrainMetrics(config.global_batch_size, config.stop_when.window, skip=config.on_nonfinite == "skip")
        progress = Progress(iteration_epochs=config.epochs_per_iteration)
        if point is not None:
            restore(point, state, metrics)
            progress = progress_from(point, config)
        elif config.load_weights is not None:
            start_from(config.load_weights, state.head, ranks, config.load_puzzle_emb)
        if ranks.size > 1:
            ranks.require_same("the initial weights and random state", checksum(state.arrays))

        # The run's folder
        if ranks.first:
            folder.claim()
            if point is None:
                folder.refuse_earlier_steps()
            write_saved_config(config, path)
            folder.save_code()
        end, is_exact = planned_end(config, state, progress, train_set)
        announce(config, state, f"{'' if is_exact else 'up to '}{end:,} steps", ranks, point, changes)
        if reason := reason_to_end(config, state, progress):
            tqdm.write(f"nothing left to do: {reason}")
            return
        if point is not None and ranks.first:
            make_way(point)

        # (train → evaluate → checkpoint)*
        interruption = stack.enter_context(Interruption(announce=ranks.first))
        tracker, checkpoints = open_records(config, state, point, stack) if ranks.first else (None, None)
        if ranks.watchdog is not None:
            ranks.watchdog.timeout = config.rank_timeout
            ranks.watchdog.before_exit = checkpoints.finish if checkpoints is not None else None
        bar = progress_bar(
            total=end,
            initial=state.step,
            disable=not ranks.first,
            desc="train",
            unit="step",
        )
        run = Run(
            ranks=ranks,
            config=config,
            train_set=train_set,
            test_set=test_set,
            data=data,
            state=state,
            evaluator=Evaluator(state.head, config.eval_halt, search),
            progress=progress,
            metrics=metrics,
            tracker=tracker,
            checkpoints=checkpoints,
            interruption=interruption,
            bar=stack.enter_context(bar),
        )
        with run.ending_in_order():
            train(run)
        ranks.rest()  # closing W&B may take longer than a step


def train(run: Run) -> None:
    """Repeat (train → evaluate → checkpoint), from the run's position to its end."""
    config, state = run.config, run.state
    while not run.over():
        for batch in run.batches():  # up to the next evaluation
            run.step(batch)  # → TrainState.train_step → the function that make_train_step made
            if state.step % config.log_interval == 0:
                run.log_train_metrics()
            if config.checkpoint_interval is not None and state.step % config.checkpoint_interval == 0:
                run.save()
            if run.reason_to_stop():
                break
        run.pause(steps_ahead=0)

        if not run.evaluation_is_due():
            run.next_iteration()
            continue
        best = run.finish_iteration(evaluate_and_log(run))
        if run.over() and run.metrics.unread:  # steps after the last multiple of log_interval
            run.log_train_metrics()
        if config.checkpoint_every_eval or run.over() or (best and config.keep_checkpoints is not None):
            run.save()
        if run.progress.stopped is not None:
            tqdm.write(f"step {state.step}: {run.progress.stopped}, stopping")


def evaluate_and_log(run: Run) -> dict[str, float]:
    """Evaluate the test split, write what `eval_save_outputs` names, and log metrics and pictures.

    Returns:
        The metrics by name.
    """
    config, step, ranks = run.config, run.state.step, run.ranks
    metadata = run.test_set.metadata
    path = config.run_folder
    folder = predictions_folder(path, step, ranks.rank)
    with ExitStack() as stack:
        writer = None
        if config.eval_save_outputs:
            writer = stack.enter_context(PredictionWriter(folder, config.eval_save_outputs, metadata.vocab_size))
        stack.enter_context(run.state.averaged())
        result = evaluate(
            run.evaluator,
            run.test_set,
            max_examples=config.eval_max_examples,
            max_rows=run.state.micro_batch_size,
            writer=writer,
            num_shown=config.log_examples,
            after_step=run.interruption.check,
            ranks=ranks,
        )
    if config.eval_save_outputs and ranks.first:
        remove_surplus(path, step, ranks.size)
    run.log(result.metrics)
    if run.tracker is not None:
        run.tracker.log_examples(result.shown, metadata, step)
        if result.curve is not None and not config.thinking.is_plain:
            run.tracker.log_curve(result.curve, step)
    tqdm.write(f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items()))
    return result.metrics


def load_data(config: PretrainConfig, ranks: Ranks) -> tuple[PuzzleDataset, PuzzleDataset]:
    """Open both splits, and check that they fit each other and have at least one training batch."""
    train_set, test_set = (
        PuzzleDataset(
            config.data_path,
            split,
            global_batch_size=size,
            seed=config.seed,
            rank=ranks.rank,
            num_ranks=ranks.size,
            size_key=key,
        )
        for split, key, size in (
            ("train", "global_batch_size", config.global_batch_size),
            ("test", "eval_batch_size", config.eval_batch_size or config.global_batch_size),
        )
    )
    for name in ("seq_len", "vocab_size", "num_puzzle_identifiers"):
        ours, theirs = getattr(train_set.metadata, name), getattr(test_set.metadata, name)
        if ours != theirs:
            raise UserError(f"{config.data_path}: {name} is {ours} in train and {theirs} in test; build it again")
    train_set.train_batches(0, epochs=config.epochs_per_iteration)  # raises if it has no batch at all
    return train_set, test_set


def steps_of_run(config: PretrainConfig, train_set: PuzzleDataset) -> int:
    """Compute the number of steps after which the learning rate schedule, and the run at the latest, ends.

    Raises:
        UserError: if there is none.
    """
    meta = train_set.metadata
    steps = int(config.epochs * meta.total_groups * meta.mean_puzzle_examples / config.global_batch_size)
    if not steps:
        raise UserError(
            f"epochs = {config.epochs} is no whole step: {meta.total_groups} groups of {meta.mean_puzzle_examples:g} "
            f"examples on average, with global_batch_size = {config.global_batch_size}; raise epochs, or lower "
            "global_batch_size"
        )
    return steps


def known_metrics(state: TrainState, test_set: PuzzleDataset) -> list[str]:
    """List the metrics that `stop_when` may name: the loss head's own, and the checks of the answers."""
    evaluated = [*metric_names(state.head, test_set.metadata, training=False), *answer_checks(test_set.metadata)]
    if not state.config.thinking.is_plain:
        evaluated += OF_SEARCH
    return [f"train/{name}" for name in metric_names(state.head, test_set.metadata, training=True)] + [
        prefix(test_set, set_name) + name for set_name in test_set.metadata.sets for name in evaluated
    ]


def announce(
    config: PretrainConfig, state: TrainState, steps: str, ranks: Ranks, point: ResumePoint | None, changes: list[str]
) -> None:
    """Print the parameters and `steps` of the run, its folder, the checkpoint that it resumes and what has changed."""
    path, blas = config.checkpoint_path, utils.linux_cpu.blas_name
    together = f", {ranks.size} ranks" if ranks.size > 1 else ""
    slices = f", micro_batch_size {state.micro_batch_size}" if state.micro_batch_size is not None else ""
    tqdm.write(f"{state.num_parameters:,} parameters, {steps}, BLAS {blas}{together}{slices}, {path}")
    if config.resume is not None:
        tqdm.write(f"no checkpoint in {path} yet, starting anew" if point is None else f"resuming {point.folder}")
    for change in changes:
        tqdm.write(f"changed since then: {change}")


def open_records(
    config: PretrainConfig, state: TrainState, point: ResumePoint | None, stack: ExitStack
) -> tuple[Tracker, CheckpointWriter]:
    """Open the records of a run, until `stack` closes them: metrics, W&B and checkpoints."""
    path = config.run_folder
    history_bytes, run_id = (0, None) if point is None else (point.record.history_bytes, point.record.wandb_run_id)
    history = stack.enter_context(History(path, history_bytes))
    tracker = stack.enter_context(Tracker(config, run_id, history, step=state.step))
    if point is None:
        tracker.log({"num_params": state.num_parameters}, 0)
    tracker.log_code(path)
    return tracker, stack.enter_context(CheckpointWriter(path, config.keep_checkpoints))


@hydra.main(config_path=str(Path(__file__).resolve().parent / "config"), config_name="cfg_pretrain", version_base=None)
@one_line  # within Hydra, which would print a line of its own before the error of a job
def job(config: DictConfig) -> None:
    """Run the composed configuration; Hydra calls this several times with --multirun."""
    with connected() as ranks:
        launch(config, ranks)


def for_hydra(argument: str) -> str:
    """Write a command-line argument as Hydra takes it.

    `+key=value`, which the PyTorch code needs for keys that its YAML lacks, becomes `++key=value`: here the YAML has
    all keys, and Hydra allows `+` only for new ones. Keys of `arch` and `optimizer` get `++` too: they need not be in
    the YAML, because the class that `name` names checks them. A value that begins with `~` is quoted: Hydra's grammar
    has none.
    """
    argument = re.sub(r"^(\+(?=[^+])|(?=(arch|optimizer)\.))", "++", argument)
    key, _, value = argument.partition("=")
    value = value.replace("'", "\\'")
    return f"{key}='{value}'" if value.startswith("~") else argument


@one_line
def main() -> None:
    """Run the command line, or explain its keys."""
    given = sys.argv[1:]
    if not {*HELP, "--hydra-help"}.isdisjoint(given):
        print(pretrain_help(given))
        return
    refuse_deep_values(given)
    sys.argv[1:] = map(for_hydra, given)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises, rather than print half a page and exit
    with hydra_errors(lambda: pretrain_keys(given)):
        job()


if __name__ == "__main__":
    main()
