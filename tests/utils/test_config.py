"""The typed configuration: values as YAML and command lines give them, names chosen, classes found, round trips."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from tests.helpers.configs import pretrain_config
from utils.config import (
    PretrainConfig,
    StopWhen,
    read_saved_config,
    with_names,
    write_saved_config,
)


def test_values_have_their_types() -> None:
    """A number that stays text would fail hours later, in the schedule or in W&B."""
    config = pretrain_config(epochs=20, eval_interval=5, lr="1e-4", seed=3.0, checkpoint_every_eval=True)
    assert config.epochs_per_iteration == 5
    assert (config.lr, config.seed) == (1e-4, 3)
    assert isinstance(config.seed, int)
    without = pretrain_config(epochs=20)  # eval_interval unset: one evaluation, at the end
    assert without.epochs_per_iteration == 20
    assert without.eval_save_outputs == []
    assert (without.resume, without.checkpoint_interval, without.keep_checkpoints) == (None, None, None)
    assert without.on_nonfinite == "stop"
    assert without.stop_when == StopWhen()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": "fast"}, "lr = 'fast' in the configuration: input should be a valid number"),
        ({"lr": -1.0}, "lr = -1.0 in the configuration: input should be greater than or equal to 0"),
        ({"beta1": 1.0}, "beta1 = 1.0 in the configuration: input should be less than 1"),
        ({"seed": -1}, "seed = -1"),
        ({"epochs": 1.5}, "epochs = 1.5"),
        ({"epochs": 0}, "epochs = 0"),
        ({"global_batch_size": None}, "global_batch_size = None"),
        ({"data_path": [5]}, "data_path = [5]"),
        ({"log_interval": 0}, "log_interval = 0"),
        ({"checkpoint_interval": 0}, "checkpoint_interval = 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints = 0"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite = 'ignore' in the configuration: input should be 'stop' or 'skip'"),
        ({"eval_save_outputs": ["preds", "prediction"]}, "eval_save_outputs.1 = 'prediction'"),
        ({"warmup": 5}, "unknown key 'warmup' in the configuration"),
        ({"stop_when": {"metrik": "x"}}, "unknown key 'stop_when.metrik'"),
        ({"epochs": 7, "eval_interval": 3}, "try epochs=6, or an eval_interval that divides it"),
        ({"epochs": 1, "eval_interval": 3}, "try epochs=3"),
        ({"stop_when": {"metric": "loss", "at_most": 1}}, "name a logged one, such as train/exact_accuracy"),
        ({"stop_when": {"metric": "train/steps"}}, "set one of stop_when.at_least and stop_when.at_most"),
        (
            {"stop_when": {"metric": "train/steps", "at_least": 1, "at_most": 2}},
            "set one of stop_when.at_least and stop_when.at_most",
        ),
        ({"stop_when": {"at_least": 0.999}}, "set stop_when.metric too"),
        ({"stop_when": {"window": 0}}, "stop_when.window = 0"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        pretrain_config(**change)


def test_the_first_of_several_mistakes_is_told_and_the_rest_counted() -> None:
    with pytest.raises(UserError, match=r"lr = 'a'.*\(and 2 more\)$"):
        pretrain_config(lr="a", beta1="b", beta2="c")


@pytest.mark.parametrize(
    ("stop", "met", "missed"),
    [({"at_least": 0.9}, [0.9, 1.0], [0.89]), ({"at_most": 0.1}, [0.1, 0.0], [0.11])],
    ids=["at_least", "at_most"],
)
def test_stop_when_includes_its_bound(stop: dict[str, float], met: list[float], missed: list[float]) -> None:
    condition = StopWhen.model_validate({"metric": "train/exact_accuracy"} | stop)
    for value in met:
        reason = condition.reason({"train/exact_accuracy": value, "train/lm_loss": 9.0}, " over 5 steps")
        assert reason == f"train/exact_accuracy = {value:.4f} over 5 steps"
    assert not any(condition.reason({"train/exact_accuracy": value}) for value in missed)
    assert condition.reason({"train/lm_loss": met[0]}) is None  # a set that eval_max_examples leaves out
    assert StopWhen().reason({"train/exact_accuracy": met[0]}) is None


def test_unset_names_are_chosen_and_given_ones_kept() -> None:
    """Runs would overwrite one another, or be found under another name than the one given."""
    config = with_names(pretrain_config(data_path="data/sudoku-extreme-1k-aug-1000/"))
    assert config.project_name == "Sudoku-extreme-1k-aug-1000 ACT-mlx"
    assert re.fullmatch(r"HierarchicalReasoningModel_ACTV1 [a-z]+-[a-z]+", config.run_name or "")
    assert config.checkpoint_path == f"checkpoints/{config.project_name}/{config.run_name}"

    config = with_names(pretrain_config(project_name="p", run_name="r"))
    assert config.checkpoint_path == "checkpoints/p/r"
    assert with_names(pretrain_config(checkpoint_path="here")).checkpoint_path == "here"


@pytest.mark.parametrize("name", ["../../x", "a/b", "/x", "..", "."])
def test_a_name_leads_nowhere_else(name: str) -> None:
    """The run would lie beside checkpoints, or in somebody else's folder."""
    for key in ("project_name", "run_name"):
        named: dict[str, Any] = {key: name}
        with pytest.raises(UserError, match=rf"^{key} = {re.escape(repr(name))} can't name a folder in checkpoints"):
            with_names(pretrain_config(**named))
        assert with_names(pretrain_config(**named, checkpoint_path="here")).checkpoint_path == "here"


def test_a_tilde_means_home_in_every_key_that_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("data_path", "checkpoint_path", "resume", "load_weights")
    paths: dict[str, Any] = dict.fromkeys(keys, "~/x")
    config = pretrain_config(**paths)
    assert {getattr(config, key) for key in keys} == {f"{tmp_path}/x"}
    assert (pretrain_config(resume="auto").resume, pretrain_config().checkpoint_path) == ("auto", None)
    with pytest.raises(UserError, match=r"^~nobody-here/x can't be expanded"):
        pretrain_config(data_path="~nobody-here/x")


def test_the_saved_configuration_comes_back_equal(tmp_path: Path) -> None:
    """evaluate.py would build another model than the one that was trained."""
    config = pretrain_config(
        {"expansion": 2.5, "pos_encodings": "learned"},
        run_name="größe: 1 # no comment",
        eval_save_outputs=["preds"],
        lr=7e-5,
        stop_when={"metric": "eval/accuracy", "at_least": 0.9},
    )
    write_saved_config(config, tmp_path)
    assert read_saved_config(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["all_config.yaml"]


def test_values_that_occur_twice_are_written_twice(tmp_path: Path) -> None:
    """As an alias, which yaml.safe_dump writes by itself, the second could not be read back."""
    outputs = ["preds"]
    write_saved_config(pretrain_config({"a": outputs, "b": outputs}, eval_save_outputs=outputs), tmp_path)
    assert read_saved_config(tmp_path).arch.model_dump()["b"] == outputs


def test_every_key_has_a_place_in_the_yaml() -> None:
    """A key without one can't be given as key=value."""
    text = (Path(__file__).parents[2] / "config/cfg_pretrain.yaml").read_text()
    keys = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    assert PretrainConfig.model_fields.keys() - keys == {"arch"}  # from `defaults`
    assert set(re.findall(r"^  (\w+):", text[text.index("stop_when:") :], re.MULTILINE)) == set(StopWhen.model_fields)
