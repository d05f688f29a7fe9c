"""Evaluate a checkpoint: python evaluate.py checkpoint=<step folder, file or hub id> [key=value …]

Rebuilds model and data from the `all_config.yaml` beside the checkpoint, evaluates the whole test split, prints a table
and one line of JSON, and writes predictions beside the checkpoint. ARC predictions are scored at once.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import utils.linux_cpu  # noqa: F401  # before mlx: on Linux it brings a fast BLAS

import json
import math
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import mlx.core as mx
from pydantic import ConfigDict, Field, model_validator

from common.errors import UserError, one_line
from common.files import HomePath
from common.memory_errors import memory_advice
from dataset.arc_grids import is_arc
from dataset.dataset_files import how_to_build
from dataset.metadata import PuzzleDatasetMetadata
from dataset.puzzle_dataset import PuzzleDataset
from utils.arc.predictions import KEYS
from utils.arc.report import format_score
from utils.arc.scoring import ArcScore, score_predictions
from utils.arc.tasks import read_evaluation_tasks
from utils.checkpoints.foreign_config import TrainedConfig, read_trained_config
from utils.checkpoints.weights import WeightsSource, find_weights, load_weights, share_weights
from utils.command_line import parse
from utils.config import (
    DEFAULT_PREDICTION_KEYS,
    ArchConfig,
    LoadPuzzleEmb,
    MicroBatchSize,
    PredictionKey,
    check_outputs,
)
from utils.evaluation.curve import format_curve, plot_curve, require_plots
from utils.evaluation.evaluate import Evaluation, Evaluator, evaluate
from utils.evaluation.micro_batch import rows_at_a_time
from utils.evaluation.predictions import SAMPLES, PredictionWriter, predictions_folder, remove_surplus
from utils.evaluation.puzzle_view import format_puzzle
from utils.evaluation.search import Search
from utils.evaluation.thinking import Thinking
from utils.forecast.forecast import forecast_evaluation
from utils.memory import how_to_save_memory
from utils.model import build_model
from utils.ranks.ranks import Ranks, connected
from utils.ranks.watchdog import DEFAULT_TIMEOUT

# Rows that a configuration from elsewhere gets unasked, published: 768 and 2304. Larger ones could fill the memory
MAX_DEFAULT_BATCH = 4096


class EvaluateConfig(Thinking):
    """The keys of evaluate.py, besides those of `Thinking`."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # data_path=2024

    checkpoint: HomePath = Field(
        description="a step folder, a run's folder (its newest step), a file, or owner/name on the Hugging Face hub"
    )
    data_path: HomePath | None = Field(default=None, description="the data set; null: the one it was trained on")
    load_puzzle_emb: LoadPuzzleEmb = Field(
        default="exact",
        description="the puzzle embeddings: exact, as stored; mean, each the mean of all stored ones, for puzzles of "
        "another build of the data set; skip, zeros",
    )
    save_outputs: list[PredictionKey] = Field(
        default=list(DEFAULT_PREDICTION_KEYS),
        description="arrays to save; also logits; step_preds, the predictions after every outer step; samples, the "
        "answers of every try; [] for none",
    )
    output_path: HomePath | None = Field(default=None, description="the folder for them; null: beside the checkpoint")
    eval_halt: Literal["max", "q"] = Field(
        default="max",
        description="outer steps of an example: max, all of them; q, until the model's own rule halts",
    )
    eval_batch_size: int | None = Field(
        default=None,
        ge=1,
        description=f"examples at a time, over all ranks; null: as trained, at most {MAX_DEFAULT_BATCH}",
    )
    global_batch_size: int | None = Field(default=None, ge=1, description="the earlier name of eval_batch_size")
    micro_batch_size: MicroBatchSize = Field(
        default=None,
        description="examples at a time on each rank at most, to save memory; auto: as many as fit; null: as trained",
    )
    max_examples: int | None = Field(default=None, ge=1, description="only the first so many; null: all")
    forward_dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        default=None, description="bfloat16, float16 or float32; null: as trained"
    )
    show_examples: int = Field(default=0, ge=0, description="print so many puzzles with the model's answers")
    forecast: bool = Field(
        default=False, description="print whether it fits this machine and how long it takes, and do nothing else"
    )
    rank_timeout: float = Field(
        default=DEFAULT_TIMEOUT,
        ge=1,
        description="with several ranks: seconds without a step after which a rank ends its process",
    )
    test_puzzles: HomePath | None = Field(
        default=None,
        description="the ARC tasks, a file like test_puzzles.json or a folder of raw ones; null: the data set's",
    )

    curve: HomePath | None = Field(
        default=None, description="a PNG to write: solved puzzles against the outer steps spent on them"
    )
    seed: int = Field(default=0, ge=0, lt=2**64, description="of the further tries")

    @property
    def batch_size(self) -> int | None:
        """Examples at a time, if the command line says how many."""
        return self.eval_batch_size or self.global_batch_size

    @model_validator(mode="after")
    def _outputs_exist(self) -> EvaluateConfig:
        check_outputs(self, self.eval_halt, self.save_outputs)
        if self.curve is not None and self.is_plain:
            raise ValueError("curve shows what further tries or outer steps bring; give samples or max_steps as well")
        return self


