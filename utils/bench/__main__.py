"""How fast a training and an evaluation step are on this machine, and how fast they could be: python -m utils.bench

    python -m utils.bench [arch=hrm_v1] [shapes=sudoku] [quick=true] [out=before.json] [against=before.json]
                          [peers=true]

The bound is the time that the matmuls of a step would take alone, at the rate at which this machine does matmuls of
these shapes. Every time is the least of several alternating rounds. On a CPU that others use as well, wall time is not
reliable; so the ratio is given in processor time too. With `peers=true` the same steps in PyTorch are timed beside
ours. Prints a table; `out=` gets the numbers as JSON.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import utils.linux_cpu  # noqa: F401  # before mlx: on Linux it brings a fast BLAS

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from common.errors import UserError, one_line
from common.files import HomePath
from utils.bench import measure, peers
from utils.command_line import parse

DEFAULT_ARCH = "hrm_v1"  # also of records without an arch
ROUNDS, QUICK_ROUNDS = 5, 2
PEER_ROUNDS, QUICK_PEER_ROUNDS = 7, 3  # more, since medians are compared
NOTABLE = 5.0  # a step that is slower by more per cent is marked
_GIGA = 1e9


class BenchConfig(BaseModel):
    """The keys of `python -m utils.bench`."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    arch: str = Field(default=DEFAULT_ARCH, description="a file of config/arch")
    shapes: Annotated[list[str], BeforeValidator(lambda value: value if isinstance(value, list) else [value])] = Field(
        default=["sudoku", "maze"], min_length=1, description=f"any of {', '.join(measure.SHAPES)}"
    )
    quick: bool = Field(default=False, description="the first of shapes only, and every time measured twice")
    peers: bool | Literal["compile"] = Field(
        default=False,
        description="true: time the same steps in PyTorch, if that is installed, in turns with ours; compile: those of "
        "torch.compile too",
    )
    out: HomePath | None = Field(default=None, description="a file for what was measured, as JSON; null: none")
    against: HomePath | None = Field(
        default=None, description="such a file of an earlier run to compare with; null: none"
    )


@one_line
def main() -> None:
    """Measure, print and compare."""
    config = parse(sys.argv[1:], BenchConfig, "python -m utils.bench")
    measure.check_arch(config.arch)
    measure.check_shapes(config.shapes)
    earlier = read_record(config.against) if config.against is not None else None
    if config.out is not None and not Path(config.out).resolve().parent.is_dir():
        raise UserError(f"out={config.out} can't be written: its folder does not exist")
    if config.peers:
        peers.check_torch()
    record: dict[str, Any] = {"arch": config.arch, "machine": measure.machine(), "shapes": {}}
    shapes = config.shapes[:1] if config.quick else config.shapes
    for name in shapes:
        print(f"measuring {name} …", file=sys.stderr)
        record["shapes"][name] = measure.measure(config.arch, name, QUICK_ROUNDS if config.quick else ROUNDS)
        if config.peers:
            modes = ["eager", "compile"] if config.peers == "compile" else ["eager"]
            rounds = QUICK_PEER_ROUNDS if config.quick else PEER_ROUNDS
            record["shapes"][name]["peers"] = peers.compare_with_torch(config.arch, name, modes, rounds)
    if not config.quick:
        record["shapes"][shapes[0]]["first_step"] = measure.first_step_without_kernels(config.arch, shapes[0])
    record["load_average"] = os.getloadavg()[0]
    print(report(record))
    if earlier is not None:
        print(compare(record, earlier))
    if config.out is not None:
        try:
            Path(config.out).write_text(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"out={config.out} can't be written: {error.strerror}") from error


