"""Configurations from elsewhere: what a model needs is found in them, and nothing fills memory or takes hours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import UserError
from tests.helpers.configs import DEFAULT_ARCH
from utils.checkpoints.foreign_config import check_bounds, read_trained_config
from utils.config import read_saved_config


def test_a_model_needs_no_valid_training_keys(tmp_path: Path) -> None:
    """Somebody else's code has other keys, lacks some of these, or divides its epochs in another way."""
    values = {"arch": DEFAULT_ARCH, "data_path": "data/theirs"}
    training = {"ema": False, "epochs": 7, "eval_interval": 3, "lr": None}
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump(values | training))
    config = read_trained_config(tmp_path)
    assert (config.data_path, config.global_batch_size, config.seed) == ("data/theirs", 768, 0)
    assert config.arch.model_dump() == DEFAULT_ARCH
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump(values | {"global_batch_size": 24, "seed": 5}))
    assert (read_trained_config(tmp_path).global_batch_size, read_trained_config(tmp_path).seed) == (24, 5)
    with pytest.raises(UserError, match="key 'epochs' is missing"):  # to go on training, every key matters
        read_saved_config(tmp_path)


def test_a_list_of_one_data_set_is_that_data_set(tmp_path: Path) -> None:
    """As TRM's and URM's code writes it, beside keys that HRM's lacks."""

    def data_path(given: str | None = None, **values: Any) -> str:
        theirs = {"arch": DEFAULT_ARCH, "data_paths_test": [], "evaluators": [], "ema": True, "ema_rate": 0.999}
        (tmp_path / "all_config.yaml").write_text(yaml.safe_dump(theirs | values))
        return read_trained_config(tmp_path, given).data_path

    assert data_path(data_paths=["data/theirs"]) == "data/theirs"
    assert data_path(data_paths=["~/theirs"]) == str(Path.home() / "theirs")
    assert data_path(data_paths=["x" * 4096]) == "x" * 4096
    assert data_path(data_paths=["data/theirs"], data_path=None) == "data/theirs"
    for several in ([], ["data/theirs"], ["data/a", "data/b"], 5):
        assert data_path(data_paths=several, data_path="data/wins") == "data/wins"
        assert data_path(given="data/given", data_paths=several) == "data/given"
    assert data_path(given="data/given", data_path="data/as-trained") == "data/as-trained"