def report(
    result: Evaluation,
    step: int,
    checkpoint: str,
    metadata: PuzzleDatasetMetadata,
    arc: ArcScore | None,
    config: EvaluateConfig,
) -> None:
    """Print puzzles, a table of the metrics, the curve and ARC's pass@K, and the numbers as one line of JSON."""
    width = shutil.get_terminal_size().columns
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for example in result.shown:
        print(format_puzzle(example, metadata, width=width, coloured=coloured), end="\n\n")
    print(f"{checkpoint}: {result.num_examples:,} examples, {result.num_examples / result.seconds:.1f} a second")
    width = max(map(len, result.metrics))
    for name, value in result.metrics.items():
        print(f"  {name.ljust(width)}  {value:.4f}")
    metrics = {
        name: value if math.isfinite(value) else None for name, value in result.metrics.items()
    }  # JSON has no NaN
    record = {
        "checkpoint": checkpoint,
        "step": step,
        "eval_halt": config.eval_halt,
        **({} if config.is_plain else config.options),
        "num_examples": result.num_examples,
    } | metrics
    if result.curve is not None and not config.is_plain:
        print(format_curve(result.curve))
        record["curve"] = {str(number): found for number, found in result.curve.points().items()}
    if arc is not None:
        print(format_score(arc))
        record |= arc.rates()
    print(json.dumps(record), flush=True)


def arc_score(
    test_set: PuzzleDataset, writer: PredictionWriter | None, folders: list[Path], test_puzzles: str | None
) -> ArcScore | None:
    """Score the predictions of all ranks as answers to ARC tasks.

    Args:
        test_set: the test split.
        writer: of the predictions, or None.
        folders: the predictions of each rank.
        test_puzzles: the tasks; None, those of the data set.

    Returns:
        The score; None for other puzzles, or, with a line that says why, if something that it needs is not here.
    """
    if not is_arc(test_set.metadata):
        return None
    if writer is None or not set(KEYS) <= set(writer.keys):
        print(f"not scored: pass@K needs {', '.join(KEYS)} in save_outputs", file=sys.stderr)
        return None
    absent = [folder for folder in folders if not folder.is_dir()]
    if absent:
        print(f"not scored: {absent[0]} is on another machine; copy it here, then run utils.arc", file=sys.stderr)
        return None
    try:
        return score_predictions(folders, test_set.path, test_puzzles)
    except UserError as error:  # the evaluation's own results are not lost with the score
        print(f"not scored: {error}", file=sys.stderr)
        return None


