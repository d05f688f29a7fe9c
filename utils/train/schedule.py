"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, base: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """Compute the rate of a step: linear warm-up to `base`, then half a cosine down to `base · min_ratio`.

    Args:
        step: the step about to be taken, counted from 1.
        base: the peak rate.
        warmup_steps: steps of the warm-up.
        total_steps: steps of the whole run.
        min_ratio: last rate / peak rate.

    Returns:
        The rate.
    """
    if step < warmup_steps:
        return base * step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return base * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))