@pytest.mark.parametrize(
    ("data_paths", "message"),
    [
        (["data/a", "data/b"], "names 2 data sets in data_paths ('data/a', 'data/b'); give one as data_path=<folder>"),
        (["\x1b[2J", "x" * 50_000, 1], r"names 3 data sets in data_paths ('\x1b[2J', 'xxx"),
        ([f"data/{i}" for i in range(200)], "names 200 data sets in data_paths ('data/0', 'data/1', "),
        ([f"data/{i}" for i in range(201)], "has 201 entries; at most 200"),
        ([], "data_paths = [] in "),
        (None, "data_paths = None in "),
        ("data/a", "data_paths = 'data/a' in "),
        ({"data/a": 1}, "data_paths = {'data/a': 1} in "),
        ([None], "data_path = None in "),
        ([["data/a"]], "data_path = ['data/a'] in "),
        ([""], "data_path = '' in "),
        (["x" * 4097], "data_path = 'xxx"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_any_other_list_of_data_sets_ends_in_one_short_line(tmp_path: Path, data_paths: Any, message: str) -> None:
    (tmp_path / "all_config.yaml").write_text(yaml.safe_dump({"arch": DEFAULT_ARCH, "data_paths": data_paths}))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_trained_config(tmp_path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value).replace(str(tmp_path), "")) < 500


LAUGHS = "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)), "lr: *a59"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 2 has an alias"),
        ("arch: &a\n  b: *a", "line 2 has an alias"),
        ("[" * 5000, "nested more than 8 levels deep"),
        ("a: " + "{b: " * 400 + "1" + "}" * 400, "nested more than 8 levels deep"),
        ("#" * 70_000, "more than 65,536 bytes"),
        ("a: " + ":".join("1" * 15_000) + ".5", "can't be read: int too large"),
        ("a: " + ":".join("1" * 15_000), "key 'arch' is missing"),
        ("a: 2024-13-45", "can't be read: month must be in 1..12"),
        ("a: " + "9" * 5000, "can't be read"),
        ("a: !!bool perhaps", "can't be read"),
        ("a: !!int ''", "can't be read"),
        ("a: !!timestamp now", "can't be read"),
        ("a: !<" + "x" * 60_000 + "> 5", "can't be read"),
        ("a: !!python/object/apply:os.system [exit]", "can't be read"),
        ("a: \x00", "can't be read"),
        ("\udcff", "can't be read"),
        ("{? " + "k" * 60_000 + " : 1}", "key 'arch' is missing"),
        ("{arch: {name: " + "a." * 30_000 + "b@C, loss: {name: a@b}}, data_path: x}", "at most 200 characters"),
        ("{arch: " + "x" * 60_000 + ", data_path: x}", "arch = 'xxx"),
        ("{arch: {1: 2, name: x, loss: {name: y, loss_type: stablemax_cross_entropy}}, data_path: x}", "arch.1"),
        (
            "{arch: {name: x, loss: {loss_type: stablemax_cross_entropy, name: a@b, ? " + "k" * 60_000 + " : 1}}}",
            "key 'data_path' is missing",
        ),
        ("global_batch_size: 0x" + "f" * 60_000, "and 2 more"),
        ("{data_path: " + "x" * 60_000 + "}", "is missing"),
    ],
    ids=lambda value: value[:40],
)
def test_hostile_files_end_in_one_short_line(text: str, message: str, tmp_path: Path) -> None:
    """A file from the hub could fill memory, run for hours, or end in a traceback."""
    (tmp_path / "all_config.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    for read in (read_trained_config, read_saved_config):
        with pytest.raises(UserError) as caught:
            read(tmp_path)
        told = str(caught.value).removeprefix(str(tmp_path))
        assert "\n" not in told
        assert len(told) < 500
        if read is read_trained_config:
            assert message in told


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ({"expansion": float("inf")}, "arch.expansion = inf; at most 16,384"),
        ({"expansion": float("nan")}, "arch.expansion = nan; at most 16,384"),
        ({"rope_theta": 1.1e12}, "arch.rope_theta = 1100000000000.0; at most 1,000,000,000,000"),
        ({"rms_norm_eps": -1e300}, "arch.rms_norm_eps = -1e+300; at most 16,384"),
        ({"expansion": "1e300"}, "arch.expansion = '1e300'; at most 16,384"),
        ({"hidden_size": 16_385}, "arch.hidden_size = 16385; at most 16,384"),
        ({"hidden_size": -16_385}, "arch.hidden_size = -16385; at most 16,384"),
        ({"hidden_size": "16385"}, "arch.hidden_size = '16385'; at most 16,384"),
        ({"hidden_size": 1e9}, "arch.hidden_size = 1000000000.0; at most 16,384"),
        ({"sizes": [1, [2, 10**5]]}, "arch.sizes.1.1 = 100000; at most 16,384"),
        ({"loss": {"smoothing": 1e13}}, "arch.loss.smoothing = 10000000000000.0; at most 16,384"),
        ({"loss": {"\x1b[2J": 10**5}}, r"arch.loss.'\x1b[2J' = 100000; at most 16,384"),
        ({"halt_max_steps": 1025}, "arch.halt_max_steps = 1025; at most 1,024 outer steps"),
        ({"loops": 5000.0}, "arch.loops = 5000.0; at most 1,024 outer steps"),
        ({"H_cycles": 64, "L_cycles": 16, "num_layers": 5}, "arch.num_layers = 5 makes 5,120 blocks in one outer step"),
        ({"num_layers": 5, "H_cycles": 64, "L_cycles": 16}, "arch.L_cycles = 16 makes 5,120 blocks in one outer step"),
        ({"H_layers": 4096, "L_layers": 1, "H_cycles": 1}, "arch.L_layers = 1 makes 4,097 blocks in one outer step"),
        ({"H_cycles": 1e4, "layers": "3"}, "arch.layers = '3' makes 30,000 blocks in one outer step"),
        ({"note": "x" * 201}, "is too long; at most 200 characters"),
        ({"sizes": [0] * 201}, "is too long; at most 200 characters or items"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_beyond_any_model_are_refused_with_their_key(arch: dict[str, Any], message: str) -> None:
    """Whatever the architecture is: memory would be filled, or a graph built that MLX crashes on."""
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        check_bounds(arch, "all_config.yaml")
    assert str(caught.value).startswith("all_config.yaml: arch.")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_published_architectures_and_the_bounds_themselves_are_taken() -> None:
    """HRM, TRM and URM, and models far larger than theirs."""
    check_bounds(DEFAULT_ARCH, "")
    check_bounds({"H_cycles": 3, "L_cycles": 6, "H_layers": 0, "L_layers": 2, "no_ACT_continue": True}, "")
    check_bounds({"loops": 16, "num_layers": 4, "H_cycles": 2, "L_cycles": 6, "rms_norm_eps": "1e-5"}, "")
    check_bounds({"hidden_size": 16_384, "rope_theta": 10**12, "halt_max_steps": 1024, "layers": 64, "cycles": 64}, "")
