"""Where a run is taken up again: the right checkpoint of the right run, or one line that says why not."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from dataset.metadata import PuzzleDatasetMetadata
from tests.helpers.checkpoints import DATA, names, write_step
from tests.helpers.configs import pretrain_config, sizes
from utils.checkpoints.record import Progress
from utils.checkpoints.resume import (
    ResumePoint,
    changed_order,
    check_same_run,
    find_resume_point,
    make_way,
    progress_from,
    with_saved_names,
)
from utils.config import PretrainConfig, with_names, write_saved_config


def config_of(path: Path, arch: dict[str, Any] | None = None, **changes: Any) -> PretrainConfig:
    return pretrain_config(arch, **({"project_name": "p", "run_name": "r", "checkpoint_path": str(path)} | changes))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was killed after step 30."""
    path = tmp_path / "run"
    path.mkdir()
    config = config_of(path)
    write_saved_config(config, path)
    for step in (9, 20, 30):
        write_step(path, step, config=config.model_dump())
    return path


def resume(path: Path, how: str = "auto", **changes: Any) -> ResumePoint | None:
    """What pretrain.py finds."""
    return find_resume_point(with_saved_names(config_of(path, resume=how, **changes)))


def cut(folder: Path) -> None:
    path = folder / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


Said = Callable[[], list[str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """The lines printed so far."""
    return lambda: "".join(capsys.readouterr()).splitlines()


# ------------------------------------------------------------------------------------------ which checkpoint


def test_auto_takes_the_newest(run: Path) -> None:
    """Sorted as text, step_9 would come last."""
    point = resume(run)
    assert point is not None
    assert (point.folder, point.record.step, point.in_the_way) == (run / "step_30", 30, ())


def test_auto_starts_anew_where_there_is_nothing_yet(tmp_path: Path) -> None:
    """One command for a job scheduler, the first time as every time."""
    assert resume(tmp_path / "run") is None
    assert names(tmp_path) == []
    config = with_names(with_saved_names(pretrain_config(resume="auto", run_name="mine", data_path="data/maze")))
    assert config.checkpoint_path == "checkpoints/Maze ACT-mlx/mine"
    assert find_resume_point(with_saved_names(pretrain_config())) is None


def test_auto_takes_the_one_before_a_damaged_one_and_says_so(run: Path, said: Said) -> None:
    cut(run / "step_30")
    (run / "step_20" / "checkpoint.json").unlink()
    point = resume(run)
    assert point is not None
    assert point.folder == run / "step_9"
    warnings = said()
    assert len(warnings) == 2
    assert f"{run / 'step_30' / 'training.safetensors'} is damaged" in warnings[0]
    assert f"{run / 'step_20' / 'checkpoint.json'} is missing" in warnings[1]
    assert all("trying the checkpoint before it" in line for line in warnings)
    assert "step_30" in names(run)  # whatever is checked next may refuse to go on

    make_way(point)
    assert said() == [f"{run / f'step_{n}'} is renamed to step_{n}.damaged" for n in (30, 20)]
    assert names(run) == ["all_config.yaml", "step_20.damaged", "step_30.damaged", "step_9"]
    assert resume(run) is not None
    assert said() == []  # said once


def test_all_damaged_is_an_error_and_nothing_is_touched(run: Path) -> None:
    """Starting anew would throw the weights away, some of which may be whole."""
    for step in (9, 20, 30):
        cut(run / f"step_{step}")
    before = names(run)
    with pytest.raises(UserError, match=r"all checkpoints in .*run are damaged \(step_30, step_20, step_9\); remove"):
        resume(run)
    assert names(run) == before


def test_a_step_is_taken_up_and_the_later_ones_go_aside(run: Path, said: Said) -> None:
    """The run takes another way from there; resume=auto must not go back to the old one."""
    point = resume(run, str(run / "step_9"), checkpoint_path=None)
    assert point is not None
    assert point.record.step == 9
    assert names(run) == ["all_config.yaml", "step_20", "step_30", "step_9"]
    make_way(point)
    assert sorted(said()) == [f"{run / f'step_{n}'} is renamed to step_{n}.superseded" for n in (20, 30)]
    again = resume(run)
    assert again is not None
    assert again.folder == run / "step_9"


def test_a_step_that_was_asked_for_is_not_replaced_by_another(run: Path) -> None:
    cut(run / "step_20")
    with pytest.raises(UserError, match=r"step_20/training\.safetensors is damaged"):
        resume(run, str(run / "step_20"))
    assert names(run) == ["all_config.yaml", "step_20", "step_30", "step_9"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resume": "auto", "checkpoint_path": None, "run_name": None}, "resume=auto needs checkpoint_path=<the run's"),
        ({"resume": "{run}/step_31"}, "run/step_31' is neither auto nor a step folder"),
        ({"resume": "yes"}, "resume = 'yes' is neither auto nor a step folder"),
        ({"resume": "{run}"}, "run is not a step folder; expected a name such as step_1000"),
        ({"resume": "{run}/step_9", "checkpoint_path": "elsewhere"}, "continues in {run}, but checkpoint_path is else"),
        ({"resume": "{run}/all_config.yaml"}, "all_config.yaml' is neither auto nor a step folder"),
    ],
    ids=lambda value: value["resume"] if isinstance(value, dict) else "",
)
def test_what_can_t_be_resumed_is_told(run: Path, changes: dict[str, Any], expected: str) -> None:
    changes = {key: value.format(run=run) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UserError) as error:
        with_saved_names(config_of(run, **changes))
    assert expected.format(run=run) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_folder_may_be_named_in_another_way(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    for how, path in ((str(run / "step_9"), "run"), ("run/step_9/", str(run)), ("run/../run/step_9", None)):
        point = resume(run, how, checkpoint_path=path)
        assert point is not None
        assert point.record.step == 9


# ------------------------------------------------------------------------------------------ names and precision


def test_names_are_those_of_the_run(tmp_path: Path) -> None:
    """Otherwise each start would draw a new name, and W&B show a run of two names."""
    path = tmp_path / "run"
    path.mkdir()
    saved = with_names(pretrain_config({"forward_dtype": "bfloat16"}, checkpoint_path=str(path)))
    write_saved_config(saved, path)
    write_step(path, 9, config=saved.model_dump())
    for how, given in (("auto", str(path)), (str(path / "step_9"), None)):
        config = pretrain_config({"forward_dtype": None}, resume=how, checkpoint_path=given)
        found = with_saved_names(config)
        assert (found.project_name, found.run_name) == (saved.project_name, saved.run_name)
        assert found.checkpoint_path == str(path)
        # also on a machine on which it would be another: the checkpoint's arrays are of this type
        assert found.arch.model_dump()["forward_dtype"] == "bfloat16"
        renamed = with_saved_names(config.model_copy(update={"run_name": "mine"}))
        assert (renamed.project_name, renamed.run_name) == (saved.project_name, "mine")


def test_without_resume_nothing_is_looked_up(run: Path) -> None:
    config = pretrain_config(checkpoint_path=str(run))
    assert with_saved_names(config) is config


# ------------------------------------------------------------------------------------------ the same run


def check(run: Path, arch: dict[str, Any] | None = None, data: dict[str, str] = DATA, **changes: Any) -> list[str]:
    config = with_saved_names(config_of(run, arch, resume="auto", **changes))
    point = find_resume_point(config)
    assert point is not None
    return check_same_run(config, data, point)


def test_a_run_of_before_there_were_averages_goes_on(run: Path) -> None:
    """Its record has none of the keys that came with them, and all of these are off unless they are given."""
    new = ("ema", "ema_rate", "freeze_weights", "min_eval_interval", "load_puzzle_emb")
    config = {key: value for key, value in config_of(run).model_dump().items() if key not in new}
    write_step(run, 40, config=config)
    assert check(run) == ["mlx: 0 → " + version("mlx")]
    with pytest.raises(UserError, match="can't be continued, because this differs: ema: False → True"):
        check(run, ema=True)


@pytest.mark.parametrize(
    ("arch", "changes", "expected"),
    [
        ({"hidden_size": 64}, {}, "arch.hidden_size: 32 → 64"),
        ({"H_layers": 2, "L_cycles": 3}, {}, "arch.H_layers: 1 → 2; arch.L_cycles: 1 → 3"),
        ({"halt_exploration_prob": 0.5}, {}, "arch.halt_exploration_prob: 0.1 → 0.5"),
        ({"forward_dtype": "bfloat16"}, {}, "arch.forward_dtype: float32 → bfloat16"),
        ({"rms_norm_eps": 1e-6}, {}, "arch.rms_norm_eps: None → 1e-06"),
        (
            {"loss": {"name": "losses@ACTLossHead", "loss_type": "softmax_cross_entropy"}},
            {},
            "arch.loss.loss_type: stablemax_cross_entropy → softmax_cross_entropy",
        ),
        ({}, {"global_batch_size": 16}, "global_batch_size: 8 → 16"),
        ({}, {"seed": 1}, "seed: 0 → 1"),
        ({}, {"data": DATA | {"test": "c" * 64}}, "the test split of the data set (data_path: data/none → data/none)"),
        ({}, {"data": DATA | {"train": "c" * 64}, "data_path": "data/other"}, "the train split of the data set (data"),
    ],
    ids=str,
)
def test_what_the_arrays_depend_on_must_not_change(
    run: Path, arch: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    """The run would break at the first step, or go on with moments, carry or data that belong to something else."""
    with pytest.raises(UserError) as error:
        check(run, arch, **changes)
    message = str(error.value)
    assert message.startswith(f"{run / 'step_30'} can't be continued, because this differs: {expected}")
    assert f"load_weights={run / 'step_30'}" in message
    assert "\n" not in message


def test_what_a_record_holds_is_told_in_short_and_escaped(tmp_path: Path) -> None:
    """A record comes with a checkpoint from anybody."""
    config = pretrain_config(project_name="p", run_name="r", data_path="\x1b[2J" * 3000).model_dump()
    write_step(tmp_path, 30, config=config, versions={"\x1b[2J" * 3000: "\x1b[2J" * 3000})
    for change in check(tmp_path):
        assert change.isprintable()
        assert len(change) < 500


def test_all_that_differs_is_told_at_once(run: Path) -> None:
    with pytest.raises(
        UserError, match=r"arch\.num_heads: 2 → 4; global_batch_size: 8 → 4; seed: 0 → 5; the train spl"
    ):
        check(run, {"num_heads": 4}, {"train": "c", "test": "b" * 64}, global_batch_size=4, seed=5)


def test_harmless_changes_are_allowed_and_listed(run: Path) -> None:
    changes: dict[str, Any] = {
        "lr": 1e-5,
        "epochs": 20,
        "eval_interval": 4,
        "weight_decay": 1.0,
        "on_nonfinite": "skip",
        "keep_checkpoints": 3,
        "stop_when": {"metric": "train/lm_loss", "at_most": 0.5},
        "data_path": "/mnt/moved",  # the same data set at another place
        "load_weights": "official/weights",  # what a run begins with is over
        "load_puzzle_emb": "mean",
    }
    assert check(run, **changes) == [
        "data_path: data/none → /mnt/moved",
        "epochs: 1 → 20",
        "eval_interval: None → 4",
        "keep_checkpoints: None → 3",
        "lr: 0.001 → 1e-05",
        "on_nonfinite: stop → skip",
        "stop_when.at_most: None → 0.5",
        "stop_when.metric: None → train/lm_loss",
        "weight_decay: 0.1 → 1.0",
        f"mlx: 0 → {version('mlx')}",  # as recorded there; bit for bit holds for one version
    ]
    assert check(run) == [f"mlx: 0 → {version('mlx')}"]


def test_a_record_with_keys_that_are_gone_says_so(run: Path) -> None:
    """Written by another version of this code."""
    write_step(run, 40, config=config_of(run).model_dump() | {"momentum": 0.9})
    with pytest.raises(UserError, match=r"unknown key 'momentum' in .*step_40"):
        check(run)


# ------------------------------------------------------------------------------------------ where in the data


def progress(run: Path, found: Progress, **changes: Any) -> Progress:
    """What becomes of `found`, recorded by a run of 12 epochs evaluated every 4, with another configuration now."""
    before: dict[str, Any] = {
        "epochs": 12,
        "eval_interval": 4,
        "stop_when": {"metric": "train/lm_loss", "at_most": 1.0},
    }
    folder = write_step(run, 50, config=config_of(run, **before).model_dump(), progress=found)
    config = config_of(run, resume=str(folder), **(before | changes))
    point = find_resume_point(config)
    assert point is not None
    result = progress_from(point, config)
    assert point.record.progress == found  # is not changed with it
    return result


@pytest.mark.parametrize(
    ("changes", "batches", "length"),
    [
        ({}, 0, 4),
        ({}, 7, 4),
        ({"eval_interval": 2}, 0, 2),
        ({"eval_interval": 2}, 7, 4),  # the iteration under way ends where it was to end
        ({"epochs": 9, "eval_interval": 3}, 0, 1),  # up to the last epoch
        ({"epochs": 24, "eval_interval": 12}, 0, 12),
        ({"eval_interval": None}, 0, 4),  # one evaluation, at the end
    ],
    ids=str,
)
def test_changed_intervals_hold_from_the_next_iteration_on(
    run: Path, changes: dict[str, Any], batches: int, length: int
) -> None:
    """The order of the data depends on the iteration's length: halfway through, it must stay."""
    found = progress(run, Progress(iteration=2, epochs_done=8, iteration_epochs=4, batches=batches), **changes)
    assert (found.iteration, found.epochs_done, found.batches) == (2, 8, batches)
    assert found.iteration_epochs == length


def test_another_order_of_examples_is_told_in_the_middle_of_an_iteration_of_arc(run: Path) -> None:
    """Version 0.1 kept the examples of a puzzle in the file's order; puzzles of one example have no order."""
    arc = sizes().model_copy(update={"mean_puzzle_examples": 4.2})

    def told(metadata: PuzzleDatasetMetadata, **changes: Any) -> int:
        point = find_resume_point(config_of(run, resume=str(write_step(run, 50, **changes))))
        assert point is not None
        return len(changed_order(point, metadata))

    assert told(arc) == 1
    assert told(sizes()) == 0
    assert told(arc, versions={"hrm-mlx": "0.2.0"}) == 0
    assert told(arc, progress=Progress(iteration=1, iteration_epochs=4)) == 0


def test_a_finished_run_has_nothing_left_to_do_unless_it_is_extended(run: Path) -> None:
    done = Progress(iteration=3, epochs_done=12, iteration_epochs=1)
    assert progress(run, done).finished(12)
    longer = progress(run, done, epochs=20)
    assert not longer.finished(20)
    assert (longer.iteration, longer.epochs_done, longer.iteration_epochs) == (3, 12, 4)


@pytest.mark.parametrize(
    ("stop_when", "goes_on"),
    [
        ({"metric": "train/lm_loss", "at_most": 1.0}, False),
        ({"metric": "train/lm_loss", "at_most": 0.5}, True),
        ({}, True),
    ],
    ids=str,
)
def test_a_run_that_was_stopped_goes_on_when_stop_when_has_changed(
    run: Path, stop_when: dict[str, Any], goes_on: bool
) -> None:
    stopped = Progress(iteration=1, epochs_done=4, iteration_epochs=4, stopped="train/lm_loss = 0.9")
    found = progress(run, stopped, stop_when=stop_when)
    assert found.finished(12) is not goes_on
    assert found.stopped == (None if goes_on else "train/lm_loss = 0.9")
