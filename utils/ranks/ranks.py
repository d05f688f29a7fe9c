"""Several processes that train or evaluate together: the rank of this one, and what they exchange.

MLX connects them (`mlx.launch`, or any other backend of `mx.distributed`), and sums and gathers arrays. With a single
process everything here does nothing.

When a rank is lost, all ranks end within a bounded time, with status 1 and an error line from each that noticed; a
checkpoint that is being written is finished.
- A rank has ended, by kill -9 or an exception: MLX's ring finds the connection broken, and the others end at once. As
  of MLX 0.32.4 this can get stuck where a step is under way; then, as with other backends, what follows holds.
- A rank hangs or is stopped, or its machine is gone: each rank ends by its own watchdog when it has taken no step for
  `rank_timeout` seconds, or for half an hour before the first step and after the last.

The line need not name the rank that was lost: a rank with an error prints it, one that is killed prints nothing.
Nothing is watched before MLX has connected the ranks.

The connections carry no authentication and no encryption: ranks belong on a trusted network. What arrives is read as
numbers and JSON, and never run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from pydantic import TypeAdapter

from common.errors import Interrupted, UserError, explain
from utils.ranks.watchdog import Watchdog

T = TypeVar("T")

_PIECE = 32_000_000  # bytes that `sum` and `share` send at a time
_BITS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}  # by bytes of an element
_FIRST_ENDS_SECONDS = 1.0  # for rank 0 to end before the others
# Variables in which launchers give a process its rank
_RANK_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


class Ranks:
    """This process among those that work on the same run.

    Everything but the properties, `moved` and `rest` has to be called by all ranks, in the same order.

    Args:
        rank: number of this process.
        size: number of processes.
        watchdog: ends this process when it takes no more steps; None with a single process.
    """

    def __init__(self, rank: int = 0, size: int = 1, watchdog: Watchdog | None = None):
        self.rank = rank
        self.size = size
        self.watchdog = watchdog

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints, logs, and reads and writes the folder of the run."""
        return self.rank == 0

    # ------------------------------------------------------------------------------------------------ small things

    def gather(self, value: object) -> list[Any]:
        """Return the values of all ranks, in their order.

        Args:
            value: of JSON's types, NaN and infinities included. Tuples come back as lists.
        """
        return [json.loads(text) for text in self._exchange(json.dumps(value).encode())]

    def from_first(self, make: Callable[[], T], kind: Any = object) -> T:
        """Return on all ranks what `make` returns on rank 0, the only one that calls it.

        Args:
            make: an exception of it ends all ranks; rank 0 raises it.
            kind: the type of what it returns, such as a pydantic model, a dataclass, `Path` or `X | None`; pydantic
                uses it to convert the value to JSON and back.

        Raises:
            SystemExit: on the other ranks, if `make` raises.
        """
        if self.size == 1:
            return make()
        adapter = TypeAdapter(kind)
        if self.first:
            try:
                value = make()
                text = json.dumps(adapter.dump_python(value, mode="json"))
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    self._exchange(b"")
                raise
            self._exchange(text.encode())
            return value
        received = self._exchange(b"")[0]
        if not received:  # rank 0 has raised, and prints why
            raise SystemExit(1)
        return adapter.validate_json(received)

    def _exchange(self, content: bytes) -> list[bytes]:
        """Return the contents of all ranks, in their order."""
        if self.size == 1:
            return [content]
        # Evaluated before numpy sees them: np.array waits for ever where MLX raises that a connection is broken.
        sizes = mx.distributed.all_gather(mx.array([len(content)], mx.int32))
        mx.eval(sizes)
        lengths = np.array(sizes).tolist()
        padded = content.ljust(max(1, *lengths))  # MLX gathers no empty arrays
        rows = mx.distributed.all_gather(mx.array(np.frombuffer(padded, np.uint8))[None])
        mx.eval(rows)
        return [row[:length].tobytes() for row, length in zip(np.array(rows), lengths, strict=True)]

    def require_same(self, what: str, value: object) -> None:
        """Check that a value is the same on all ranks.

        Args:
            what: its name, for the message.
            value: of JSON's types.

        Raises:
            UserError: on rank 0, naming those that differ from it.
            SystemExit: on the others; rank 0 prints the message.
        """
        values = self.gather(value)
        others = [str(rank) for rank, found in enumerate(values[1:], start=1) if found != values[0]]
        if others and not self.first:
            raise SystemExit(1)
        if others:
            raise UserError(
                f"{what} of rank {', '.join(others)} differ from those of rank 0; all ranks need the same data set, "
                "the same code and the same version of MLX"
            )

    # ------------------------------------------------------------------------------------------------ arrays

    def sum(self, tree: Any) -> Any:
        """Sum a tree of arrays over ranks, one dtype after the other, 32 MB at a time. Not to be compiled.

        Args:
            tree: arrays of the same names, shapes and dtypes on all ranks.

        Returns:
            A tree of the same form, with the same bits on every rank.
        """
        if self.size == 1:
            return tree
        named = dict(tree_flatten(tree))
        summed: dict[str, mx.array] = {}
        for dtype in dict.fromkeys(array.dtype for array in named.values()):
            group = {name: array for name, array in named.items() if array.dtype == dtype}
            flat = mx.concatenate([array.reshape(-1) for array in group.values()])
            piece = _PIECE // dtype.size
            for start in range(0, flat.size, piece):
                flat[start : start + piece] = self._exchanged(mx.distributed.all_sum, flat[start : start + piece])
            ends = np.cumsum([array.size for array in group.values()]).tolist()
            for (name, array), part in zip(group.items(), mx.split(flat, ends[:-1]), strict=True):
                summed[name] = part.reshape(array.shape)
        return tree_unflatten([(name, summed[name]) for name in named])

    def all_rows(self, array: mx.array) -> mx.array:
        """Gather the rows of all ranks, `[b, …]` to `[size · b, …]`, in the order of the ranks. Not to be compiled."""
        return array if self.size == 1 else self._exchanged(mx.distributed.all_gather, array)

    @staticmethod
    def _exchanged(collective: Callable[[mx.array], mx.array], array: mx.array) -> mx.array:
        """Return `collective(array)`, computed.

        What the array depends on is computed first. On Metal a collective runs on the CPU; if the GPU waits for it
        within a command buffer, a rank that is some seconds behind has the buffer ended, and in a compiled function
        both can wait for one another for ever (MLX's issues 4475 and 3830). The stream is left to MLX: the CPU's for
        the ring, JACCL and MPI, the GPU's for NCCL, which has no other.
        """
        mx.eval(array)
        result = collective(array)
        mx.eval(result)
        return result

    def own_rows(self, array: mx.array) -> mx.array:
        """Return this rank's rows of `[size · b, …]`, `[b, …]`: the reverse of `all_rows`."""
        rows = array.shape[0] // self.size
        return array[self.rank * rows : (self.rank + 1) * rows] if self.size > 1 else array

    def rows_for_first(self, tree: Any) -> Any:
        """Gather the rows of every array of a tree on rank 0; the others send theirs, and return the tree as it is."""

        def collect(array: mx.array) -> mx.array:
            # NCCL has no bool.
            rows = self.all_rows(array.astype(mx.uint8) if array.dtype == mx.bool_ else array).astype(array.dtype)
            mx.eval(rows)  # one array after the other: the others need no room for more than one
            return rows if self.first else array

        return tree if self.size == 1 else tree_map(collect, tree)

    def share(self, array: mx.array) -> mx.array:
        """Return rank 0's array, bit for bit, on every rank; each passes one of the same shape and dtype."""
        if self.size == 1:
            return array
        # As bytes: in floats -0 + 0 is 0, and NCCL has neither bool nor integers of 16 bits.
        bits = array.reshape(-1).astype(mx.uint8) if array.dtype == mx.bool_ else array.reshape(-1).view(mx.uint8)
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

    # ------------------------------------------------------------------------------------------------ the watchdog

    def moved(self) -> None:
        """Note that this rank has taken a step; the next one is due within `rank_timeout`."""
        if self.watchdog is not None:
            self.watchdog.moved()

    def rest(self) -> None:
        """Note that no step comes for a while, as after the last: saving, closing and scoring may take longer."""
        if self.watchdog is not None:
            self.watchdog.rest()


