"""Scripts as several ranks on this machine, started as `mlx.launch` does it, but on ports that are free."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.tiny_data import ROOT
from utils.checkpoints.record import step_folders

PATIENCE = 240.0  # seconds for anything to end, on a machine that is busy with other things


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in sockets]


class RankProcesses:
    """The processes of one run, by rank.

    Args:
        script: below the root of the repository, or a path.
        folder: where they work and their output goes.
        in_own_folders: let each work in `<folder>/<rank>`, which has to exist.
    """

    def __init__(
        self,
        script: str | Path,
        arguments: list[str],
        folder: Path,
        num_ranks: int,
        *,
        in_own_folders: bool = False,
        **environment: str,
    ):
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLX_"))}
        variables |= {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "OPENBLAS_NUM_THREADS": "1"} | environment
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(num_ranks)]))
        self._folder = folder
        self.processes = []
        for rank in range(num_ranks):
            ranked = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} if num_ranks > 1 else {}
            with open(folder / f"rank-{rank}.out", "w") as out, open(folder / f"rank-{rank}.err", "w") as err:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(ROOT / script), *arguments],
                        cwd=folder / str(rank) if in_own_folders else folder,
                        env=variables | ranked,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                    )
                )

    def printed(self, rank: int) -> str:
        """What a rank has written to stdout so far."""
        return (self._folder / f"rank-{rank}.out").read_text()

    def output(self, rank: int) -> str:
        """What a rank has written to stdout and stderr so far."""
        return self.printed(rank) + (self._folder / f"rank-{rank}.err").read_text().replace("\r", "\n")

    def errors(self) -> list[tuple[int, str]]:
        """The error lines of all ranks, each with its rank; fails on a traceback."""
        found = []
        for rank in range(len(self.processes)):
            output = self.output(rank)
            assert "Traceback" not in output, output
            found += [(rank, line) for line in output.splitlines() if line.startswith("error: ")]
        return found

    def wait(self, *ranks: int) -> list[int]:
        """Wait for some of the ranks, or for all of them; returns their exit statuses."""
        waited = [self.processes[rank] for rank in ranks] or self.processes
        end = time.monotonic() + PATIENCE
        return [process.wait(max(0.0, end - time.monotonic())) for process in waited]

    def wait_for_step(self, run: Path, step: int) -> None:
        """Wait for a checkpoint of this step or a later one; with keep_checkpoints none stays for long."""
        self._wait_until(lambda: any(int(path.name.split("_")[1]) >= step for path in step_folders(run)))

    def wait_for_path(self, path: Path) -> None:
        """Wait until the run has made a file or folder."""
        self._wait_until(path.exists)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert all(process.poll() is None for process in self.processes), self.output(0)
            assert time.monotonic() < end
            time.sleep(0.01)


@contextlib.contextmanager
def ranks_of(
    script: str | Path, arguments: list[str], folder: Path, num_ranks: int, **options: Any
) -> Iterator[RankProcesses]:
    """A script as `num_ranks` processes, none of which outlives the block."""
    started = RankProcesses(script, arguments, folder, num_ranks, **options)
    try:
        yield started
    finally:
        for process in started.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def run_ranks(
    script: str | Path, arguments: list[str], folder: Path, num_ranks: int, **environment: str
) -> RankProcesses:
    """Run a script to its good end."""
    with ranks_of(script, arguments, folder, num_ranks, **environment) as ranks:
        assert ranks.wait() == [0] * num_ranks, [ranks.output(rank) for rank in range(num_ranks)]
    return ranks
