"""What ranks exchange, among three real processes; and what they say of one of them that fails."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.helpers.rank_processes import ranks_of, run_ranks
from utils.ranks.ranks import Ranks, checksum

SCRIPT = """
import utils.linux_cpu
import math
import os
from dataclasses import dataclass
from pathlib import Path
import mlx.core as mx
from common import errors
from pydantic import BaseModel
from utils.ranks.ranks import Ranks, checksum, connected

def work(ranks: Ranks) -> None:
    r = ranks.rank
{body}

@errors.one_line
def main() -> None:
    with connected() as ranks:
        work(ranks)

main()
"""


def script(folder: Path, body: str) -> Path:
    """A program that runs `body` on each rank, `r` being its number."""
    path = folder / "script.py"
    path.write_text(SCRIPT.format(body="\n".join(f"    {line}" for line in body.splitlines())))
    return path


EXCHANGE = """
# Values of any kind and length, in the order of ranks; rank 0's alone
assert ranks.gather(("x" * 1000 * r, r)) == [["", 0], ["x" * 1000, 1], ["x" * 2000, 2]]
assert ranks.gather({"at": [-math.inf, None]}) == [{"at": [-math.inf, None]}] * 3
assert all(math.isnan(value) for value in ranks.gather(math.nan))
assert ranks.from_first(lambda: os.environ["MLX_RANK"]) == "0"

# Rank 0's objects, by their type
@dataclass(frozen=True)
class Found:
    folder: Path
    others: tuple[tuple[Path, float], ...] = ()

class Options(BaseModel):
    rate: float
    extra: Found | None

found = Found(Path("a"), ((Path("b"), math.inf),))
assert ranks.from_first(lambda: found, Found) == found
assert ranks.from_first(lambda: Options(rate=-math.inf, extra=found), Options) == Options(rate=-math.inf, extra=found)
assert ranks.from_first(lambda: None, Found | None) is None

# Sums of a tree with two dtypes, whose form it keeps, in few pieces, none of which is large
import utils.ranks.ranks

calls = []
all_sum = mx.distributed.all_sum
mx.distributed.all_sum = lambda x: calls.append((x.size, x.dtype)) or all_sum(x)
tree = {"a": [mx.full((2, 3), float(r)), mx.array(1.5 * r)], "b": (mx.array([r, 10], mx.int32),)}
for piece in (utils.ranks.ranks._PIECE, 12):
    utils.ranks.ranks._PIECE = piece
    summed = ranks.sum(tree)
    assert summed["a"][0].tolist() == [[3.0] * 3] * 2
    assert (summed["a"][1].item(), summed["b"][0].tolist(), summed["b"][0].dtype) == (4.5, [3, 30], mx.int32)
assert calls == [(7, mx.float32), (2, mx.int32), *[(n, mx.float32) for n in (3, 3, 1)], (2, mx.int32)]
mx.distributed.all_sum = all_sum

# Rows of all ranks one below the other, and back
rows = mx.arange(2 * r, 2 * r + 2)[:, None]
everywhere = ranks.all_rows(rows)
assert everywhere.tolist() == [[0], [1], [2], [3], [4], [5]]
assert ranks.own_rows(everywhere).tolist() == rows.tolist()
carry = {"z": rows, "halted": mx.array([r == 1, False])}
kept = ranks.rows_for_first(carry)
if ranks.first:
    assert kept["z"].tolist() == everywhere.tolist()
    assert kept["halted"].tolist() == [False, False, True, False, False, False]
else:
    assert kept["z"].tolist() == rows.tolist()

# Rank 0's arrays bit for bit, minus zero, NaN and infinity included, and more than travel at a time
def as_nccl(function):  # which knows neither bool nor integers of 16 bits
    def known(x):
        assert x.dtype not in (mx.bool_, mx.int16, mx.uint16)
        return function(x)
    return known