def checksum(arrays: Any) -> list[int]:
    """Compute a checksum of each array of a tree, the sum of its bits, to compare between ranks.

    Other leaves are left out: a module may hold numbers, such as a tuple of sizes, which come from the configuration.
    """
    sums = []
    for array in filter(lambda leaf: isinstance(leaf, mx.array), dict(tree_flatten(arrays)).values()):
        bits = array.astype(mx.uint8) if array.dtype == mx.bool_ else array.view(_BITS[array.dtype.size])
        sums.append(bits.astype(mx.uint32).sum())
    return mx.stack(sums).tolist()  # type: ignore[return-value]  # of integers


def _connect_ranks() -> tuple[int, int]:
    """Connect the ranks, and return this one's number and how many there are.

    Raises:
        UserError: if the ranks can't be connected.
    """
    try:
        group = mx.distributed.init()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the ranks can't be connected: {error}; if a port is in use, give mlx.launch another --starting-port"
        ) from error
    launched = [int(value) for name in _RANK_VARIABLES if (value := os.environ.get(name, "")).isdigit()]
    if group.size() == 1 and max(launched, default=0) > 0:
        raise UserError(
            f"started as rank {max(launched)}, but MLX finds no other ranks; start all ranks with mlx.launch, and a "
            "backend that this MLX has"
        )
    return group.rank(), group.size()


