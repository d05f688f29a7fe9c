"""The report of tests/test_device.py: one JSON that says what a machine is and what was measured on it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

import common
from models.kernels import device_kind
from utils.bench.measure import machine

FULL = os.environ.get("HRM_DEVICE_TEST") == "full"  # as `make test-gpu` sets it; otherwise as quick as may be
REPORT = os.environ.get("HRM_DEVICE_REPORT")  # where the JSON goes; nowhere if unset
GIB = 2**30


def machine_facts() -> dict[str, Any]:
    """Machine, system, versions, device and memory, in JSON's types."""
    info = mx.device_info()
    of_device = ("memory_size", "max_recommended_working_set_size", "max_buffer_length", "total_memory")
    memory = {name: round(float(info[name]) / GIB, 1) for name in of_device if name in info}
    memory["host"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1)
    return machine() | {
        "device": device_kind(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "memory_gib": memory,
        "version": common.__version__,
        "MLX_ENABLE_TF32": os.environ.get("MLX_ENABLE_TF32", "unset"),
        "full": FULL,
    }


class DeviceReport:
    """Gathers what the checks measure, and writes it after each of them, so that a crash loses nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": machine_facts(), "checks": {}}

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[dict[str, Any]]:
        """Keep the numbers that are put into the dict within the block, its seconds, and how it ended."""
        numbers: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            yield numbers
        except BaseException as error:
            numbers["failed"] = f"{type(error).__name__}: {str(error).strip()[:500]}"
            raise
        finally:
            numbers["seconds"] = time.perf_counter() - started
            self.content["checks"][name] = numbers = rounded(numbers)
            shown = " ".join(f"{key}={value}" for key, value in numbers.items() if key != "failed")
            print(f"\n{'FAILED' if 'failed' in numbers else 'ok':6} {name}: {shown}", flush=True)
            if self.path is not None:
                self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def rounded(value: Any) -> Any:
    """Shorten the floats of a tree to four digits."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
