"""Export weights for the PyTorch code: python -m utils.export checkpoint=<…> out=<file>.safetensors

`checkpoint` is what evaluate.py takes: a step folder, a file, or a hub id. Names, shapes and dtypes in the new file are
those of the PyTorch model's `state_dict`.
"""

from __future__ import annotations

if __name__ == "__main__":
    import common.quiet_imports  # noqa: F401  # Ctrl-C ends those below without a traceback

import utils.linux_cpu  # noqa: F401  # before mlx: on Linux it brings a fast BLAS

import filecmp
import shutil
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from common import errors
from common.errors import UserError
from common.files import HomePath, replacing
from utils.checkpoints.puzzles import PUZZLES, recorded_puzzles
from utils.checkpoints.safetensors_file import write_safetensors
from utils.checkpoints.stored_tensors import host_tensor
from utils.checkpoints.weights import find_weights
from utils.command_line import parse
from utils.config import CONFIG_FILE


class ExportConfig(BaseModel):
    """The keys of `python -m utils.export`."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    checkpoint: HomePath = Field(description="the weights: anything that evaluate.py takes")
    out: HomePath = Field(min_length=1, description="the .safetensors file to write")
    prefix: str = Field(
        default="", description="put before every name, such as _orig_mod. for a model under torch.compile"
    )
    overwrite: bool = Field(default=False, description="replace an existing file")


def export(config: ExportConfig) -> Path:
    """Write the weights, bit for bit as they are stored, and beside them the configuration that evaluate.py needs.

    Args:
        config: the command line.

    Returns:
        The file of weights that was written.

    Raises:
        UserError: if there are no such weights, the format has no type for one of them, or `out` or another model's
            configuration exists.
        OSError: if a file can't be written, as the system reports it.
    """
    out = Path(config.out)
    if out.suffix != ".safetensors":
        raise UserError(f"out = {config.out!r} must end in .safetensors, the only format written")
    if out.is_dir():
        raise UserError(f"{out} is a folder; name the file to write")
    if out.exists() and not config.overwrite:
        raise UserError(f"{out} exists; choose another name, or give overwrite=true")
    source = find_weights(config.checkpoint)
    saved, beside = source.config_folder / CONFIG_FILE, out.parent / CONFIG_FILE
    copies = saved.is_file() and not (beside.exists() and filecmp.cmp(saved, beside, shallow=False))
    if copies and beside.exists() and not config.overwrite:
        raise UserError(
            f"{beside} belongs to other weights, and evaluate.py would rebuild their model for these; choose another "
            "folder, or give overwrite=true to replace it"
        )
    tensors = {config.prefix + name: host_tensor(tensor.read()) for name, tensor in source.tensors().items()}
    metadata = {"format": "pt", "step": str(source.step)}
    if (puzzles := recorded_puzzles(source.file)) is not None:
        metadata[PUZZLES] = puzzles
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        try:
            write_safetensors(partial, tensors, metadata)
        except ValueError as error:
            raise UserError(f"{source.name} can't be exported: {error}") from error
        if copies:
            with replacing(beside) as partial_config:
                shutil.copyfile(saved, partial_config)
    return out


@errors.one_line
def main() -> None:
    """Export the checkpoint that the command line names."""
    required = {"checkpoint": "<step folder, file or hub id>", "out": "<name>.safetensors"}
    out = export(parse(sys.argv[1:], ExportConfig, "python -m utils.export", **required))
    print(f"exported {out}: torch_model.load_state_dict(safetensors.torch.load_file({str(out)!r}))")


if __name__ == "__main__":
    main()
