"""What configurations name: nothing but models is loaded, and options are checked before they reach it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from common.errors import UserError
from models.loading import checked_options, load
from tests.helpers.configs import TINY_ARCH


def test_classes_are_found_below_models() -> None:
    assert load(TINY_ARCH["name"], "arch.name").__name__ == "HierarchicalReasoningModel_ACTV1"
    assert load("losses@ACTLossHead", "arch.loss.name").__module__ == "models.losses"


@pytest.mark.parametrize(
    "name",
    [
        "os@system",
        "utils.config@PretrainConfig",
        "..utils.config@PretrainConfig",
        "losses@nn",  # a module that losses imports
        "losses@Any",  # a class from elsewhere
        "losses@Q_LOSS_WEIGHT",  # neither class nor function
        "losses@_cross_entropy",
        "losses@NoSuchHead",
        "hrm.hrm_act_v2@HierarchicalReasoningModel_ACTV1",
        "losses.ACTLossHead",
        "losses@",
        "@ACTLossHead",
        "",
    ],
)
def test_nothing_else_is_loaded(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A configuration that somebody sends along must not run code of its own."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    for identifier in (name, "evil@Class"):
        with pytest.raises(UserError, match=r"arch.name = '.*expected module@Name below models"):
            load(identifier, "arch.name")
    assert not {module for module in set(sys.modules) - before if not module.startswith("models.")}


def smooth(logits: mx.array, labels: mx.array, smoothing: float, steps: int = 3, name: str | None = None) -> mx.array:
    """A token loss with options of its own; `logits` and `labels` are given otherwise."""
    return logits


class Anything:
    def __init__(self, model: object, scale: float = 1.0, **others: Any):
        self.others = others


def test_options_are_converted_and_none_is_added() -> None:
    """YAML reads 1e-1 as text, and a default belongs to whoever declares it."""
    found = checked_options(smooth, {"smoothing": "1e-1", "steps": 2.0}, "arch.loss", given=2)
    assert found == {"smoothing": 0.1, "steps": 2}
    assert isinstance(found["steps"], int)
    assert checked_options(Anything, {"scale": 2, "heads": "8"}, "arch", given=1) == {"scale": 2.0, "heads": "8"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 0.1, "smothing": 0.2}, "unknown key 'arch.loss.smothing'"),
        ({"steps": 2}, "key 'arch.loss.smoothing' is missing"),
        ({"smoothing": "much"}, "arch.loss.smoothing = 'much'"),
        ({"smoothing": 0.1, "steps": 2.5}, "arch.loss.steps = 2.5"),
        ({"smoothing": 0.1, "labels": 1}, "unknown key 'arch.loss.labels'"),  # given otherwise
    ],
    ids=["unknown", "missing", "text", "fraction", "given"],
)
def test_a_wrong_option_is_one_line_that_names_it(options: dict[str, Any], message: str) -> None:
    """It would end in a traceback, or be left out without a word."""
    with pytest.raises(UserError) as caught:
        checked_options(smooth, options, "arch.loss", given=2)
    assert message in str(caught.value)
    assert str(caught.value).endswith("(smooth takes smoothing, steps, name)")
    assert "\n" not in str(caught.value)


def test_where_nothing_is_taken_the_message_says_so() -> None:
    with pytest.raises(UserError, match=r"unknown key 'arch.loss.smoothing'.* takes no options\)"):
        checked_options(lambda logits, labels: logits, {"smoothing": 0.1}, "arch.loss", given=2)
