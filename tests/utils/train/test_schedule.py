"""The learning rate: linear warm-up, then half a cosine."""

from __future__ import annotations

import pytest

from utils.train.schedule import learning_rate


def test_learning_rate_warms_up_and_then_follows_a_cosine() -> None:
    def rate(step: int, min_ratio: float = 0.1) -> float:
        return learning_rate(step, base=2.0, warmup_steps=10, total_steps=110, min_ratio=min_ratio)

    assert rate(1) == pytest.approx(0.2)
    assert rate(9) == pytest.approx(1.8)
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(2.0 * 0.55)
    assert rate(110) == pytest.approx(0.2)
    assert rate(77, min_ratio=1.0) == pytest.approx(2.0)
    assert learning_rate(1, base=2.0, warmup_steps=0, total_steps=1, min_ratio=1.0) == pytest.approx(2.0)