def report(record: dict[str, Any]) -> str:
    """Format the table of a record."""
    m = record["machine"]
    lines = [
        f"{m['name']} ({m['device']}, {m['cores']} cores, {m['streams']} streams), {m['system']}, mlx {m['mlx']}, "
        f"BLAS {m['blas']}, {m['date']}",
        f"load average {m['load_average']:.1f} at the start, {record['load_average']:.1f} at the end",
    ]
    for name, shape in record["shapes"].items():
        lines += ["", f"{record['arch']}, {name}: {shape['batch']} rows of {shape['seq_len']} tokens, {shape['dtype']}"]
        for kind, title in (("train", "training step"), ("eval", "evaluation step")):
            step, bound = shape[f"{kind}_step"], shape[f"{kind}_bound"]
            line = (
                f"  {title:<16} {step * 1e3:9.1f} ms = {step / bound:.2f} × the matmuls' {bound * 1e3:.1f} ms "
                f"({shape[f'{kind}_flops'] / bound / _GIGA:.0f} GFLOP/s)"
            )
            if m["device"] == "cpu":
                line += f"; in processor time {shape[f'{kind}_step_cpu'] / shape[f'{kind}_bound_cpu']:.2f} ×"
            lines.append(line)
        if "peers" in shape:
            lines += peers.report(shape["peers"])
        if "first_step" in shape:
            lines.append(f"  {'first step':<16} {shape['first_step']:9.1f} s, nothing compiled before")
        lines.append(
            f"  {'peak memory':<16} {shape['peak_memory_mb']:9.0f} MB, the process so far {shape['peak_rss_mb']:.0f} MB"
        )
        host = shape["host"]
        shares = ", ".join(f"{part} {100 * share:.2f} %" for part, share in host.items())
        lines.append(f"  {'host':<16} {100 * sum(host.values()):9.2f} % of the training loop: {shares}")
        lines.append("  matmuls of a training step: batch × m × k × n, which operands lie transposed (t)")
        for product in shape["products"]:
            size, rate = " × ".join(map(str, product["shape"])), product["gflop_per_s"]
            kind = f"{product['layout']} {product['dtype']}"
            lines.append(f"    {size:>24} {kind:<11} {product['count']:4d} times {rate:9.1f} GFLOP/s")
    return "\n".join(lines)


def compare(record: dict[str, Any], earlier: dict[str, Any]) -> str:
    """Format one line for each step that both records have: the change, marked where it is a notable loss."""
    lines = [f"compared with {earlier['machine']['date']}, load average {float(earlier['load_average']):.1f}:"]
    whole = [
        ("arch", earlier.get("arch", DEFAULT_ARCH), record.get("arch", DEFAULT_ARCH)),
        ("device", earlier["machine"]["device"], record["machine"]["device"]),
    ]
    for name in (name for name in record["shapes"] if name in earlier["shapes"]):
        now, before = record["shapes"][name], earlier["shapes"][name]
        settings = [*whole, *((key, before[key], now[key]) for key in ("dtype", "batch"))]
        different = [f"{key} {old} → {new}" for key, old, new in settings if old != new]
        if different:
            lines.append(f"  {name}: not the same measurement, {', '.join(different)}")
        for kind, title in (("train", "training step"), ("eval", "evaluation step")):
            change, processor = (100 * (now[f"{kind}_{k}"] / before[f"{kind}_{k}"] - 1) for k in ("step", "step_cpu"))
            bounds = " → ".join(f"{shape[f'{kind}_step'] / shape[f'{kind}_bound']:.2f}" for shape in (before, now))
            lines.append(
                f"  {name}, {title}: {change:+.1f} % ({bounds} × the bound), processor time {processor:+.1f} %"
                + ("   SLOWER" if change > NOTABLE else "")
            )
    return "\n".join(lines)


def read_record(path: str) -> dict[str, Any]:
    """Read a file that `out=` wrote.

    Raises:
        UserError: if it can't be read, or is no such file.
    """
    try:
        record: dict[str, Any] = json.loads(Path(path).read_text())
        compare(record, record)
        if not record["shapes"]:
            raise ValueError("it has no shapes")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"against={path} can't be read: {type(error).__name__}: {error}; expected a file that out= wrote"
        ) from error
    return record


if __name__ == "__main__":
    main()