@contextlib.contextmanager
def connected() -> Iterator[Ranks]:
    """Connect the ranks, if there are several, for the duration of a block.

    If the block raises on one of them, all end, that one with its error. If it ends without an exception, or by a
    signal, all wait for one another, since rank 0 may have to save. Other ranks than 0 print nothing to stdout.

    Yields:
        The ranks.

    Raises:
        UserError: if the ranks can't be connected.
    """
    rank, size = _connect_ranks()
    if size == 1:
        yield Ranks()
        return
    watchdog = Watchdog(rank)
    ranks = Ranks(rank, size, watchdog)
    with contextlib.ExitStack() as stack:
        stack.callback(watchdog.close)
        if not ranks.first:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield ranks
        except BaseException as error:
            if ranks.first:
                _fail_first(ranks, error)
            _fail_another(ranks, error)
        _leave(ranks)


def _leave(ranks: Ranks) -> None:
    """Wait until all ranks have come to their end. If rank 0 fails before that, it prints why."""
    ranks.rest()
    if not ranks.first:  # MLX's messages about a broken connection would hide that line
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with contextlib.suppress(RuntimeError):
        ranks._exchange(b"")


def _end_if_connection_lost(ranks: Ranks, error: BaseException) -> None:
    """End this process if MLX, whose messages begin with the backend's name, has found a connection broken.

    Not by an exception: at the interpreter's end MLX 0.32.4 sometimes crashes over a broken ring.
    """
    if isinstance(error, RuntimeError) and str(error).startswith(("[ring]", "[jaccl]", "[nccl]", "[mpi]")):
        who, found = "" if ranks.first else f"rank {ranks.rank}: ", " ".join(str(error).split())
        advice = "start all ranks again, for training with resume=auto"
        line = f"error: {who}the connection to the other ranks is lost ({found}); {advice}"
        if (
            ranks.watchdog is None or not ranks.watchdog.ending
        ):  # it may have come first, while a checkpoint was written
            print(line, file=sys.stderr, flush=True)
        os._exit(1)


def _fail_first(ranks: Ranks, error: BaseException) -> NoReturn:
    """End rank 0 because of an exception, which it raises as in a run with one process."""
    _end_if_connection_lost(ranks, error)
    if isinstance(error, Interrupted) or (isinstance(error, SystemExit) and not error.code):  # as on all ranks
        _leave(ranks)
    raise error


def _fail_another(ranks: Ranks, error: BaseException) -> NoReturn:
    """End another rank than rank 0 because of an exception, and print it unless rank 0 does."""
    if isinstance(error, (Interrupted, SystemExit)):  # rank 0 ends by the same signal, or prints why all end
        _leave(ranks)
        time.sleep(_FIRST_ENDS_SECONDS)  # launchers end all ranks as soon as one has failed
        raise SystemExit(error.exit_status if isinstance(error, Interrupted) else error.code) from error
    _end_if_connection_lost(ranks, error)
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else explain(error)
    if text is None:
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}"
    print(f"error: rank {ranks.rank}: {text}", file=sys.stderr)
    raise SystemExit(1) from error
