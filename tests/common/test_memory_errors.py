"""Memory that runs out ends in one line that says which key to change, whatever raised it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from common.errors import UserError
from common.memory_errors import is_out_of_memory, memory_advice

# As MLX 0.32.4 words them on Metal and CUDA, where these tests don't run
OF_MLX = [
    "[malloc] Unable to allocate 68719476736 bytes.",
    "[metal::malloc] Attempting to allocate 21474836480 bytes which is greater than the maximum allowed buffer size of "
    "9534832640 bytes.",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).",
    "cudaMallocAsync(&data, size, stream) failed: out of memory",
    "cudaGraphLaunch(graph, stream) failed: out of memory.",
]
# Other ends of a run, which more memory would not help
OTHERS = [
    "[ring] Receiving from socket failed",
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error "
    "(00000002:kIOGPUCommandBufferCallbackErrorTimeout).",
    "cudaGraphLaunch(graph, stream) failed: an illegal memory access was encountered",
    "[matmul] Last dimension of first input with shape (2,3) must match",
]


@pytest.mark.parametrize("text", OF_MLX)
def test_mlx_without_memory_is_told_in_one_line_with_the_key(text: str) -> None:
    with pytest.raises(UserError) as raised, memory_advice("try micro_batch_size=8"):
        raise RuntimeError(text)
    line = str(raised.value)
    assert line == f"out of memory ({text}); try micro_batch_size=8"


def test_numpy_without_memory_is_told_so_too() -> None:
    with pytest.raises(UserError, match=r"out of memory \(Unable to allocate.*\); lower it"), memory_advice("lower it"):
        np.zeros(1 << 60, np.uint8)


@pytest.mark.parametrize("text", OTHERS)
def test_other_errors_stay_what_they_are(text: str) -> None:
    """Advice about memory would send the user looking in the wrong place."""
    assert not is_out_of_memory(RuntimeError(text))
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"), memory_advice("lower it"):
        raise RuntimeError(text)
