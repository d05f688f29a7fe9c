"""A watchdog that ends this process when it takes no more steps: a thread that waits for a lost rank can't be woken."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

DEFAULT_TIMEOUT = 300.0  # seconds; as in cfg_pretrain.yaml
_REST_SECONDS = 1800.0  # before the first step and after the last: reading data, compiling, W&B, scoring
_SAVE_SECONDS = 60.0  # for a checkpoint that is being written


class Watchdog:
    """Daemon thread that ends this process, with one line on stderr and status 1, when it takes no more steps.

    Args:
        rank: number of this process, for the message.

    Attributes:
        timeout: seconds allowed between two steps.
        before_exit: called before the process ends, with the seconds allowed, to finish what is being written.
        ending: whether the watchdog has printed its line and is about to end the process.
    """

    def __init__(self, rank: int):
        self.timeout = DEFAULT_TIMEOUT
        self.before_exit: Callable[[float], None] | None = None
        self.ending = False
        self._rank = rank
        self._moves = 0
        self._stepping = False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def moved(self) -> None:
        """Note that a step has been taken; the next one is due within `timeout`."""
        self._moves += 1
        self._stepping = True

    def rest(self) -> None:
        """Note that no step comes for a while; the next one may take as long as the first."""
        self._moves += 1
        self._stepping = False

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def _watch(self) -> None:
        still, seen = 0.0, 0
        while not self._closed.wait(tick := min(1.0, self.timeout / 8)):
            # Ticks are counted, not time: a process that was stopped, or slept with its laptop, did not hang.
            still = still + tick if self._moves == seen else 0.0
            seen = self._moves
            allowed = self.timeout if self._stepping else max(self.timeout, _REST_SECONDS)
            if still > allowed:
                key = " (rank_timeout)" if self._stepping else ""
                self._exit(f"no step within {allowed:g} seconds{key}; this rank hangs, or waits for one that does")

    def _exit(self, reason: str) -> None:
        advice = "start all ranks again, for training with resume=auto"
        self.ending = True
        try:
            with contextlib.suppress(OSError):  # not through print, which the main thread may be in the middle of
                os.write(2, f"\nerror: rank {self._rank}: {reason}; {advice}\n".encode())
            if self.before_exit is not None:
                self.before_exit(_SAVE_SECONDS)
        finally:
            os._exit(1)
