"""Reading ahead: same items, errors where they belong, and never a thread left behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dataset.prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    assert not threads()
    yield
    gc.collect()
    assert not threads(), "a thread would keep files open and the process busy"


def endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def test_yields_the_same_items_in_order() -> None:
    """Training would see batches twice, in another order, or not at all."""
    for depth in (1, 2, 7):
        assert list(prefetch(iter(range(100)), depth)) == list(range(100))
    assert list(prefetch(iter(()))) == []
    items = prefetch(iter([None, None]))
    assert list(items) == [None, None]
    assert next(items, "end") == "end"


def test_reads_ahead_but_not_further_than_depth() -> None:
    """The device would wait for data; or a fast reader would fill the memory."""
    made: list[int] = []

    def making() -> Iterator[int]:
        for number in endless():
            made.append(number)
            yield number

    with prefetch(making(), depth=3) as items:
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.2)
        assert len(made) == 4, "three in the queue and one in the hand"
        assert next(items) == 0


def test_an_error_comes_out_after_the_items_before_it() -> None:
    """A broken file would end training as if it were finished, or hang it."""

    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk gone")

    items = prefetch(failing())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    assert not threads()
    with pytest.raises(StopIteration):
        next(items)


def leave_by_break() -> None:
    for number in prefetch(endless()):
        if number == 3:
            break


def leave_by_break_with_a_name() -> None:
    global kept
    kept = prefetch(endless())
    for number in kept:
        if number == 3:
            break


def leave_by_error() -> None:
    def use() -> None:
        for _ in prefetch(endless()):
            raise KeyError

    with pytest.raises(KeyError):
        use()


def leave_with_statement() -> None:
    with prefetch(endless()) as items:
        assert next(items) == 0


def close_twice() -> None:
    items = prefetch(endless())
    items.close()
    items.close()
    assert list(items) == []


def drop_unused() -> None:
    prefetch(endless())


def drop_used() -> None:
    items = prefetch(endless())
    assert next(items) == 0
    del items


def drop_in_a_cycle() -> None:
    items = prefetch(endless())
    next(items)
    cycle: list[object] = [items]
    cycle.append(cycle)
    del items, cycle
    gc.collect()


def exhaust() -> None:
    items = prefetch(iter(range(3)))
    assert sum(1 for _ in items) == 3


kept: object = None


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_break_with_a_name,
        leave_by_error,
        leave_with_statement,
        close_twice,
        drop_unused,
        drop_used,
        drop_in_a_cycle,
        exhaust,
    ],
)
def test_no_thread_is_left(leave: Callable[[], None]) -> None:
    """Every evaluation or interrupted epoch would leave a thread and its memory behind."""
    leave()
    assert not threads()


def test_the_source_is_closed_too() -> None:
    """A generator's own clean-up (open files) would wait for the garbage collector."""
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from endless()
        finally:
            closed.set()

    with prefetch(source()) as items:
        next(items)
    assert closed.is_set()


def test_depth_must_be_positive() -> None:
    """A queue of depth 0 is unbounded in Python: memory would fill."""
    with pytest.raises(ValueError, match="depth is 0"):
        prefetch(endless(), 0)
