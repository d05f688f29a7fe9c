"""Weights & Biases: opens a run, logs metrics, pictures and code, and records offline where there is no login."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import wandb
from pydantic import ValidationError
from tqdm import tqdm

from common.errors import Interrupted, UserError, describe_validation_error
from dataset.metadata import PuzzleDatasetMetadata
from utils.config import PretrainConfig
from utils.evaluation.curve import Curve
from utils.evaluation.puzzle_view import draw_puzzle
from utils.train.history import HISTORY_FILE, History


class Tracker:
    """One W&B run: a context manager that closes it, as failed if the block raises.

    W&B's own environment (`WANDB_MODE`, `WANDB_DIR`, `WANDB_INIT_TIMEOUT`, …) decides how the run is recorded. Without
    a login and a terminal for it, or without a connection to the server, the run is recorded offline.

    Args:
        config: the run's configuration, names included; all of it is recorded.
        run_id: the id of the W&B run to continue, or None for a new one.
        history: the run's `metrics.jsonl`, which gets the same metrics.
        step: the step from which the run goes on.

    Raises:
        UserError: if a value in W&B's environment is invalid.
    """

    def __init__(self, config: PretrainConfig, run_id: str | None, history: History, step: int = 0):
        self.history = history
        options: dict[str, Any] = {
            "project": config.project_name,
            "name": config.run_name,
            "config": config.model_dump(),
            "settings": wandb.Settings(x_disable_stats=True),
            "id": run_id,
            "resume": None if run_id is None else "allow",
        }
        try:
            self.run = wandb.init(**options)
        except ValidationError as error:
            raise UserError(describe_validation_error(error, "the environment", "wandb ")) from error
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0].rstrip(".")
            print(f"wandb: {reason}; this run is recorded offline, `wandb sync` uploads it later", file=sys.stderr)
            self.run = wandb.init(mode="offline", **options)
        # W&B takes no step twice: what the run logged after its checkpoint stays there.
        self._first_step = self.run.step if run_id is not None else 0
        if self._first_step > step + 1:
            tqdm.write(
                f"W&B has values of this run up to step {self._first_step - 1} already, which stay; {HISTORY_FILE} has "
                f"the new ones from step {step + 1} on",
                file=sys.stderr,
            )

    @property
    def run_id(self) -> str:
        """The id of the run at W&B."""
        return self.run.id

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record scalar metrics for a training step."""
        self.history.log(metrics, step)
        if step >= self._first_step:
            self.run.log(metrics, step=step)
        elif step == self._first_step - 1:  # W&B closed this step with its training metrics, before its evaluation
            late = {name: value for name, value in metrics.items() if name.startswith("eval/")}
            if late:
                self.run.log(late, step=self._first_step)

    def log_examples(self, samples: list[dict[str, np.ndarray]], metadata: PuzzleDatasetMetadata, step: int) -> None:
        """Record a picture of each sample: puzzle, answer and truth side by side (`eval/examples`)."""
        if not samples or step < self._first_step:
            return
        images = [wandb.Image(draw_puzzle(sample, metadata)) for sample in samples]
        self.run.log({"eval/examples": images}, step=step)

    def log_curve(self, curve: Curve, step: int) -> None:
        """Record solved puzzles against outer steps, as a table and as a plot (`eval/samples`, `eval/curve`)."""
        if step < self._first_step:
            return
        points = curve.points()
        rows = [[number, *found.values()] for number, found in points.items()]
        table = wandb.Table(columns=["samples", *points[1]], data=rows)
        plot = wandb.plot.line(table, "row_steps", "exact", title="exact answers against outer steps for each puzzle")
        self.run.log({"eval/samples": table, "eval/curve": plot}, step=step)

    def log_code(self, checkpoint_path: Path) -> None:
        """Record the model's source and the configuration in the run's folder."""
        kinds = (".py", ".cpp", ".h", ".yaml")
        self.run.log_code(
            str(checkpoint_path), include_fn=lambda path: path.endswith(kinds), exclude_fn=lambda path: False
        )

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run.finish(exit_code=0 if kind is None else error.exit_status if isinstance(error, Interrupted) else 1)
