"""Score saved ARC predictions: python -m utils.arc predictions=<folder or pattern> [key=value …]

    python -m utils.arc "predictions=checkpoints/<project>/<run>/step_<N>_all_preds.*" submission=submission.json

Prints pass@K, over tasks and over outputs, as a table and as one line of JSON. Options write the ARC Prize's submission
and a table of all tasks.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import json
import sys
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from common import errors
from common.files import HomePath
from utils.arc.predictions import find_folders
from utils.arc.report import format_score
from utils.arc.scoring import score_predictions
from utils.arc.submission import write_submission, write_table
from utils.checkpoints.foreign_config import read_trained_config
from utils.command_line import parse


class ArcConfig(BaseModel):
    """The keys of `python -m utils.arc`."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    predictions: Annotated[
        list[HomePath],
        BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
        Field(min_length=1, description="folders, or patterns such as run/step_1000_all_preds.*; [a,b] for several"),
    ]
    data_path: HomePath | None = Field(
        default=None, description="the data set; null: the one that the run was trained on"
    )
    submission: HomePath | None = Field(
        default=None, description="a file for the ARC Prize's submission with two attempts; null: none"
    )
    table: HomePath | None = Field(default=None, description="a CSV file for a table of all tasks; null: none")
    test_puzzles: HomePath | None = Field(
        default=None,
        description="the tasks, a file like test_puzzles.json or a folder of raw ones; null: those of the data set",
    )


@errors.one_line
def main() -> None:
    """Score the predictions that the command line names."""
    config = parse(sys.argv[1:], ArcConfig, "python -m utils.arc", predictions="<folder or pattern>")
    folders = find_folders(config.predictions)
    data_path = config.data_path or read_trained_config(folders[0].parent).data_path
    score = score_predictions(folders, data_path, config.test_puzzles)
    if config.submission is not None:
        write_submission(score, Path(config.submission))
    if config.table is not None:
        write_table(score, Path(config.table))
    print(format_score(score))
    record = {"predictions": [str(folder) for folder in folders], "num_tasks": len(score.tasks)}
    print(json.dumps(record | score.rates()), flush=True)


if __name__ == "__main__":
    main()
