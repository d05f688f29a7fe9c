"""Several processes that train or evaluate as one: who this one is among them, and what they exchange.

MLX connects them (`mlx.launch`, or whatever else `mx.distributed` knows) and sums and gathers arrays;
`utils/rank_watch.py` notices when one of them is gone. With a single process everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from common.errors import Interrupted, UserError, explain
from utils.ranks.watch import RankWatch, host_and_process, open_watch

T = TypeVar("T")

_PIECE = 64 << 20  # bytes that `share` sends at a time
_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}  # by bytes of an element
# How launchers tell a process that it is one of several; the value is its rank.
_RANK_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


class Ranks:
    """This process among those that work on the same run; rank 0 of 1 unless told otherwise.

    Everything but the properties has to be called by all ranks, in the same order.

    Args:
        rank: number of this process.
        size: number of processes.
        watch: what notices the loss of another one, if that can be had.
    """

    def __init__(self, rank: int = 0, size: int = 1, watch: RankWatch | None = None):
        self.rank = rank
        self.size = size
        self.watch = watch

    watchdog = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks, logs, and reads and writes the folder of the run."""
        return self.rank == 0

    # ------------------------------------------------------------------------------------------------ small things

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order. Anything that can be pickled; meant for small things."""
        if self.size == 1:
            return [value]
        with self.waiting():
            content = np.frombuffer(pickle.dumps(value), np.uint8)
            lengths = np.array(mx.distributed.all_gather(mx.array([len(content)], mx.int32)))
            padded: np.ndarray = np.zeros((1, int(lengths.max())), np.uint8)
            padded[0, : len(content)] = content
            rows = np.array(mx.distributed.all_gather(mx.array(padded)))
        return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]

    def from_first(self, make: Callable[[], T], kind: object = object) -> T:
        """What `make` returns on rank 0, the only one that calls it."""
        return self.gather(make() if self.first else None)[0]  # type: ignore[return-value]  # rank 0's is a T

    def require_same(self, what: str, value: object) -> None:
        """Check that a value is the same on all ranks.

        Raises:
            UserError: on every rank, naming those that differ from rank 0.
        """
        values = self.gather(value)
        others = [str(rank) for rank, found in enumerate(values[1:], start=1) if found != values[0]]
        if others:
            raise UserError(
                f"{what} of rank {', '.join(others)} differ from those of rank 0; all ranks need the same data set, "
                "the same code and the same version of MLX"
            )

    # ------------------------------------------------------------------------------------------------ arrays

    def sum(self, tree: Any) -> Any:
        """The sums over ranks of a tree of arrays: one flat buffer for each dtype travels, whatever the number of
        arrays. The same bits on every rank. May stand in a compiled function."""
        if self.size == 1:
            return tree
        named = dict(tree_flatten(tree))
        summed: dict[str, mx.array] = {}
        for dtype in dict.fromkeys(array.dtype for array in named.values()):
            group = {name: array for name, array in named.items() if array.dtype == dtype}
            flat = mx.distributed.all_sum(mx.concatenate([array.reshape(-1) for array in group.values()]))
            ends = np.cumsum([array.size for array in group.values()]).tolist()
            for (name, array), piece in zip(group.items(), mx.split(flat, ends[:-1]), strict=True):
                summed[name] = piece.reshape(array.shape)
        return tree_unflatten([(name, summed[name]) for name in named])

    def all_rows(self, array: mx.array) -> mx.array:
        """The rows of all ranks, `[size · b, …]` of `[b, …]`, in the order of the ranks. May be compiled."""
        return array if self.size == 1 else mx.distributed.all_gather(array)

    def own_rows(self, array: mx.array) -> mx.array:
        """This rank's rows of `[size · b, …]`: the reverse of `all_rows`."""
        rows = array.shape[0] // self.size
        return array[self.rank * rows : (self.rank + 1) * rows] if self.size > 1 else array

    def rows_for_first(self, tree: Any) -> Any:
        """`all_rows` of every array of a tree on rank 0; elsewhere the tree as it is, after its rows have been sent."""

        def collect(array: mx.array) -> mx.array:
            # NCCL knows no bool.
            rows = self.all_rows(array.astype(mx.uint8) if array.dtype == mx.bool_ else array).astype(array.dtype)
            mx.eval(rows)  # one array after the other: the others need no room for more than one
            return rows if self.first else array

        with self.waiting():
            return tree if self.size == 1 else tree_map(collect, tree)

    def share(self, array: mx.array) -> mx.array:
        """Rank 0's array, bit for bit, on every rank; each of them gives one of this shape and dtype."""
        if self.size == 1:
            return array
        # As bytes: in floats -0 + 0 is 0, and NCCL knows neither bool nor integers of 16 bits.
        bits = array.reshape(-1).astype(mx.uint8) if array.dtype == mx.bool_ else array.reshape(-1).view(mx.uint8)
        with self.waiting():
            for start in range(0, bits.size, _PIECE):
                piece = bits[start : start + _PIECE]
                total = mx.distributed.all_sum(piece if self.first else mx.zeros_like(piece))
                mx.eval(total)
                if not self.first:
                    bits[start : start + _PIECE] = total
                    mx.eval(bits)
        if self.first:
            return array
        shared = bits.astype(mx.bool_) if array.dtype == mx.bool_ else bits.view(array.dtype)
        return shared.reshape(array.shape)

    # ------------------------------------------------------------------------------------------------ the watch

    def moved(self) -> None:
        """Note that this rank has got a step further. From the first call on all ranks, standing still is a failure."""
        if self.watch is not None:
            self.watch.moved()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this, what keeps this rank from moving is another one, or the device."""
        if self.watch is None:
            yield
            return
        with self.watch.waiting():
            yield


def checksum(arrays: Any) -> list[int]:
    """A number for each array of a tree, the sum of its bits, by which ranks see whether they hold the same."""
    sums = []
    for array in dict(tree_flatten(arrays)).values():
        bits = array.astype(mx.uint8) if array.dtype == mx.bool_ else array.view(_BITS[array.dtype.size])
        sums.append(bits.astype(mx.uint32).sum())
    return np.array(mx.stack(sums)).tolist()


def _connect_ranks() -> tuple[int, int]:
    """Rank and number of ranks, as MLX finds them.

    Raises:
        UserError: if the ranks can't be connected.
    """
    try:
        group = mx.distributed.init()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the ranks can't be connected: {error}; if a port is in use, choose others with mlx.launch --starting-port"
        ) from error
    launched = [int(value) for name in _RANK_VARIABLES if (value := os.environ.get(name, "")).isdigit()]
    if group.size() == 1 and max(launched, default=0) > 0:
        raise UserError(
            f"started as rank {max(launched)}, but MLX finds no other ranks; start all of them with mlx.launch, and "
            "with a backend that this MLX has"
        )
    return group.rank(), group.size()


@contextlib.contextmanager
def connected() -> Iterator[Ranks]:
    """Connect the ranks, if there are several, for the duration of a block.

    If the block fails on one of them, all end: rank 0 says why in one line, the others nothing. If it ends well, or by
    a signal, the others wait for rank 0, which may have to save. On all but rank 0 nothing is printed to stdout.

    Raises:
        UserError: if the ranks can't be connected.
    """
    rank, size = _connect_ranks()
    if size == 1:
        yield Ranks()
        return
    ranks = Ranks(rank, size)
    try:
        ranks.watch = open_watch(rank, ranks.gather(host_and_process()), ranks.from_first, ranks.gather)
    except RuntimeError as error:
        raise UserError(f"the ranks can't be connected: {error}; did one of them end?") from error
    with contextlib.ExitStack() as stack:
        if not ranks.first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield ranks
        except BaseException as error:
            if ranks.first:
                _end_first(ranks, error)
            else:
                _end_another(ranks, error)
            raise
        if ranks.watch is not None:
            ranks.watch.end_in_order()


def _connection_lost(error: BaseException) -> bool:
    """Whether MLX, in whose messages the name of the backend comes first, has found a connection broken."""
    return isinstance(error, RuntimeError) and str(error).startswith(("[ring]", "[jaccl]", "[nccl]", "[mpi]"))


def _end_first(ranks: Ranks, error: BaseException) -> None:
    """Have the other ranks end because of an exception on rank 0, which is then told as in a run of one."""
    watch = ranks.watch
    if watch is not None:
        if _connection_lost(error):
            watch.await_verdict()
        if isinstance(error, Interrupted) or (isinstance(error, SystemExit) and not error.code):  # as on all ranks
            watch.end_in_order()
        else:
            watch.end_all()
    if _connection_lost(error):
        raise UserError(f"the connection between the ranks is lost: {error}") from error


def _end_another(ranks: Ranks, error: BaseException) -> None:
    """End another rank than rank 0 because of an exception, of which rank 0 gets to know if it doesn't already."""
    watch = ranks.watch
    if watch is not None and _connection_lost(error):
        watch.await_verdict()
    if isinstance(error, (Interrupted, SystemExit)):  # all ranks have agreed on that
        if watch is not None:
            watch.end_in_order()
        raise SystemExit(error.exit_status if isinstance(error, Interrupted) else error.code) from error
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else explain(error)
    if text is None:
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}"
    if watch is None:
        print(f"error: rank {ranks.rank}: {text}", file=sys.stderr)
    else:
        watch.report(text)
    raise SystemExit(1) from error
