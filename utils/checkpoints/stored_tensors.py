"""Tensors in host memory, to be written (`HostTensor`), and tensors in a file (`StoredTensor`).

Gigabytes are moved with a single copy in memory, and opening a file reads only where its numbers are.
"""

from __future__ import annotations

import io
import mmap
import os
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from common.errors import UserError

# MLX's names of the types, each with the numpy type for its bytes: numpy has no bfloat16. float64 occurs in files only.
NUMPY_TYPES: dict[str, np.dtype] = {
    name: np.dtype("uint16" if name == "bfloat16" else name)
    for name in (
        *("bfloat16", "float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}
MAX_DIMENSIONS = 32  # numpy's limit before its version 2; state dicts need four
MAX_SIZE = 2**31 - 1  # of one axis: MLX counts them in 32 bits
_READ_BYTES = 64 << 20  # between two checks for Ctrl-C; larger chunks aren't faster


@dataclass(frozen=True)
class HostTensor:
    """A snapshot of an array in host memory, which any thread may read without MLX.

    Attributes:
        dtype: MLX's name of the type.
        data: of the array's shape, maybe not contiguous; for bfloat16 of type uint16.
    """

    dtype: str
    data: np.ndarray


def host_tensor(array: mx.array) -> HostTensor:
    """Evaluate an array, in the calling thread, and share its memory without a copy.

    Later changes of `array`, in place too, don't reach the result.

    Args:
        array: of any shape, and of a type that files have.

    Returns:
        The snapshot, of the same shape and type.

    Raises:
        ValueError: if files lack its type (float64, complex64).
    """
    dtype = str(array.dtype).rpartition(".")[2]
    if dtype not in NUMPY_TYPES or dtype == "float64":
        raise ValueError(f"an array of type {dtype} can't be stored")
    # numpy holds on to the Python object whose memory it shares. `array[i] = x` and `array += x` give that object other
    # memory, or write into the old, which MLX then treats as unused: hence an object of our own.
    own = array.view(mx.uint16 if dtype == "bfloat16" else array.dtype)
    mx.eval(own)
    return HostTensor(dtype, np.asarray(own))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    The readers that make one check that all of it is in the file, that it has at most `MAX_DIMENSIONS` axes of at most
    `MAX_SIZE`, and that no stride is negative.

    Attributes:
        path: the file.
        dtype: MLX's name of the type, or float64.
        shape: sizes of the axes.
        strides: in elements.
        offset: in bytes from the file's start.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements in the stored type, each counted once."""
        return prod(self.shape) * NUMPY_TYPES[self.dtype].itemsize

    @property
    def extent(self) -> int:
        """Bytes in the file from the first element to the end of the last."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * NUMPY_TYPES[self.dtype].itemsize

    @property
    def contiguous(self) -> bool:
        """Whether the elements are in the order of a dense tensor in row-major order."""
        dense = zip(self.shape, self.strides, dense_strides(self.shape), strict=True)
        return all(stride == wanted for size, stride, wanted in dense if size != 1)

    def rows(self, start: int, stop: int) -> StoredTensor:
        """Return the rows from `start` to `stop`, or to the last one, as a tensor of their own. Nothing is read."""
        offset = self.offset + start * self.strides[0] * NUMPY_TYPES[self.dtype].itemsize
        return replace(self, shape=(min(stop, self.shape[0]) - start, *self.shape[1:]), offset=offset)

    def read(self) -> mx.array:
        """Read the tensor.

        Contiguous tensors are read straight into the array's memory, the others gathered from a memory map.

        Returns:
            An evaluated MLX array of the tensor's shape and type; float64 becomes float32, because GPUs under MLX have
            no float64.

        Raises:
            UserError: if the file can't be read, is shorter than when it was opened, or memory doesn't suffice.
        """
        try:
            return self._read()
        except OSError as error:
            raise UserError(f"{self.path} can't be read: {error.strerror}") from error
        except RuntimeError as error:  # of MLX, when a GPU is full
            raise UserError(f"{self.path}: no memory for a tensor of {self.nbytes / 1e6:,.0f} MB: {error}") from error

    def _read(self) -> mx.array:
        held = {"bfloat16": "uint16", "float64": "float32", "bool": "bool_"}.get(self.dtype, self.dtype)
        array = mx.zeros(self.shape, dtype=getattr(mx, held))
        mx.eval(array)
        with open(self.path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size < self.offset + self.extent:
                raise self._cut_short()
            if array.size:
                memory = np.asarray(array)  # a writable view of the array's own memory, as MLX documents it
                if self.contiguous and self.dtype not in ("float64", "bool"):
                    self._fill(memory, file)
                else:
                    self._gather(memory, file.fileno())
        if self.dtype == "bfloat16":
            array = array.view(mx.bfloat16)
            mx.eval(array)
        return array

    def _fill(self, memory: np.ndarray, file: io.FileIO) -> None:
        file.seek(self.offset)
        rest = memory.data.cast("B")  # which fails where the array isn't contiguous; reshape would make a copy
        while rest:
            count = file.readinto(rest[:_READ_BYTES])
            if not count:
                raise self._cut_short()
            rest = rest[count:]

    def _gather(self, memory: np.ndarray, file: int) -> None:
        # As bytes, any of which but 0 is true: a bool of another value than 0 and 1 would be undefined behaviour.
        dtype = np.dtype(np.uint8) if self.dtype == "bool" else NUMPY_TYPES[self.dtype]
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as mapped:
            strides = [stride * dtype.itemsize for stride in self.strides]
            # numpy refuses strides that reach beyond the map.
            source: np.ndarray = np.ndarray(self.shape, dtype, mapped, self.offset, strides)
            with np.errstate(all="ignore"):  # a float64 beyond float32 becomes infinite
                if self.dtype == "bool":
                    np.not_equal(source, 0, out=memory)
                else:
                    np.copyto(memory, source, casting="same_kind")
            del source  # or the map could not be closed

    def _cut_short(self) -> UserError:
        return UserError(
            f"{self.path} is shorter than when it was opened: a tensor ends at byte {self.offset + self.extent:,}; "
            "copy or download it again"
        )


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Compute the strides, in elements, of a contiguous tensor in row-major order."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
