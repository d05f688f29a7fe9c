"""Ctrl-C and SIGTERM: asked once, a run ends in order at its next pause; asked twice, at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import TracebackType

_ANNOUNCEMENT = "finishing this step and saving a checkpoint; once more leaves at once"


class Interrupted(Exception):
    """The user or the system asked the run to end.

    `exit_status`: 128 + the signal's number, as shells report it.
    """

    def __init__(self, signal_number: int):
        self.exit_status = 128 + signal_number
        super().__init__(f"ended by {signal.Signals(signal_number).name}")


class Interruption:
    """Context manager within which SIGINT and SIGTERM are only noted, for `check` to raise when it is convenient.

    A second one ends the process on the spot, even in the middle of a long computation: a thread listens, since Python
    would call a signal handler only after the main thread has come back from it. Must be entered in the main thread.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._noted: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._noted is not None:
            raise Interrupted(self._noted)

    def _listen(self) -> None:
        while number := self._receiver.recv(1):  # empty once the sender is closed
            if number[0] not in self.SIGNALS:
                continue
            if self._noted is not None:
                os._exit(128 + number[0])
            self._noted = number[0]
            # Not through print, which the main thread may be in the middle of.
            os.write(2, f"\n{signal.Signals(number[0]).name}: {_ANNOUNCEMENT}\n".encode())

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