def run(arguments: list[str], ranks: Ranks) -> None:
    """Evaluate the checkpoint that the command line names. Rank 0 reads it and prints the results."""
    config = parse(arguments, EvaluateConfig, "python evaluate.py", checkpoint="<step folder, file or hub id>")
    if config.curve is not None:
        require_plots(Path(config.curve))
    if ranks.watchdog is not None:
        ranks.watchdog.timeout = config.rank_timeout
    source = ranks.from_first(lambda: find_weights(config.checkpoint), WeightsSource)
    trained = ranks.from_first(lambda: read_trained_config(source.config_folder, config.data_path), TrainedConfig)
    if config.data_path is None and not Path(trained.data_path).is_dir():
        raise UserError(
            f"{source.name} was trained on {trained.data_path}, which is not here; give its data set as "
            f"data_path=<folder>, or {how_to_build(Path(trained.data_path))}"
        )

    arch = trained.arch.model_dump()
    if config.forward_dtype is not None:
        arch["forward_dtype"] = config.forward_dtype
    test_set = PuzzleDataset(
        config.data_path or trained.data_path,
        "test",
        global_batch_size=config.batch_size or min(trained.global_batch_size, MAX_DEFAULT_BATCH),
        rank=ranks.rank,
        num_ranks=ranks.size,
        size_key="eval_batch_size",
    )
    ranks.require_same("the test sets", test_set.fingerprint())
    if config.test_puzzles is not None:  # read now: the evaluation may take hours
        if not is_arc(test_set.metadata):
            raise UserError(f"test_puzzles is for ARC, and {test_set.path} holds other puzzles; leave it out")
        ranks.from_first(lambda: len(read_evaluation_tasks(str(config.test_puzzles))), int)
    keep_samples = SAMPLES in config.save_outputs
    search = Search(config, test_set.metadata, seed=config.seed, keep_samples=keep_samples)
    head = build_model(ArchConfig.model_validate(arch), test_set.metadata, mx.random.key(trained.seed))
    if ranks.first:
        note = load_weights(head, source.tensors(), source.name, source.config_folder, config.load_puzzle_emb)
        if note is not None:
            print(note, file=sys.stderr)
    share_weights(head, ranks)

    evaluator = Evaluator(head, config.eval_halt, search)
    micro_batch_size = trained.micro_batch_size if config.micro_batch_size is None else config.micro_batch_size
    if config.forecast:
        with memory_advice(how_to_save_memory(micro_batch_size)):
            print(forecast_evaluation(evaluator, test_set, micro_batch_size, config.max_examples, source.name, ranks))
        return
    with memory_advice(how_to_save_memory(micro_batch_size)):
        rows = rows_at_a_time(micro_batch_size, evaluator, test_set, config.max_examples, ranks)
    output_path = Path(config.output_path or source.output_folder)
    folders = [predictions_folder(output_path, source.step, rank) for rank in range(ranks.size)]
    with memory_advice(how_to_save_memory(micro_batch_size)), ExitStack() as stack:
        writer = None
        if config.save_outputs:
            vocab_size = test_set.metadata.vocab_size
            writer = stack.enter_context(PredictionWriter(folders[ranks.rank], config.save_outputs, vocab_size))
        result = evaluate(
            evaluator,
            test_set,
            max_examples=config.max_examples,
            max_rows=rows,
            writer=writer,
            num_shown=config.show_examples,
            ranks=ranks,
        )
    ranks.rest()  # scoring may take longer than a step
    ranks.gather(None)  # all have written their predictions
    if not ranks.first:
        return
    if writer is not None:
        remove_surplus(output_path, source.step, ranks.size)
    arc = arc_score(test_set, writer, folders, config.test_puzzles)
    report(result, source.step, source.name, test_set.metadata, arc, config)
    if config.curve is not None and result.curve is not None:
        plot_curve(result.curve, Path(config.curve), f"{source.name}: {config.samples} samples")
        print(f"curve: {config.curve}", file=sys.stderr)
    if writer is not None:
        print(f"predictions: {writer.folder if ranks.size == 1 else writer.folder.with_suffix('.*')}", file=sys.stderr)


@one_line
def main() -> None:
    """Run the command line."""
    with connected() as ranks:
        run(sys.argv[1:], ranks)


if __name__ == "__main__":
    main()
