"""Progress bars in a terminal; in a log file a plain line now and then."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS_PER_LINE = 60.0


class _PlainLines:
    """What a bar writes, as lines on stderr.

    Being another file than stderr, it is left alone by `tqdm.write`, which would blank and repeat the bar around each
    message.
    """

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress_bar(**options: Any) -> tqdm:
    """Make a progress bar on stderr. Without a terminal it prints a line once a minute, and none in its first minute.

    Args:
        options: of tqdm: `total`, `desc`, `unit`, ….

    Returns:
        The bar, a context manager.
    """
    if sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, **options)
    seldom = SECONDS_PER_LINE
    return tqdm(
        file=_PlainLines(),
        ncols=0,  # the numbers without the bar
        delay=seldom,
        mininterval=seldom,
        maxinterval=seldom,
        **options,
    )
