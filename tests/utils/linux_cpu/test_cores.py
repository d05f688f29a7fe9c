"""Streams and threads: as many as there are cores for this process, and the same results with any number."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.fresh_python import SILENT, needs_mlx_cpu, needs_wheel, run

pytestmark = pytest.mark.slow


@needs_mlx_cpu
@needs_wheel
def test_threads_are_this_process_s_share(tmp_path: Path) -> None:
    """Two ranks on one machine, or a process held to some cores, would have more threads than cores, and be slower."""
    code = """
import os, sys
if sys.argv[1:]: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import utils.linux_cpu, ctypes, scipy_openblas32
from pathlib import Path
wheel = ctypes.CDLL(str(next(Path(scipy_openblas32.get_lib_dir()).glob("libscipy_openblas*.so"))))
print(wheel.scipy_openblas_get_num_threads())
"""
    cores = len(os.sched_getaffinity(0))
    local, remote = tmp_path / "local.json", tmp_path / "remote.json"
    local.write_text('[["127.0.0.1:5000"], ["127.0.0.1:5001"]]')
    remote.write_text('[["10.0.0.1:5000"], ["10.0.0.2:5000"]]')
    alone = int(run(code, HRM_BLAS="wheel")[0])
    assert alone <= cores
    ranks = {"HRM_BLAS": "wheel", "MLX_RANK": "1"}
    assert int(run(code, MLX_HOSTFILE=str(local), **ranks)[0]) == max(alone // 2, 1)
    assert int(run(code, MLX_HOSTFILE=str(remote), **ranks)[0]) == alone
    assert int(run(code, MLX_HOSTFILE=str(tmp_path / "none.json"), **ranks)[0]) == alone
    assert int(run(code.replace("if sys.argv[1:]: ", ""), HRM_BLAS="wheel")[0]) == 1
    wanted = max(cores - 1, 1)
    assert int(run(code, MLX_HOSTFILE=str(local), OPENBLAS_NUM_THREADS=str(wanted), **ranks)[0]) == wanted


TRAINING_STEP = """
import threading
from tests.helpers.configs import pretrain_config, random_batch, train_state
import mlx.core as mx

def losses():
    state = train_state(pretrain_config({}))
    found = [state.train_step(random_batch(i))[0]["loss"] for i in range(3)]
    mx.eval(found, state.arrays)
    print([float(loss) for loss in found])

losses()
thread = threading.Thread(target=losses)
thread.start()
thread.join()
"""


@needs_mlx_cpu
def test_any_number_of_streams_gives_the_same_in_any_thread() -> None:
    """A notebook or a server works in threads; a machine with one core takes another way through the model."""
    code = f"import utils.linux_cpu\n{TRAINING_STEP}"
    found = []
    for streams in ("1", "2", "3"):
        out, err = run(code, HRM_STREAMS=streams, MLX_DISABLE_COMPILE="1")
        assert err == SILENT
        first, second = map(json.loads, out.splitlines())
        assert first == second
        found.append(first)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("streams", ["0", "-1", "two", "2.5", "²"])
def test_a_wrong_number_of_streams_is_told_in_a_line(streams: str) -> None:
    """It would end in a traceback, on a GPU too."""
    out, err = run("import utils.linux_cpu, os; print(os.environ['HRM_STREAMS'])", HRM_STREAMS=streams)
    assert out == "1"
    assert f"HRM_STREAMS={streams} is no number of streams, expected 1 or more: taken as 1" in err.splitlines()[0]
