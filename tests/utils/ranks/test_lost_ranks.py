"""Ranks that are killed, stopped, stuck or interrupted: the others end, each with one line, and the run goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.helpers.kill_runs import lines_of
from tests.helpers.rank_processes import RankProcesses, ranks_of
from tests.helpers.tiny_data import make_tiny_data, train_arguments
from utils.checkpoints.record import step_folders, verify

pytestmark = pytest.mark.slow

# rank_timeout: far more than a step takes, and than a busy machine keeps a thread from running
TIMEOUT = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data") / "sudoku-4x4", identifiers=5)


def endless(data: Path, run: Path, *more: str) -> list[str]:
    """Arguments of a run that nobody waits for, with a checkpoint every 10 steps."""
    length = ["epochs=4000", "eval_interval=4000", "checkpoint_interval=10", "keep_checkpoints=2"]
    return train_arguments(data, run, *length, f"rank_timeout={TIMEOUT}", "resume=auto", *more)


def errors_of_others(ranks: RankProcesses, lost: int) -> dict[int, str]:
    """Wait for all but one rank to end; returns what each of them says of it, one line."""
    others = [rank for rank in range(len(ranks.processes)) if rank != lost]
    assert ranks.wait(*others) == [1] * len(others)
    errors = dict(ranks.errors())
    assert len(ranks.errors()) == len(errors) == len(others)
    for rank, line in errors.items():
        assert line.startswith(f"error: rank {rank}: " if rank else "error: ")
        assert line.endswith("; start all ranks again, for training with resume=auto")
    return errors


@pytest.mark.parametrize("lost", [0, 1])
def test_after_kill_9_of_a_rank_the_others_end_and_the_run_goes_on(data: Path, tmp_path: Path, lost: int) -> None:
    """Mostly at once, or when rank_timeout is over, since MLX may get stuck in a step; never with its tracebacks."""
    run = tmp_path / "run"
    with ranks_of("pretrain.py", endless(data, run, "global_batch_size=12"), tmp_path, 3) as ranks:
        ranks.wait_for_step(run, 20)
        ranks.processes[lost].send_signal(signal.SIGKILL)
        for line in errors_of_others(ranks, lost).values():
            assert "the connection to the other ranks is lost" in line or f"no step within {TIMEOUT} seconds" in line

    newest = step_folders(run)[0]
    verify(newest)
    if lost == 1:  # and the other time the same
        with ranks_of("pretrain.py", endless(data, run, "global_batch_size=12"), tmp_path, 2) as ranks:
            ranks.wait_for_step(run, verify(newest).step + 20)
            assert f"resuming {newest}" in ranks.output(0)


def test_a_stopped_rank_is_given_up_after_rank_timeout(data: Path, tmp_path: Path) -> None:
    """A machine that has gone to sleep, or lost its network, looks the same. Woken up, the rank doesn't go on alone."""
    with ranks_of("pretrain.py", endless(data, tmp_path / "run"), tmp_path, 2) as ranks:
        ranks.wait_for_step(tmp_path / "run", 20)
        ranks.processes[0].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        line = errors_of_others(ranks, 0)[1]
        assert time.monotonic() - begin > TIMEOUT / 2
        assert f"no step within {TIMEOUT} seconds (rank_timeout)" in line
        ranks.processes[0].send_signal(signal.SIGCONT)
        assert ranks.wait(0) == [1]
        assert [rank for rank, _ in ranks.errors()] == [0, 1], "it says so too"


def test_a_run_that_is_stopped_as_a_whole_goes_on_afterwards(data: Path, tmp_path: Path) -> None:
    """Ctrl-Z and fg, or the lid of a laptop: nobody has been silent for longer than oneself."""
    with ranks_of("pretrain.py", endless(data, tmp_path / "run", "rank_timeout=3"), tmp_path, 2) as ranks:
        ranks.wait_for_step(tmp_path / "run", 20)
        for process in ranks.processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        reached = verify(step_folders(tmp_path / "run")[0]).step
        for process in ranks.processes:
            process.send_signal(signal.SIGCONT)
        ranks.wait_for_step(tmp_path / "run", reached + 30)


STUCK = """
import sys, threading
import utils.linux_cpu
import pretrain
from utils.ranks.ranks import Ranks
from utils.train.state import TrainState

step = TrainState.train_step

def stuck_at_15(self, batch, flag=0.0):
    if self.ranks.rank == 1 and self.step == 15:
        threading.Event().wait()
    return step(self, batch, flag)

TrainState.train_step = stuck_at_15
pretrain.main()
"""


