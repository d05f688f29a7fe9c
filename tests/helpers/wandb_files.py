"""What W&B recorded offline, read back from its files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: after 7 bytes, blocks of 32 KiB as in LevelDB's log format."""
    content, block_size, header_size = path.read_bytes(), 32 * 1024, 7
    whole, first, _, last = 1, 2, 3, 4  # types of a piece
    position, pieces = header_size, b""
    while position + header_size <= len(content):
        left_in_block = block_size - position % block_size
        if left_in_block < header_size:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        piece = content[position + header_size : position + header_size + length]
        position += header_size + length
        pieces = piece if kind in (whole, first) else pieces + piece
        if kind in (whole, last):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(pieces)
            yield record


def read_wandb(folder: Path) -> dict[str, Any]:
    """What the one offline run below `folder` recorded."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return read_wandb_file(path)


def read_wandb_file(path: Path) -> dict[str, Any]:
    """History rows, configuration, code files and run names of a .wandb file."""
    found: dict[str, Any] = {"history": [], "config": {}, "artifacts": []}
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            found["history"].append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
        elif kind == "run":
            found |= {"project": record.run.project, "name": record.run.display_name}
            found["config"] |= {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.run.config.update}
        elif kind in ("artifact", "request"):
            artifact = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
            found["artifacts"] += [(artifact.type, entry.path) for entry in artifact.manifest.contents]
    return found
