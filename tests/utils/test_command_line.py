"""The `key=value` command lines besides that of pretrain.py: what a user types arrives, or one line says why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import evaluate
import pretrain
import solve
import utils.arc.__main__ as arc
import utils.bench.__main__ as bench
from common.errors import UserError
from evaluate import EvaluateConfig
from utils import export
from utils.command_line import CONFIG, Key, format_help, model_keys, parse, pretrain_keys
from utils.config import DEFAULT_PREDICTION_KEYS, PretrainConfig, StopWhen


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
        (solve.SolveConfig, {"puzzle": "."}, ["checkpoint", "data_path", "film", "submission"]),
    ):
        given = required | dict.fromkeys(keys, "~/a b")
        config = parse([f"{key}={value}" for key, value in given.items()], kind, "")
        assert {getattr(config, key) for key in keys} == {f"{tmp_path}/a b"}
        with pytest.raises(UserError, match=r"^~nobody-here/x can't be expanded"):
            parse([f"{key}={value}" for key, value in (given | {keys[0]: "~nobody-here/x"}).items()], kind, "")
    assert parse(["predictions=[~/a,b~]"], arc.ArcConfig, "").predictions == [f"{tmp_path}/a", "b~"]
    assert evaluate_config("checkpoint=owner/name", "data_path=data//x/~/").data_path == "data//x/~/"


@pytest.mark.parametrize(
    "text",
    [
        "0012",
        "1.5e3",
        "null",
        "true",
        "",
        " ",
        "a=b",
        "${oc.env:HOME}",
        "{[(" * 100,
        "[[1, 2], [3]]",
        "# S",
        "x\ny: z",
        "'",
    ],
)
def test_a_value_may_be_taken_as_it_stands(text: str) -> None:
    """A puzzle would lose its zeros, become a number or a list, or have variables of the environment put into it."""
    arguments = ["checkpoint=x", f"puzzle={text}", "copies=3"]
    config = parse(arguments, solve.SolveConfig, "", verbatim=["puzzle"], checkpoint="<…>", puzzle="<…>")
    assert (config.puzzle, config.copies) == (text, 3)
    with pytest.raises(UserError, match=r"^'puzzle' is not key=value"):
        parse(["checkpoint=x", "puzzle=x", "puzzle"], solve.SolveConfig, "", verbatim=["puzzle"])


def test_only_the_named_key_is_taken_as_it_stands() -> None:
    """`json=true` would be a text, and a checkpoint that is a number no text; of several values the last counts."""
    arguments = ["checkpoint=5", "puzzle=1", "json=true", "puzzle=2", "film=null"]
    config = parse(arguments, solve.SolveConfig, "", verbatim=["puzzle"], checkpoint="<…>", puzzle="<…>")
    assert (config.checkpoint, config.puzzle, config.as_json, config.film) == ("5", "2", True, None)


def test_what_is_missing_is_shown_by_the_usage(call_script: Callable[..., tuple[int, str, str]]) -> None:
    for script, expected in (
        (evaluate, "usage: python evaluate.py checkpoint=<step folder, file or hub id> [data_path=…]"),
        (export, "usage: python -m utils.export checkpoint=<step folder, file or hub id> out=<name>.safetensors"),
        (arc, "usage: python -m utils.arc predictions=<folder or pattern>"),
        (solve, "usage: python solve.py checkpoint=<step folder, file or hub id> puzzle=<text, file or -> "),
    ):
        for arguments, start in (([], "error: "), (["--halp"], "error: '--halp' is not key=value; ")):
            status, _, err = call_script(script, *arguments)
            assert status == 1
            assert err.startswith(start + expected)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("script", [pretrain, evaluate, solve, export, arc, bench], ids=lambda script: script.__name__)
def test_help_explains_each_key(
    script: ModuleType, flag: str, call_script: Callable[..., tuple[int, str, str]]
) -> None:
    """Who asks for help would get an error, or a list of names without a word of what they mean."""
    status, out, err = call_script(script, flag)
    assert (status, err) == (0, "")
    assert out.startswith("usage: python ")
    keys = {
        pretrain: pretrain_keys(),
        evaluate: model_keys(EvaluateConfig),
        solve: model_keys(solve.SolveConfig),
        export: model_keys(export.ExportConfig),
        arc: model_keys(arc.ArcConfig),
        bench: model_keys(bench.BenchConfig),
    }[script]
    assert len(keys) > 3
    for name, key in keys.items():
        assert key.explanation, f"{name} is not explained"
        shown = "" if key.default is None else f"={key.default}"
        assert re.search(rf"^  {re.escape(name + shown)}\s+\S", out, re.MULTILINE), name


def test_the_keys_of_pretrain_are_all_that_it_takes() -> None:
    """A key that --help leaves out is one that nobody finds."""
    keys = pretrain_keys()
    for name in PretrainConfig.model_fields.keys() - {"arch", "optimizer", "stop_when"}:
        assert name in keys
    assert {name for name in keys if name.startswith("stop_when.")} == {f"stop_when.{k}" for k in StopWhen.model_fields}
    assert keys["lr"].default == "1e-4"
    assert keys["arch.loss.loss_type"].default == "stablemax_cross_entropy"
    assert not [name for name in keys if name.startswith(("hydra", "defaults"))]


def test_help_knows_the_chosen_configuration_and_architecture() -> None:
    """Of the demo, the defaults of the 27M-parameter model would be shown."""
    for arguments in (["--config-name", "cfg_demo"], ["--config-name=cfg_demo"], ["-cn", "cfg_demo", "--help"]):
        keys = pretrain_keys(arguments)
        assert (keys["epochs"].default, keys["arch.hidden_size"].default) == ("2", "128")
        assert keys["epochs"].explanation == pretrain_keys()["epochs"].explanation
    keys = pretrain_keys(["arch=hrm_demo"])
    assert (keys["epochs"].default, keys["arch.hidden_size"].default) == ("100000", "128")
    assert "lr" in pretrain_keys(["arch=nowhere"])


@pytest.mark.parametrize("path", sorted(CONFIG.rglob("*.yaml")), ids=lambda path: path.name)
def test_each_key_of_a_configuration_is_explained_where_it_stands_or_where_it_comes_from(path: object) -> None:
    name = str(path).removeprefix(f"{CONFIG}/").removesuffix(".yaml")
    argument = f"arch={name.removeprefix('arch/')}" if name.startswith("arch/") else f"--config-name={name}"
    assert [key for key, found in pretrain_keys([argument]).items() if not found.explanation] == []


def test_help_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = format_help("usage: x", {"a": Key("1", "word " * 40), "b" * 40: Key(None, "word")})
    first, blank, *lines = text.splitlines()
    assert (first, blank) == ("usage: x", "")
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("  a=1  ")
    assert [line.strip() for line in lines[-2:]] == ["b" * 40, "word (required)"]


@pytest.mark.parametrize(
    ("argument", "near"),
    [
        *(("hidden_size=256", "arch.hidden_size"), ("global_batchsize=8", "global_batch_size")),
        *(("++hiden_size=256", "arch.hidden_size"), ("stop_when.metrik=x", "stop_when.metric")),
        ("data_paths=[data/x]", "data_path"),
        *(("loss_type=x", "arch.loss.loss_type"), ("learning_rate=1", None), ("xyzzy=1", None)),
    ],
)
def test_an_unknown_key_of_pretrain_suggests_the_near_one(
    argument: str, near: str | None, call_script: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = call_script(pretrain, argument)
    assert status == 1
    assert err.startswith(f"error: unknown key {argument.strip('+').partition('=')[0]!r} in the co")
    assert ("did you mean" in err) == (near is not None)
    assert near is None or f"; did you mean {near}?" in err
    assert err.count("\n") == 1


def test_an_unknown_key_of_a_program_suggests_the_near_one(call_script: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = call_script(evaluate, "checkpoint=x", "batch_size=8")
    assert status == 1
    assert "unknown key 'batch_size' in the command line; did you mean eval_batch_size?" in err
    status, _, err = call_script(evaluate, "checkpoint=x", "xyzzy=8")
    assert "unknown key 'xyzzy' in the command line; remove it or check its spelling" in err
