"""Ctrl-C and SIGTERM: one ends a run in order, two at once, and afterwards they are what they were before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from common.errors import Interrupted
from tests.helpers.tiny_data import ROOT
from utils.train.interruption import Interruption

# One call into C that takes minutes: Python calls no signal handler before it returns.
BUSY = """
import hashlib
from utils.train.interruption import Interruption
with Interruption():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def wait_for(interruption: Interruption) -> Interrupted:
    """What `check` raises in the end."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            interruption.check()
        except Interrupted as interrupted:
            return interrupted
        time.sleep(0.001)
    raise AssertionError("the signal was not noted")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_run_ends_when_it_is_convenient(
    number: signal.Signals, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the status by which shells and job schedulers know why, and a word on what is going on."""
    with Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        interrupted = wait_for(interruption)
        with pytest.raises(Interrupted):  # and whoever looks later sees it too
            interruption.check()
    assert interrupted.exit_status == status
    assert str(interrupted) == f"ended by {number.name}"
    assert capfd.readouterr().err == (
        f"\n{number.name}: finishing this step and saving a checkpoint; a second signal ends the run at once\n"
    )


def test_other_signals_are_not_ours(capfd: pytest.CaptureFixture[str]) -> None:
    """A SIGCHLD of W&B's, or a timer's, would end the run."""
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)
            interruption.check()
            assert came == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [None, RuntimeError("broken")], ids=["in-peace", "by-an-error"])
def test_everything_is_as_before_afterwards(error: Exception | None) -> None:
    """Ctrl-C would be swallowed while the run is being closed, or in a notebook for good."""

    def own(number: int, frame: object) -> None:
        raise AssertionError("not sent here")

    threads = set(threading.enumerate())
    before = {number: signal.signal(number, own) for number in Interruption.SIGNALS}
    try:
        try:
            with Interruption():
                assert all(signal.getsignal(number) is not own for number in Interruption.SIGNALS)
                if error is not None:
                    raise error
        except RuntimeError:
            pass
        assert all(signal.getsignal(number) is own for number in Interruption.SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert signal.set_wakeup_fd(-1) == -1
    assert set(threading.enumerate()) == threads


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)], ids=str
)
def test_a_second_signal_leaves_at_once(first: signal.Signals, second: signal.Signals) -> None:
    """Also in the middle of a step, which can take minutes."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "busy\n"
        process.send_signal(first)
        assert process.stderr.readline() + process.stderr.readline() == (
            f"\n{first.name}: finishing this step and saving a checkpoint; a second signal ends the run at once\n"
        )
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(10) == 128 + second
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("signals", "ended_by"), [([], None), ([signal.SIGINT] * 3, "SIGINT"), ([signal.SIGINT, signal.SIGTERM], "SIGTERM")]
)
def test_the_sum_of_flags_says_whether_and_which(
    signals: list[signal.Signals], ended_by: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """All ranks read the same sum after a step, so all end there, and with the same status; only one of them speaks."""
    total = 0.0
    for number in signals:
        with Interruption(announce=False) as interruption:
            assert interruption.flag == 0
            os.kill(os.getpid(), number)
            wait_for(interruption)
            total += interruption.flag
    assert capfd.readouterr().err == ""
    if ended_by is None:
        Interruption.check_sum(total)
        return
    with pytest.raises(Interrupted, match=f"ended by {ended_by}"):
        Interruption.check_sum(total)
