"""Reading ahead: an iterator whose items a background thread prepares."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """An iterator that a background thread fills up to `depth` items ahead. See `prefetch`."""

    def __init__(self, batches: Iterator[T], depth: int) -> None:
        self._shared = _Shared[T](depth)
        # The thread holds the shared state only, not this object: so dropping this object ends the thread.
        self._thread = threading.Thread(target=_produce, args=(batches, self._shared), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        try:
            while True:
                try:
                    item = next(self)
                except StopIteration:
                    return
                yield item
        finally:  # also when the loop over this was left by break or an exception
            self.close()

    def __next__(self) -> T:
        if self._shared.stopped:
            raise StopIteration
        item, error, finished = self._shared.items.get()
        if not finished:
            return item  # type: ignore[return-value]  # only the final entry has no item
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self.close()

    def close(self) -> None:
        """End the iteration and the thread, and wait for it, at most as long as one item takes. May be repeated."""
        self._shared.stopped = True
        if self._thread is not threading.current_thread():  # a garbage collection may run this in the thread itself
            self._thread.join()


class _Shared(Generic[T]):
    """What both threads use. `stopped` is a plain flag: a finalizer can set it without taking any lock."""

    def __init__(self, depth: int) -> None:
        self.items: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
        self.stopped = False


def _produce(batches: Iterator[T], shared: _Shared[T]) -> None:
    def put(entry: tuple[T | None, BaseException | None, bool]) -> None:
        while not shared.stopped:
            try:
                shared.items.put(entry, timeout=0.05)
                return
            except queue.Full:
                pass  # check the flag again

    try:
        for item in batches:
            put((item, None, False))
            if shared.stopped:
                return
        put((None, None, True))
    except BaseException as error:
        put((None, error, True))
    finally:
        if hasattr(batches, "close"):
            batches.close()


def prefetch(batches: Iterator[T], depth: int = 4) -> Prefetch[T]:
    """Iterate over `batches` with up to `depth` items prepared ahead in a background thread.

    An exception of `batches` is raised here, in its place. The thread ends when the iterator is exhausted,
    closed, left as a context manager, left by `break` out of a `for` loop over it (which also ends the iteration), or
    garbage-collected.

    Args:
        batches: what the thread iterates over.
        depth: how many items to prepare ahead.

    Returns:
        The iterator, also a context manager.

    Raises:
        ValueError: if `depth` is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}, expected at least 1")
    return Prefetch(batches, depth)
