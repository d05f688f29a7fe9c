"""Memory: kept from step to step, and no more of it taken than without."""

from __future__ import annotations

import pytest

from tests.helpers.fresh_python import needs_mlx_cpu, run

pytestmark = pytest.mark.slow

FREED = """
import ctypes, os
import utils.linux_cpu

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before, size = resident(), 64 << 20
block = libc.malloc(size)
ctypes.memset(block, 1, size)
libc.free(block)
print(resident() - before)
"""


@needs_mlx_cpu
def test_what_is_freed_is_kept() -> None:
    """Every step would have its memory cleared anew, page by page."""
    assert int(run(FREED, HRM_BLAS="off")[0]) >= 60
    assert int(run(FREED.replace("import utils.linux_cpu\n", ""))[0]) < 30


@needs_mlx_cpu
def test_a_limit_on_addresses_leaves_room_for_the_rest() -> None:
    """Batch systems set one: addresses that are set aside, or not used again, would be missing elsewhere."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
import utils.linux_cpu, pretrain
import mlx.core as mx
for _ in range(16):  # 4 GiB one after the other
    array = mx.ones(64 << 20)
    mx.eval(array)
print("fits")
"""
    assert run(code, HRM_BLAS="off")[0] == "fits"
