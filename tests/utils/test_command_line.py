"""The `key=value` command lines besides that of pretrain.py: what a user types arrives, or one line says why not."""

from __future__ import annotations

import pytest

from common.errors import UserError
from utils.command_line import parse_arc_config, parse_evaluate_config, parse_export_config
from utils.config import DEFAULT_PREDICTION_KEYS


def test_evaluate_arguments() -> None:
    config = parse_evaluate_config(["checkpoint=runs/Data set ACT-mlx/x=1/step_5"])
    assert config.checkpoint == "runs/Data set ACT-mlx/x=1/step_5"
    assert config.save_outputs == list(DEFAULT_PREDICTION_KEYS)
    assert "logits" not in DEFAULT_PREDICTION_KEYS
    assert (config.data_path, config.global_batch_size, config.max_examples, config.forward_dtype) == (None,) * 4
    assert parse_evaluate_config(["checkpoint=x", "save_outputs=[]"]).save_outputs == []
    assert parse_evaluate_config(["checkpoint=x", "save_outputs=[preds,logits]"]).save_outputs == ["preds", "logits"]


def test_export_arguments() -> None:
    config = parse_export_config(["checkpoint=sapientinc/x@v1", "out=a b.safetensors"])
    assert (config.checkpoint, config.out) == ("sapientinc/x@v1", "a b.safetensors")
    assert (config.prefix, config.overwrite) == ("", False)


def test_what_is_missing_is_shown_by_the_usage() -> None:
    for parse, expected in (
        (parse_evaluate_config, r"usage: python evaluate.py checkpoint=<step folder, file or hub id> \[data_path=…\]"),
        (parse_export_config, "usage: python -m utils.export checkpoint=<.*> out=<name>.safetensors"),
        (parse_arc_config, "usage: python -m utils.arc predictions=<"),
    ):
        with pytest.raises(UserError, match=expected):
            parse([])
        with pytest.raises(UserError, match="'--help' is not key=value; usage: "):
            parse(["--help"])
