"""The `key=value` command lines besides that of pretrain.py: what a user types arrives, or one line says why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
import pretrain
import utils.arc.__main__ as arc
import utils.bench.__main__ as bench
from common.errors import UserError
from evaluate import EvaluateConfig
from utils import export
from utils.command_line import parse
from utils.config import DEFAULT_PREDICTION_KEYS


def evaluate_config(*arguments: str) -> EvaluateConfig:
    return parse(list(arguments), EvaluateConfig, "python evaluate.py", checkpoint="<…>")


def test_evaluate_arguments() -> None:
    config = evaluate_config("checkpoint=runs/Data set ACT-mlx/x=1/step_5")
    assert config.checkpoint == "runs/Data set ACT-mlx/x=1/step_5"
    assert config.save_outputs == list(DEFAULT_PREDICTION_KEYS)
    assert "logits" not in DEFAULT_PREDICTION_KEYS
    assert (config.data_path, config.global_batch_size, config.max_examples, config.forward_dtype) == (None,) * 4
    assert evaluate_config("checkpoint=x", "save_outputs=[]").save_outputs == []
    assert evaluate_config("checkpoint=x", "save_outputs=[preds,logits]").save_outputs == ["preds", "logits"]


def test_export_arguments() -> None:
    arguments = ["checkpoint=sapientinc/x@v1", "out=a b.safetensors"]
    config = parse(arguments, export.ExportConfig, "python -m utils.export", checkpoint="<…>", out="<…>")
    assert (config.checkpoint, config.out) == ("sapientinc/x@v1", "a b.safetensors")
    assert (config.prefix, config.overwrite) == ("", False)


def test_arc_arguments() -> None:
    """One folder can be given without brackets."""
    for given, expected in (("a/step_1*", ["a/step_1*"]), ("[a,b]", ["a", "b"])):
        assert parse([f"predictions={given}"], arc.ArcConfig, "python -m utils.arc").predictions == expected


@pytest.mark.parametrize("value", ["[" * 3000, "[" * 3000 + "]" * 3000, "{" * 3000 + "}" * 3000])
def test_deep_values_end_in_one_short_line(call_script: Callable[..., tuple[int, str, str]], value: str) -> None:
    """The parsers exhaust the stack: 140 kB of traceback."""
    for script in (evaluate, pretrain):
        status, _, err = call_script(script, f"checkpoint={value}", "global_batch_size=1")
        assert status == 1
        assert re.fullmatch(r"error: checkpoint=.{,200} has more than 50 brackets; no key takes so many\n", err), err


def test_a_tilde_means_home_in_every_key_that_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shells leave it alone behind `key=`; a folder called `~` would be made, or not found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind, required, keys in (
        (evaluate.EvaluateConfig, {}, ["checkpoint", "data_path", "output_path"]),
        (export.ExportConfig, {}, ["checkpoint", "out"]),
        (bench.BenchConfig, {}, ["out", "against"]),
        (arc.ArcConfig, {"predictions": "a"}, ["data_path", "submission", "table"]),
    ):
        given = required | dict.fromkeys(keys, "~/a b")
        config = parse([f"{key}={value}" for key, value in given.items()], kind, "")
        assert {getattr(config, key) for key in keys} == {f"{tmp_path}/a b"}
        with pytest.raises(UserError, match=r"^~nobody-here/x can't be expanded"):
            parse([f"{key}={value}" for key, value in (given | {keys[0]: "~nobody-here/x"}).items()], kind, "")
    assert parse(["predictions=[~/a,b~]"], arc.ArcConfig, "").predictions == [f"{tmp_path}/a", "b~"]
    assert evaluate_config("checkpoint=owner/name", "data_path=data//x/~/").data_path == "data//x/~/"


def test_what_is_missing_is_shown_by_the_usage(call_script: Callable[..., tuple[int, str, str]]) -> None:
    for script, expected in (
        (evaluate, "usage: python evaluate.py checkpoint=<step folder, file or hub id> [data_path=…]"),
        (export, "usage: python -m utils.export checkpoint=<step folder, file or hub id> out=<name>.safetensors"),
        (arc, "usage: python -m utils.arc predictions=<folder or pattern>"),
    ):
        for arguments, start in (([], "error: "), (["--help"], "error: '--help' is not key=value; ")):
            status, _, err = call_script(script, *arguments)
            assert status == 1
            assert err.startswith(start + expected)