def test_a_rank_that_lives_but_takes_no_step_ends_all(data: Path, tmp_path: Path) -> None:
    """Such as one whose data lies on a network drive that hangs. All ranks stand still then."""
    (tmp_path / "stuck.py").write_text(STUCK)
    with ranks_of(tmp_path / "stuck.py", endless(data, tmp_path / "run"), tmp_path, 2) as ranks:
        ranks.wait_for_path(tmp_path / "run" / "step_10")
        assert ranks.wait() == [1, 1]
        errors = dict(ranks.errors())
    assert f"no step within {TIMEOUT} seconds (rank_timeout)" in errors[1]
    assert set(errors) == {0, 1}


SLOW_DISK = """
import time
import utils.linux_cpu
import pretrain
import utils.checkpoints.writer as writer

write_checkpoint = writer.write_checkpoint

def slowly(snapshot, path):
    if snapshot.record.step >= 20:
        (path / "writing").touch()
        time.sleep(5)
    return write_checkpoint(snapshot, path)

writer.write_checkpoint = slowly
pretrain.main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_checkpoint_under_way_is_finished_when_a_rank_is_lost(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Whether rank 0 ends by the broken connection, or by its watchdog before the disk is done."""
    run = tmp_path / "run"
    (tmp_path / "slow.py").write_text(SLOW_DISK)
    with ranks_of(tmp_path / "slow.py", endless(data, run, "rank_timeout=2"), tmp_path, 2) as ranks:
        ranks.wait_for_path(run / "writing")
        ranks.processes[1].send_signal(number)
        assert not (run / "step_20").exists()
        assert ranks.wait(0) == [1]
        assert [rank for rank, _ in ranks.errors()] == [0]
        assert f"saved {run / 'step_20'}" in ranks.output(0)
    verify(run / "step_20")


@pytest.mark.parametrize(("asked", "number"), [((1,), signal.SIGTERM), ((0, 1), signal.SIGINT)])
def test_a_signal_to_any_rank_ends_all_at_the_same_step_in_order(
    data: Path, tmp_path: Path, asked: tuple[int, ...], number: signal.Signals
) -> None:
    """Ctrl-C reaches the ranks at different moments, and a job scheduler's SIGTERM maybe one alone."""
    run = tmp_path / "run"
    few = ["checkpoint_interval=null", "log_interval=1000"]
    with ranks_of("pretrain.py", endless(data, run, *few), tmp_path, 2) as ranks:
        ranks.wait_for_path(run / "metrics.jsonl")
        time.sleep(2)
        for rank in asked:
            ranks.processes[rank].send_signal(number)
        assert ranks.wait() == [128 + number] * 2
        assert ranks.errors() == []
        assert f"ended by {number.name}" in ranks.output(0)
        assert ranks.output(0).count("finishing this step") == (0 in asked)
        assert "SIG" not in ranks.output(1)
    (step,) = step_folders(run)
    assert f"saved {step}" in ranks.output(0)
    record = verify(step)
    assert record.progress.batches == record.step
    assert record.train_metrics["unread"], "steps since the last read are not lost"


def test_a_signal_during_evaluation_ends_it_on_all_ranks(data: Path, tmp_path: Path) -> None:
    """They hear of it after a batch."""
    run = tmp_path / "run"
    arguments = endless(data, run, "epochs=1", "eval_interval=1", "arch.halt_max_steps=1000", "eval_batch_size=2")
    with ranks_of("pretrain.py", arguments, tmp_path, 2) as ranks:
        end = time.monotonic() + 120
        while lines_of(run / "metrics.jsonl") < 9:  # then training is over
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)
        ranks.processes[1].send_signal(signal.SIGTERM)
        assert ranks.wait() == [143, 143]
        assert ranks.errors() == []
    assert [folder.name for folder in step_folders(run)] == ["step_8"]
    assert not any("eval/" in line for line in (run / "metrics.jsonl").read_text().splitlines())


def test_numbers_that_go_wrong_on_one_rank_stop_all_with_one_line(data: Path, tmp_path: Path) -> None:
    """The verdict is on the sums, so all ranks agree on the step."""
    arguments = endless(data, tmp_path / "run", "lr=1e30", "lr_warmup_steps=0", "checkpoint_interval=null")
    with ranks_of("pretrain.py", arguments, tmp_path, 2) as ranks:
        assert ranks.wait() == [1, 1]
        ((rank, line),) = ranks.errors()
    assert rank == 0
    assert "training is stopped" in line
