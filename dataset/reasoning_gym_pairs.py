"""Write puzzles of a grid task of reasoning-gym as pairs, for build_pairs_dataset.py.

python dataset/reasoning_gym_pairs.py --task mini_sudoku --size 1000 --output-file data/mini_sudoku.jsonl
python dataset/build_pairs_dataset.py --input-file data/mini_sudoku.jsonl --output-dir data/mini_sudoku
"""

import sys
from pathlib import Path
from typing import Optional

if not __package__:  # run as a script: find the modules that `import dataset.…` finds, none of this folder's by itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import json
from collections.abc import Callable, Iterator
from typing import Any

from argdantic import ArgParser
from pydantic import BaseModel, ConfigDict, Field

from common.errors import UserError, one_line, shown
from common.files import expand_user, replacing
from common.progress import progress_bar

PACKAGE = "reasoning-gym"
Grid = list[list[Any]]
Entry = dict[str, Any]  # of reasoning-gym: question, answer, metadata

cli: ArgParser = ArgParser()


class GymOptions(BaseModel):
    """The options of this script."""

    model_config = ConfigDict(extra="forbid")

    task: str = Field(description="Which puzzles: sudoku, mini_sudoku, …; an unknown name lists all")
    size: int = Field(1000, description="How many")
    seed: int = Field(42, description="Same seed, same puzzles")
    settings: Optional[list[str]] = Field(  # noqa: UP045 - argdantic doesn't support `| None`
        None, description="Settings of the task in reasoning-gym, such as min_empty=30 max_empty=40"
    )
    output_file: Optional[str] = Field(None, description="Where they go (default: data/<task>.jsonl)")  # noqa: UP045
    overwrite: bool = Field(False, description="Replace the file that is there already")


# ------------------------------------------------------------------------------------------------ tasks


def read_puzzle(entry: Entry) -> dict[str, Any]:
    """Take puzzle and solution as they are; 0 is a blank."""
    return {"input": entry["metadata"]["puzzle"], "output": entry["metadata"]["solution"]}


def read_matrix(entry: Entry) -> dict[str, Any]:
    """Take matrix and solution as they are."""
    return {"input": entry["metadata"]["matrix"], "output": entry["metadata"]["solution"]}


def read_rotated_matrix(entry: Entry) -> dict[str, Any]:
    """Take matrix and solution; how far it is turned stands in the question alone, so it is the puzzle's name."""
    return {**read_matrix(entry), "puzzle": f"turn {entry['metadata']['num_rotations'] % 4 * 90}"}


def read_arc_1d(entry: Entry) -> dict[str, Any]:
    """Take the test example as grids of one row; the rule is the puzzle's name."""
    example = entry["metadata"]["test_example"]
    return {"input": [example["input"]], "output": [example["output"]], "puzzle": entry["metadata"]["task_name"]}


def read_game_of_life(entry: Entry) -> dict[str, Any]:
    """Take the board from the question, whose last list of lists it is, and the next one from the answer."""
    question = entry["question"]
    board = question[question.rindex("[[") : question.rindex("]]") + 2]
    return {"input": json.loads(board), "output": json.loads(entry["answer"])}


def read_futoshiki(entry: Entry) -> dict[str, Any]:
    """Write digits and the signs between them into one grid, `^` and `v` for < and > downwards; `_` is a blank."""
    metadata = entry["metadata"]
    side = 2 * metadata["board_size"] - 1
    signs = [[" "] * side for _ in range(side)]
    for row, col, other_row, other_col, sign in metadata["constraints"]:
        is_vertical = row != other_row
        signs[row + other_row][col + other_col] = {"<": "^", ">": "v"}[sign] if is_vertical else sign

    def with_signs(digits: Grid) -> Grid:
        grid = [list(row) for row in signs]
        for i, row in enumerate(digits):
            for j, digit in enumerate(row):
                grid[2 * i][2 * j] = str(digit or "_")
        return grid

    return {"input": with_signs(metadata["puzzle"]), "output": with_signs(metadata["solution"])}


# A further task is one more function: from an entry to `input` and `output`, grids of one shape, and `puzzle` where the
# grid doesn't tell what is asked
TASKS: dict[str, Callable[[Entry], dict[str, Any]]] = {
    "arc_1d": read_arc_1d,
    "binary_matrix": read_matrix,
    "futoshiki": read_futoshiki,
    "game_of_life": read_game_of_life,
    "mini_sudoku": read_puzzle,
    "rotate_matrix": read_rotated_matrix,
    "sudoku": read_puzzle,
}


# ------------------------------------------------------------------------------------------------ writing


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Parse `key=value` settings; a value that is no number, truth or list is a text.

    Raises:
        UserError: for one without `=`.
    """
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise UserError(f"--settings has {setting!r}, expected key=value")
        try:
            parsed[key] = json.loads(value)
        except ValueError:
            parsed[key] = value
    return parsed


def make_entries(options: GymOptions) -> Iterator[Entry]:
    """Have reasoning-gym make the entries of a task.

    Yields:
        `options.size` entries.

    Raises:
        UserError: if the package is missing, or refuses the settings.
    """
    try:
        import reasoning_gym  # an extra, slow to import
    except ImportError as error:
        raise UserError(
            f"{PACKAGE} is not installed ({error}): pip install -r requirements-reasoning-gym.txt"
        ) from error
    settings = parse_settings(options.settings or [])
    try:
        entries = reasoning_gym.create_dataset(options.task, **{**settings, "size": options.size, "seed": options.seed})
        for i in range(options.size):  # each is made when it is read
            yield entries[i]
    except (TypeError, ValueError, AssertionError) as error:  # an unknown setting, a wrong one
        raise UserError(f"{PACKAGE} refuses the settings of {options.task}, {shown(settings)}: {error}") from error


def write(options: GymOptions) -> Path:
    """Write the pairs that `options` describe.

    Returns:
        The file.

    Raises:
        UserError: for an option that can't be met.
    """
    if options.task not in TASKS:
        raise UserError(f"--task is {options.task!r}, expected one of {', '.join(TASKS)}")
    for flag, value, low in (("--size", options.size, 1), ("--seed", options.seed, 0)):
        if value < low:
            raise UserError(f"{flag} is {value}, expected at least {low}")
    path = expand_user(options.output_file or f"data/{options.task}.jsonl")
    if path.exists() and not (options.overwrite and path.is_file()):
        raise UserError(f"{path} is there already: --overwrite replaces a file, or give --output-file another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as partial,
        open(partial, "w", encoding="utf-8") as file,
        progress_bar(total=options.size, unit=" puzzles", desc=options.task) as bar,
    ):
        for entry in make_entries(options):
            file.write(json.dumps(TASKS[options.task](entry), ensure_ascii=False) + "\n")
            bar.update()
    return path


@cli.command(singleton=True, help="Write puzzles of a grid task of reasoning-gym as a JSONL file of pairs.")
def main(options: GymOptions) -> None:
    print(f"{options.size} puzzles written to {write(options)}")


if __name__ == "__main__":
    one_line(cli)()
