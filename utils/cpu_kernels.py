"""A folder for the kernels of `mx.compile` on a Linux CPU. Called by `utils.cpu`, before MLX is loaded.

MLX has g++ build its fused kernels in `<temporary folder>/mlx`, keeps them there for later runs, and raises where that
folder belongs to another user; then `TMPDIR` is set to a folder of our own. Without g++ in `PATH` MLX itself runs the
same graph unfused: slower, and nothing to do for us.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def prepare_kernels(say: Callable[[str], None]) -> None:
    """Choose a folder whose libraries can be mapped; without one, have MLX run uncompiled, and `say` so in a line."""
    if shutil.which("g++") is None:
        return
    user = os.getuid()
    default = tempfile.gettempdir()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in (default, f"{default}/mlx-{user}", f"{home}/hrm-mlx"):
        kernels = Path(folder, "mlx")
        try:
            kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The libraries in there become our code, so they must be ours, and so must a folder that we made for them.
            ours = kernels.stat().st_uid == user and (folder == default or Path(folder).stat().st_uid == user)
            if ours and os.access(kernels, os.W_OK | os.X_OK) and not os.statvfs(kernels).f_flag & os.ST_NOEXEC:
                if folder != os.environ.get("TMPDIR", "/tmp"):
                    os.environ["TMPDIR"] = folder
                return
        except OSError:
            continue
    os.environ["MLX_DISABLE_COMPILE"] = "1"
    say(f"no folder for mx.compile's kernels in {default} or {home}: running uncompiled; set TMPDIR to one of yours")
