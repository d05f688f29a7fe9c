"""Several processes: for now, the check that there is only one."""

from __future__ import annotations

import mlx.core as mx

from utils.errors import UserError


def require_one_rank() -> None:
    """Refuse to go on as one of several ranks, each of which would do the same work into the same files.

    Raises:
        UserError: if the process was started by `mlx.launch` or the like with more than one rank.
    """
    ranks = mx.distributed.init().size()
    if ranks > 1:
        raise UserError(
            f"started as {ranks} ranks, but training and evaluation run on one; start it without mlx.launch"
        )
