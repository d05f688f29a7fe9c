"""Shared by all tests. The CPU is prepared here, before any test module imports mlx."""

from __future__ import annotations

import utils.cpu  # noqa: F401
