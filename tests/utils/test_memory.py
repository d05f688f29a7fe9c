"""How many rows fit into memory: found without ever taking more than there is, and never too many."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from utils.memory import RowMemory, _container_limit, device_memory, how_to_save_memory, measure_rows, size_text
from utils.ranks.ranks import Ranks

MEASURED = {1: 170, 2: 300, 4: 330, 8: 370, 16: 530, 32: 1060}  # MB of HRM's forward and backward pass, Sudoku


def test_rows_of_any_number_take_at_most_what_is_told() -> None:
    memory = RowMemory(MEASURED)
    assert all(memory.of(rows) == found for rows, found in MEASURED.items())
    assert memory.of(64) == 2 * 1060
    assert memory.of(10) == 370 * 10 // 8
    assert memory.of(12) == 530  # no more than 16 rows


@pytest.mark.parametrize("room", [0, 169, 170, 329, 330, 531, 1060, 5000, 12_719, 12_720, 10**6])
def test_slices_fit_are_equal_and_no_more_of_them_than_needed(room: int) -> None:
    """One row more than fits ends a run of days; a last slice of one row takes as long as many rows."""
    memory, most = RowMemory(MEASURED), 384
    rows = memory.fitting(room, most)
    assert memory.of(rows) <= room if rows else room < MEASURED[1]
    if rows:
        slices = -(-most // rows)
        assert slices * rows - most < slices  # they differ by at most one row
        larger = [size for size in range(rows + 1, most + 1) if memory.of(size) <= room]
        assert all(-(-most // size) == slices for size in larger)


def test_nothing_that_may_not_fit_is_computed() -> None:
    """To find out what fits by trying it would end the process on a Mac whose memory is full."""
    taken: list[int] = []

    def compute(rows: int) -> None:
        taken.append(rows)
        mx.eval(mx.zeros((500_000 + 250_000 * rows,), mx.float32))  # 2 MB and 1 MB a row

    memory = measure_rows(compute, most=1000, room=21_000_000)
    assert taken == [1, 2, 4, 8, 16]  # 32 rows take 34 MB, and by what is known twice the 18 MB of 16 at most
    assert all(memory.of(rows) == pytest.approx(2e6 + 1e6 * rows, rel=0.02) for rows in taken)
    taken.clear()
    assert measure_rows(compute, most=3, room=10**9).fitting(10**9, 3) == 3
    assert taken == [1, 2, 3]
    taken.clear()
    assert measure_rows(compute, most=3, room=0).fitting(0, 3) == 0
    assert taken == [1]


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/job/step\n", {"job/memory.max": "5000\n", "job/step/memory.max": "max\n"}, 5000),
        ("0::/elsewhere\n", {"memory.max": "7000\n"}, 7000),  # in a container, where only the root is seen
        ("5:cpu:/x\n4:memory:/y\n0::/\n", {"memory/y/memory.limit_in_bytes": "6000\n"}, 6000),
        ("0::/\n", {}, None),
        ("", {"memory.max": "1"}, None),
    ],
)
def test_a_containers_limit_counts(groups: str, files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    """The machine's whole memory would be counted on, and the kernel end the run without a word."""
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    (tmp_path / "cgroup").write_text(groups)
    assert _container_limit(tmp_path / "cgroup", tmp_path / "root") == (limit or 1 << 60)
    assert _container_limit(tmp_path / "absent", tmp_path / "root") == 1 << 60  # macOS


def test_the_device_has_memory_of_which_not_all_is_taken() -> None:
    device = device_memory(Ranks())
    assert 1 << 28 < device.total < 1 << 50
    assert 0 < device.budget < device.total
    assert device.sharing == 1


def test_advice_names_a_value_that_differs_from_the_one_that_failed() -> None:
    assert "micro_batch_size=auto" in how_to_save_memory(None)
    assert "micro_batch_size=12, or auto" in how_to_save_memory(24)
    assert "smaller micro_batch_size" in how_to_save_memory("auto")
    assert "micro_batch_size=" not in how_to_save_memory(1)
    for asked in (None, 1, 24, "auto"):
        assert "forecast=true" in how_to_save_memory(asked)


def test_sizes_are_written_for_people() -> None:
    found = [size_text(number) for number in (0, 999, 1500, 2_340_000, 123_456_789, 23.5e9, 1.2e12)]  # type: ignore[arg-type]
    assert found == ["0 bytes", "999 bytes", "1.5 kB", "2.3 MB", "123 MB", "23.5 GB", "1,200 GB"]
