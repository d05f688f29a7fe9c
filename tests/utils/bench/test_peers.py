"""`peers=true`: what is compared takes turns, what can't be compared is told in a line, PyTorch is never needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from tests.helpers.configs import FAMILY, TINY_ARCH, pretrain_config
from utils.bench import __main__ as bench
from utils.bench import measure, peers
from utils.bench.products import Seconds


class Side:
    """Takes steps in no time, and says that they took some."""

    threads = 2

    def __init__(self, turns: list[str], name: str, seconds: list[float]) -> None:
        self.turns, self.name, self.times = turns, name, seconds

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.turns.append("closed")

    def seconds(self, kind: str, steps: int) -> Seconds:
        self.turns.append(f"{self.name} {kind} {steps}")
        taken = self.times.pop(0)
        return Seconds(taken, taken / 2)


def test_takes_turns_and_compares_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio that has one outlier in it, or is upside down, would praise the slower."""
    turns: list[str] = []
    warm, ours_times, theirs_times = [9.0, 0.2], [1.0, 8.0, 1.0], [2.0, 2.0, 3.0]
    ours = Side(turns, "ours", (warm + ours_times) * 2)
    ours.model_config = {"hidden_size": 1}  # type: ignore[attr-defined]
    monkeypatch.setattr(peers, "OurSteps", lambda *_: ours)
    monkeypatch.setattr(peers, "TorchProcess", lambda _: Side(turns, "theirs", (warm + theirs_times) * 2))
    monkeypatch.setattr(peers, "version", lambda _: "2.13.0")
    monkeypatch.setattr(peers, "_PAUSE", 0)
    found = peers.compare_with_torch("hrm_demo", "sudoku", ["eager"], rounds=3)
    assert turns[4:10] == ["ours train 3", "theirs train 3"] * 3
    assert turns[-1] == "closed"
    assert found["eager"]["eval"] == {
        "ours": [(time, time / 2) for time in ours_times],
        "theirs": [(time, time / 2) for time in theirs_times],
        "ratio": 2.0,
        "ratio_cpu": 2.0,
    }
    title, train, _ = peers.report(json.loads(json.dumps(found)))
    assert "PyTorch 2.13.0, eager, threads: 2" in title
    assert "1000.0 ms, PyTorch 2000.0 ms: 2.00 × as fast; in processor time 2.00 ×" in train


def test_without_pytorch_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, call_script: Callable[..., Any]
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    status, out, err = call_script(bench, "peers=true", "quick=true")
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert "-m pip install torch" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["peers=both"], "peers"),
        (["shapes=chess"], "shapes=chess: there is no such shape; choose of sudoku, maze, "),
        (["shapes=[]"], "shapes"),
    ],
)
def test_unknown_values_are_refused_before_measuring(
    arguments: list[str], message: str, call_script: Callable[..., Any]
) -> None:
    status, out, err = call_script(bench, *arguments)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert message in err


def test_what_has_no_pytorch_model_is_told() -> None:
    """Two different models would be compared."""
    assert [name for name, arch in FAMILY.items() if not peers.has_peer(pretrain_config(arch))] == ["urm"]
    for changed in ({"mixer": {"name": "a@B"}}, {"loss": TINY_ARCH["loss"] | {"loss_type": "a@b"}}):
        assert not peers.has_peer(pretrain_config(changed))
    found = peers.compare_with_torch("urm", "sudoku", ["eager"], rounds=1)
    (line,) = peers.report(found)
    assert "no PyTorch model to compare urm.urm@URM with" in line


def test_a_process_that_fails_ends_the_bench_in_a_line() -> None:
    """The bench would wait for it forever."""
    with pytest.raises(UserError, match="the process of PyTorch has ended"):
        peers.TorchProcess({})


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("torch") is None, reason="compares with PyTorch, which is no requirement: pip install torch"
)
def test_the_bench_compares_with_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call_script: Callable[..., Any]
) -> None:
    monkeypatch.setattr(measure, "SHAPES", {"tiny": (16, 6, 4)})
    monkeypatch.setattr(peers, "_LEAST_SECONDS", 0)
    arguments = ("arch=hrm_demo", "shapes=tiny", "quick=true", "peers=true", f"out={tmp_path / 'b.json'}")
    status, printed, err = call_script(bench, *arguments)
    assert status == 0, err
    assert printed.count("× as fast") == 2
    found = json.loads((tmp_path / "b.json").read_text())["shapes"]["tiny"]["peers"]["eager"]
    assert all(found[kind]["ratio"] > 0 for kind in ("train", "eval"))
