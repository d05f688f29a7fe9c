"""Memory that ran out: recognised among the errors of MLX and Python, and put into a line that says what to change."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from common.errors import UserError, printable

# What MLX 0.32.4 raises, by the texts in its libraries, always as RuntimeError:
# "[malloc] Unable to allocate 8589934592 bytes."  (Metal, CUDA)
# "[metal::malloc] Attempting to allocate … bytes which is greater than the maximum allowed buffer size of … bytes."
# "[metal::malloc] Resource limit (499000) exceeded."
# "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
# "cudaMallocAsync(&data, size, stream) failed: out of memory"
_OUT_OF_MEMORY = re.compile(
    r"^\[malloc\] Unable to allocate|^\[metal::malloc\] |Insufficient Memory|failed: out of memory"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out: Python's and numpy's, or one of MLX.

    On a Linux CPU MLX has none: where the system refuses it memory, it crashes, and mostly the system ends it first.
    """
    if isinstance(error, RuntimeError):
        return _OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Say what to change where the block runs out of memory.

    Args:
        advice: which key, to what.

    Raises:
        UserError: in place of such an error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = f" ({printable(error, 200)})" if str(error) else ""
        raise UserError(f"out of memory{found}; {advice}") from error
