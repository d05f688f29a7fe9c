"""Weights & Biases: how a run is opened, what is logged, and what happens where nobody is logged in."""

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
from utils.config import PretrainConfig
from utils.evaluation.puzzle_view import draw_puzzle
from utils.train.history import HISTORY_FILE, History


class Tracker:
    """One W&B run: a context manager that closes it, as failed if the block raises.

    W&B's own environment (`WANDB_MODE`, `WANDB_DIR`, `WANDB_INIT_TIMEOUT`, …) decides how it is recorded. Where that
    can't be had, for want of a login and of a terminal to ask at, or of a way to the server, it is recorded offline.

    Args:
        config: the run's configuration, names included; it is recorded whole.
        run_id: the id of the W&B run to continue, or None for a new one.
        history: where the metrics go besides.
        step: the step from which the run goes on.
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
        # W&B takes no step twice: what the run had logged beyond its checkpoint stays there as it is.
        self._first_step = self.run.step if run_id is not None else 0
        if self._first_step > step + 1:
            tqdm.write(
                f"W&B has this run up to step {self._first_step - 1} already and keeps those values; "
                f"{HISTORY_FILE} gets the new ones from step {step + 1} on",
                file=sys.stderr,
            )

    @property
    def run_id(self) -> str:
        """The id by which W&B knows the run."""
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

    def log_examples(self, samples: list[dict[str, np.ndarray]], vocab_size: int, step: int) -> None:
        """Record a picture of each sample: puzzle, prediction and truth side by side (`eval/examples`)."""
        if not samples or step < self._first_step:
            return
        images = [
            wandb.Image(draw_puzzle(sample, vocab_size), caption="puzzle, prediction, truth") for sample in samples
        ]
        self.run.log({"eval/examples": images}, step=step)

    def log_code(self, checkpoint_path: Path) -> None:
        """Record the model's source and the configuration that lie in the run's folder."""
        self.run.log_code(
            str(checkpoint_path), include_fn=lambda path: path.endswith((".py", ".yaml")), exclude_fn=lambda path: False
        )

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run.finish(exit_code=0 if kind is None else error.exit_status if isinstance(error, Interrupted) else 1)
