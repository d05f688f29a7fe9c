"""A .npy file that is written row by row."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike


class NpyStream:
    """A C-ordered .npy file that grows by appended rows; its shape is filled in at the end.

    Rather than a memory map: the number of rows may be open, written pages don't count as resident memory, and a full
    disk is an OSError instead of a SIGBUS.

    Args:
        path: the file.
        row_shape: of one row.
        dtype: of the file.
    """

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.rows, self.row_shape, self.dtype = 0, row_shape, np.dtype(dtype)
        self.file: BinaryIO = open(path, "w+b")  # noqa: SIM115 - open until finish(), or until the caller closes it
        self._write_header()
        self.data_start = self.file.tell()

    def _write_header(self) -> None:
        shape = (self.rows, *self.row_shape)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, rows: np.ndarray) -> None:
        """Add rows `[n, *row_shape]`, converted to the file's dtype."""
        self.file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def finish(self) -> None:
        """Fill in the number of rows, and close the file."""
        self.file.seek(0)
        self._write_header()  # numpy pads headers so that the first axis can grow in place
        if self.file.tell() != self.data_start:
            raise RuntimeError(f"numpy {np.__version__} wrote an .npy header of another size for {self.rows} rows")
        self.file.close()
