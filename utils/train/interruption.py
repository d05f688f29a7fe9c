"""Ctrl-C and SIGTERM: after one signal a run ends in order at its next pause; after two, at once.

A signal to one of several ranks ends all: the sum of all ranks' `flag` is part of a training step, so that they end at
the same step. In an evaluation they end after the same batch.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import TracebackType

from common.errors import Interrupted

_MANY = 4096.0  # more than there are ranks
_ANNOUNCEMENT = "finishing this step and saving a checkpoint; a second signal ends the run at once"


class Interruption:
    """Context manager within which SIGINT and SIGTERM are only noted, for `check` to raise later.

    A second signal ends the process at once, even in the middle of a long computation: a thread waits for signals,
    since Python would call a signal handler only after the computation. Must be entered in the main thread.

    Args:
        announce: print a line when a signal is noted; on rank 0 alone.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, announce: bool = True) -> None:
        self._announce = announce
        self._noted: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._noted is not None:
            raise Interrupted(self._noted)

    @property
    def flag(self) -> float:
        """The signal that has been noted, as a number whose sum over ranks `check_sum` decodes."""
        if self._noted is None:
            return 0.0
        return 1.0 if self._noted == signal.SIGINT else _MANY

    @staticmethod
    def check_sum(flags: float) -> None:
        """Raise Interrupted if, by the sum of all ranks' flags, a signal has come to one of them."""
        if flags:
            raise Interrupted(signal.SIGTERM if flags >= _MANY else signal.SIGINT)

    def _listen(self) -> None:
        while number := self._receiver.recv(1):  # empty once the sender is closed
            if number[0] not in self.SIGNALS:
                continue
            if self._noted is not None:
                os._exit(128 + number[0])
            self._noted = number[0]
            if self._announce:
                # Not through print, which the main thread may be in the middle of.
                os.write(2, f"\n{signal.Signals(number[0]).name}: {_ANNOUNCEMENT}\n".encode())

    def __enter__(self) -> Interruption:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)  # as set_wakeup_fd requires
        self._thread = threading.Thread(target=self._listen, name="interruption", daemon=True)
        self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno())
        caught = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        self._before = {number: signal.signal(number, lambda *_: None) for number in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._sender.close()
        self._thread.join()
        self._receiver.close()
