"""Ctrl-C and SIGTERM: asked once, a run ends in order at its next pause; asked twice, at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

_ANNOUNCEMENT = "finishing this step and saving a checkpoint; once more leaves at once"


class Interrupted(Exception):
    """The user or the system asked the run to end.

    `exit_status`: 128 + the signal's number, as shells report it.
    """

    def __init__(self, signal_number: int):
        self.signal_name = signal.Signals(signal_number).name
        self.exit_status = 128 + signal_number
        super().__init__(f"ended by {self.signal_name}")


class Interruption:
    """Context manager within which SIGINT and SIGTERM are only noted, for `check` to raise when it is convenient.

    A second one ends the process on the spot. Works in the main thread, as Python's signal handling does.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._noted: int | None = None

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._noted is not None:
            raise Interrupted(self._noted)

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        if self._noted is not None:
            os._exit(128 + signal_number)
        self._noted = signal_number
        name = signal.Signals(signal_number).name
        # Not through print: the signal may have come in the middle of one.
        os.write(2, f"\n{name}: {_ANNOUNCEMENT}\n".encode())

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