mx.distributed.all_sum, mx.distributed.all_gather = map(as_nccl, (all_sum, mx.distributed.all_gather))
assert ranks.rows_for_first({"halted": mx.array([True])})["halted"].dtype == mx.bool_
utils.ranks.ranks._PIECE = 7
for dtype in (mx.float32, mx.bfloat16, mx.float16, mx.int32, mx.uint64, mx.bool_):
    values = [0, 1, 1, 0, 1, 1]
    if mx.issubdtype(dtype, mx.floating):
        values = [-0.0, 0.0, float("nan"), -float("inf"), 1e-40, -3.25]
    source = mx.array(values * 4).astype(dtype).reshape(2, 12)
    got = ranks.share(source if ranks.first else mx.ones((2, 12), dtype))
    assert (got.shape, got.dtype) == ((2, 12), dtype)
    if dtype == mx.bool_:
        assert got.tolist() == source.tolist()
    else:
        bits = {2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[dtype.size]
        assert got.view(bits).tolist() == source.view(bits).tolist(), dtype

print("said by rank 0 only")
"""


@pytest.mark.slow
def test_what_ranks_exchange_arrives(tmp_path: Path) -> None:
    """All of training, saving and restoring is made of these."""
    path = script(tmp_path, EXCHANGE)
    ranks = run_ranks(path, [], tmp_path, 3)
    assert [ranks.printed(rank) for rank in range(3)] == ["said by rank 0 only\n", "", ""]


@pytest.mark.slow
def test_ranks_that_differ_are_named(tmp_path: Path) -> None:
    """One bit of one weight: another version of MLX, a broken memory, a forgotten file."""
    body = """
weights = {"a": mx.zeros((3, 4)), "b": [mx.ones(2, mx.bfloat16)]}
ranks.require_same("the weights", checksum(weights))
if r == 2:
    weights["a"][1, 1] = 1e-45
ranks.require_same("the weights at step 7", checksum(weights))
"""
    with ranks_of(script(tmp_path, body), [], tmp_path, 3) as ranks:
        assert ranks.wait() == [1, 1, 1]
        ((rank, line),) = ranks.errors()
    assert rank == 0
    assert line.startswith(
        "error: the weights at step 7 of rank 2 differ from those of rank 0; all ranks need the same"
    )


@pytest.mark.slow
def test_what_rank_0_alone_finds_it_alone_tells(tmp_path: Path) -> None:
    """The others wait for what it was to give them, and would show broken connections instead."""
    body = """
def make():
    raise errors.UserError("lr is missing; set it")
ranks.from_first(make)
"""
    with ranks_of(script(tmp_path, body), [], tmp_path, 3) as ranks:
        assert ranks.wait() == [1, 1, 1]
        assert [ranks.output(rank) for rank in range(3)] == ["error: lr is missing; set it\n", "", ""]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_bug_on_one_rank_shows_its_traceback_and_ends_all(tmp_path: Path, failing: int) -> None:
    """The others would wait for its summand; they tell only what they know."""
    body = f"mx.eval(mx.distributed.all_sum(mx.zeros(1))) if r != {failing} else {{}}['missing']"
    with ranks_of(script(tmp_path, body), [], tmp_path, 3) as ranks:
        assert ranks.wait() == [1, 1, 1]
        assert "Traceback" in ranks.output(failing)
        assert ranks.output(failing).endswith("KeyError: 'missing'\n")
        assert failing == 0 or "\nerror: rank 1: KeyError: 'missing'\n" in ranks.output(1)
        for rank in {0, 1, 2} - {failing}:
            assert "Traceback" not in ranks.output(rank)
            (line,) = [line for line in ranks.output(rank).splitlines() if line.startswith("error: ")]
            assert line.startswith(f"error: rank {rank}: " if rank else "error: ")
            assert "the connection to the other ranks is lost" in line
            assert "resume=auto" in line


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "status"), [("pass", 0), ("raise errors.Interrupted(15)", 143)])
def test_the_others_end_after_rank_0(tmp_path: Path, ending: str, status: int) -> None:
    """Rank 0 may still be writing the last checkpoint when the others are done, and mlx.launch would end it."""
    body = f"""
import time
if ranks.first:
    time.sleep(2)
    print("saved", flush=True)
{ending}
"""
    with ranks_of(script(tmp_path, body), [], tmp_path, 3) as ranks:
        assert ranks.wait(1) == [status]
        assert ranks.printed(0) == "saved\n"
        assert ranks.wait() == [status] * 3
        assert [ranks.output(rank) for rank in (1, 2)] == ["", ""]


def test_one_rank_needs_no_others() -> None:
    """Most runs are of one process, and must not be any the slower."""
    ranks, array = Ranks(), mx.array([[1.0, -0.0]])
    tree = {"a": array}
    assert ranks.first
    assert ranks.sum(tree) is tree
    assert ranks.rows_for_first(tree) is tree
    assert all(same(array) is array for same in (ranks.share, ranks.all_rows, ranks.own_rows))
    assert ranks.gather(5) == [5]
    assert ranks.from_first(lambda: 6) == 6
    ranks.require_same("the number", np.nan)  # that differs from itself
    assert ranks.gather((1, np.inf)) == [[1, np.inf]], "as it would be with several"
    ranks.moved()
    ranks.rest()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.uint64, mx.bool_], ids=str)
def test_a_checksum_tells_one_changed_element(dtype: mx.Dtype) -> None:
    """Ranks that hold different weights would go on for days."""
    array = mx.zeros((100, 3), dtype)
    other = mx.array(array)
    other[50, 1] = 1
    assert checksum({"a": array, "b": array}) == [0, 0]
    found = checksum({"a": array, "b": other})
    assert found[0] == 0
    assert found[1] != 0
