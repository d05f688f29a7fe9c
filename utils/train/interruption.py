"""Ctrl-C and SIGTERM: asked once, a run ends in order at its next pause; asked twice, at once. Of several ranks it is
enough to ask one, and all of them pause at the same step."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType

from common.errors import Interrupted

_MANY = 4096.0  # more than there are ranks
_ANNOUNCEMENT = "finishing this step and saving a checkpoint; once more leaves at once"


class Interruption:
    """Context manager within which SIGINT and SIGTERM are only noted, for `check` to raise when it is convenient.

    A second one ends the process on the spot, even in the middle of a long computation: a thread listens, since Python
    would call a signal handler only after the main thread has come back from it. Must be entered in the main thread.

    Args:
        tell: called with each signal that comes, to let other ranks know.
        speaks: say that a signal was noted.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, tell: Callable[[int], None] = lambda number: None, *, speaks: bool = True) -> None:
        self._tell, self._speaks = tell, speaks
        self._noted: int | None = None
        self._came = False  # a signal, to this process itself

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._noted is not None:
            raise Interrupted(self._noted)

    @property
    def flag(self) -> float:
        """What has been noted, as a number whose sum over ranks `check_sum` understands."""
        if self._noted is None:
            return 0.0
        return 1.0 if self._noted == signal.SIGINT else _MANY

    @staticmethod
    def check_sum(flags: float) -> None:
        """Raise Interrupted if, by the sum of all ranks' flags, a signal has come to one of them."""
        if flags:
            raise Interrupted(signal.SIGTERM if flags >= _MANY else signal.SIGINT)

    def note(self, number: int) -> None:
        """Take note of a signal, which may have come to another rank. May be called in any thread."""
        if self._noted is not None:
            return
        self._noted = number
        if self._speaks:
            # Not through print, which the main thread may be in the middle of.
            os.write(2, f"\n{signal.Signals(number).name}: {_ANNOUNCEMENT}\n".encode())

    def _listen(self) -> None:
        while number := self._receiver.recv(1):  # empty once the sender is closed
            if number[0] not in self.SIGNALS:
                continue
            if self._came:
                os._exit(128 + number[0])
            self._came = True
            self.note(number[0])
            self._tell(number[0])

    def __enter__(self) -> Interruption:
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)  # as Python asks of it
        self._thread = threading.Thread(target=self._listen, name="interruption", daemon=True)
        self._thread.start()
        self._wakeup_before = signal.set_wakeup_fd(self._sender.fileno())
        heeded = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        self._before = {number: signal.signal(number, lambda *_: None) for number in heeded}
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
