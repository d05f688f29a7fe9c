"""Open a .npy file from anywhere: its header is checked before numpy believes it."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Literal

import numpy as np


def load_npy(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Load an array, or map it into memory.

    Args:
        path: the file.
        mmap_mode: `r` for a memory map.

    Returns:
        The array, of any shape and dtype but objects.

    Raises:
        ValueError: if it is no whole .npy file, with the reason.
        OSError: if it can't be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
        raise ValueError("it is no regular file")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            else:  # 3.0 is for names of fields, which no array here has
                raise ValueError(f"its format is {version[0]}.{version[1]}")
            held = os.fstat(file.fileno()).st_size - file.tell()
    except OSError:
        raise
    except ValueError as error:
        raise ValueError(str(error).partition("\n")[0].rstrip(".")[:200]) from error
    except Exception as error:  # numpy has Python parse the header, which fails in many ways
        raise ValueError(f"its header can't be read: {type(error).__name__}") from error
    # numpy lets negative and boolean sizes through, and computes the number of bytes in 64 bits.
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("its header has sizes that are no counts")
    if math.prod(shape) * dtype.itemsize > held:
        raise ValueError(f"its header asks for more than the {held:,} bytes that follow")
    return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
