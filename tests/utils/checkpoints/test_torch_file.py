"""PyTorch's files are read as PyTorch reads them: every name, every type, every bit."""

from __future__ import annotations

import io
import resource
import struct
import sys
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from common.errors import UserError
from tests.helpers.torch_files import (
    NEW_TYPES,
    OLD_TYPES,
    SIX,
    End,
    Entry,
    entries_of,
    file_of,
    no_hooks,
    number,
    parameter,
    pickled,
    storage,
    table,
    tensor,
    text,
    torch_file,
    zip_file,
)
from utils.checkpoints.stored_tensors import NUMPY_TYPES, StoredTensor, host_tensor
from utils.checkpoints.torch_file import read_torch_file

GOLDEN = sorted((Path(__file__).resolve().parents[2] / "golden").glob("*/golden.npz"))


def read(tmp_path: Path, data: bytes) -> dict[str, StoredTensor]:
    path = tmp_path / "step_1"
    path.write_bytes(data)
    return read_torch_file(path)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.parent.name)
@pytest.mark.parametrize(("file", "prefix", "part"), [("step_0", "_orig_mod.", "init"), ("step_8", "", "final")])
def test_files_of_the_pytorch_code_have_the_weights_that_it_had(
    golden: Path, file: str, prefix: str, part: str
) -> None:
    values = np.load(golden)
    if part == "final" and any(name.startswith("ema/") for name in values.files):
        part = "ema"  # what TRM's and URM's code saves
    wanted = {name.removeprefix(f"{part}/"): values[name] for name in values.files if name.startswith(f"{part}/")}
    stored = read_torch_file(golden.parent / file)
    assert stored.keys() == {prefix + name for name in wanted}
    for name, value in wanted.items():
        array = stored[prefix + name].read()
        assert array.dtype == mx.float32
        assert np.asarray(array).tobytes() == value.tobytes()
        assert array.shape == value.shape


@pytest.mark.parametrize("dtype", [*OLD_TYPES, *NEW_TYPES])
def test_every_type_is_read(dtype: str, tmp_path: Path) -> None:
    data = (np.arange(24).reshape(2, 3, 4) % 2).astype(NUMPY_TYPES[dtype])
    stored = read(tmp_path, torch_file({"a": ("float32", np.ones(3, np.float32)), "b": (dtype, data)}))
    assert list(stored) == ["a", "b"]
    assert (stored["b"].dtype, stored["b"].shape) == (dtype, (2, 3, 4))
    array = stored["b"].read()
    assert np.array_equal(host_tensor(array).data, data)
    assert str(array.dtype) == f"mlx.core.{'float32' if dtype == 'float64' else dtype}"


def test_names_keep_their_order_and_spelling(tmp_path: Path) -> None:
    names = ["model.z", "model.a", "_orig_mod.model.ß\n", ""]
    one = np.zeros(1, np.float32)
    assert list(read(tmp_path, torch_file(dict.fromkeys(names, ("float32", one))))) == names
    assert read(tmp_path, torch_file({})) == {}


def test_tied_weights_and_views_share_a_storage(tmp_path: Path) -> None:
    whole, row, column = tensor(), tensor(None, 3, (3,), (1,)), tensor(None, 1, (2,), (3,))
    pickle = pickled(table({"embedding": whole, "head": whole, "row": row, "column": column}))
    stored = read(tmp_path, file_of(pickle))
    assert stored["embedding"] == stored["head"]
    assert stored["head"].read().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert stored["row"].read().tolist() == [3, 4, 5]
    assert stored["column"].read().tolist() == [1, 4]


def test_transposed_tensors_numbers_and_empty_tensors(tmp_path: Path) -> None:
    values = {
        "transposed": tensor(None, 0, (3, 2), (1, 3)),
        "number": tensor(None, 5, (), ()),
        "empty": tensor(storage(key="1", count=0), 0, (0, 4), (4, 1)),
        "empty view": tensor(None, 6, (0,), (1,)),
        "odd stride of an axis of one": tensor(None, 0, (1, 6), (12345, 1)),
    }
    stored = read(tmp_path, file_of(pickled(table(values)), {"0": SIX, "1": b""}))
    assert stored["transposed"].read().tolist() == [[0, 3], [1, 4], [2, 5]]
    assert stored["number"].read().item() == 5
    assert stored["empty"].read().shape == (0, 4)
    assert stored["empty view"].read().shape == (0,)
    assert stored["odd stride of an axis of one"].read().tolist() == [[0, 1, 2, 3, 4, 5]]


def test_parameters_and_metadata_of_tensors_are_taken(tmp_path: Path) -> None:
    newer = tensor(None, 0, (2, 3), (3, 1), b"}")  # PyTorch 2 may add an empty table
    stored = read(tmp_path, file_of(pickled(table({"a": parameter(tensor()), "b": newer}))))
    assert stored["a"] == stored["b"]


def test_other_ways_to_write_the_same_pickle(tmp_path: Path) -> None:
    """Numbers beyond 31 bits, more than 256 things recalled, single items: each has an instruction of its own."""
    stored_as_300, recalled = b"r" + struct.pack("<I", 300), b"j" + struct.pack("<I", 300)
    first = no_hooks() + text("a") + tensor() + stored_as_300 + b"s" + text("b") + recalled + b"s"
    wide = tensor(None, 0, (1, 6), (1 << 40, 1))
    stored = read(tmp_path, file_of(pickled(first + text("c") + wide + b"s")))
    assert list(stored) == ["a", "b", "c"]
    assert stored["c"].strides == (1 << 40, 1)


def test_64_bit_entries_are_read(tmp_path: Path) -> None:
    """The ARC checkpoint is beyond 2 GB, and larger ones beyond the 4 GB that a plain zip file can hold."""
    entries = entries_of(pickled(table({"a": tensor()})), {"0": SIX})
    for entry in entries:
        entry.wide = True
        entry.local_sizes = (0xFFFFFFFF, 0xFFFFFFFF)
        entry.local_extra = struct.pack("<2H2Q", 1, 16, len(entry.data), len(entry.data))
    assert read(tmp_path, zip_file(entries))["a"].read().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_zip_files_of_other_writers_are_read(tmp_path: Path) -> None:
    """Tools that repack a checkpoint write neither PyTorch's padding nor its 64-bit directory."""
    entries = entries_of(pickled(table({"a": tensor()})), {"0": SIX})
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for entry in entries:
            archive.writestr(str(entry.name), entry.data)
    assert read(tmp_path, out.getvalue())["a"].read().shape == (2, 3)
    assert read(tmp_path, zip_file(entries, End(wide=False, comment=b"repacked")))["a"].read().shape == (2, 3)


def test_files_saved_without_checksums_are_read(tmp_path: Path) -> None:
    """PyTorch's `set_crc32_options(False)` writes zeros."""
    entries = entries_of(pickled(table({"a": tensor()})), {"0": SIX})
    for entry in entries:
        entry.crc = 0
    assert list(read(tmp_path, zip_file(entries))) == ["a"]


def test_files_from_before_the_byte_order_was_written_are_read(tmp_path: Path) -> None:
    entries = entries_of(pickled(table({"a": tensor()})), {"0": SIX})
    assert list(read(tmp_path, zip_file([entries[0], *entries[2:]]))) == ["a"]


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (b"", "is empty"),
        (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
            "PyTorch's old format; .* PyTorch 1.6 or later",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs pointer"),
        (struct.pack("<Q", 2) + b"{}", "safetensors file"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        (pickled(b"}"), "bare pickle"),
        (b"\x93NUMPY\1\0", "no PyTorch file, it begins with"),
        (b"PK\5\6" + bytes(18), "a zip file that holds nothing"),
    ],
    ids=["empty", "legacy", "git-lfs", "safetensors", "html", "pickle", "npy", "empty zip"],
)
def test_other_files_are_recognised(data: bytes, finding: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=finding):
        read(tmp_path, data)


def test_other_zip_files_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, first=np.zeros(3), second=np.zeros(3))
    with pytest.raises(UserError, match=r"numpy .npz file that holds 'first.npy', 'second.npy', and not one data.pkl"):
        read_torch_file(path)
    with pytest.raises(UserError, match="TorchScript"):
        read(tmp_path, zip_file([Entry("m/data.pkl", b""), Entry("m/constants.pkl", b""), Entry("m/code/m.py", b"")]))
    with pytest.raises(UserError, match=r"a zip file that holds 'word/document.xml', and not one data.pkl"):
        read(tmp_path, zip_file([Entry("word/document.xml", b"")]))


def test_a_folder_and_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Is a directory"):
        read_torch_file(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_torch_file(tmp_path / "step_7")


def test_a_whole_training_state_is_refused_with_its_keys(tmp_path: Path) -> None:
    """What `torch.save({"model": …, "optimizer": …})` wrote needs a hint at what is inside."""
    optimizer = table({"lr": b"G" + struct.pack(">d", 0.1)})
    state = table({"model": table({"a": tensor()}), "optimizer": optimizer, "betas": b"](" + number(1) + b"e"})
    with pytest.raises(UserError, match=r"a table under 'model', .* its keys are 'model', 'optimizer', 'betas'"):
        read(tmp_path, file_of(pickled(state)))
    moments = table({"optimizer": table({"state": table([(number(0), table({"exp_avg": tensor()}))])})})
    with pytest.raises(UserError, match=r"number 0 for a key, as the state of an optimizer .*model\.state_dict\(\)"):
        read(tmp_path, file_of(pickled(moments)))
    with pytest.raises(UserError, match="holds a tensor, not a table"):
        read(tmp_path, file_of(pickled(tensor())))
    with pytest.raises(UserError, match=r"has the name '__main__\.Model'"):
        read(tmp_path, file_of(pickled(b"c__main__\nModel\n)R")))


def test_numbers_of_a_big_endian_machine_are_refused(tmp_path: Path) -> None:
    entries = entries_of(pickled(table({"a": tensor()})), {"0": SIX})
    entries[1].data = b"big"
    with pytest.raises(UserError, match="byte order b'big'"):
        read(tmp_path, zip_file(entries))


def test_opening_a_file_reads_only_its_directory_and_its_pickle(tmp_path: Path) -> None:
    """The 2 GB of ARC's puzzle embeddings open at once, however slow the disk."""
    rows = 1 << 20
    pickle = pickled(table({"puzzle_emb": tensor(storage(count=rows * 512), 0, (rows, 512), (512, 1))}))
    whole = zip_file(
        [
            Entry("a/data.pkl", pickle),
            Entry("a/data/0", b"", size=rows * 2048, stored_size=rows * 2048, crc=0),
        ]
    )
    # The directory is moved behind the hole where the numbers would be.
    descriptor = whole.index(b"PK\1\2")
    path = tmp_path / "step_1"
    closing = bytearray(whole[descriptor:])
    end = closing.index(b"PK\6\6")
    hole = rows * 2048
    closing[end + 48 : end + 56] = struct.pack("<Q", descriptor + hole)
    locator = closing.index(b"PK\6\7")
    closing[locator + 8 : locator + 16] = struct.pack("<Q", descriptor + hole + end)
    with path.open("wb") as file:
        file.write(whole[:descriptor])
        file.truncate(descriptor + hole)
        file.seek(descriptor + hole)
        file.write(closing)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_torch_file(path)["puzzle_emb"].shape == (rows, 512)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 << (20 if sys.platform == "darwin" else 10)  # in bytes there, in KiB here


def test_pytorch_itself_agrees(tmp_path: Path) -> None:
    """With PyTorch at hand: its files are read by us, and those of the tests by it."""
    torch = pytest.importorskip("torch")
    flat = torch.arange(48.0)
    ours_from_torch = {
        "flat": flat,
        "view": flat[6:18].view(3, 4),
        "transposed": flat.view(6, 8).T,
        "every second": flat[::2],
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        **{f"type {dtype}": (torch.arange(6) % 2).to(getattr(torch, dtype)) for dtype in (*OLD_TYPES, *NEW_TYPES)},
    }
    torch.save(ours_from_torch, tmp_path / "dict")
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(), tmp_path / "module")
    for file in ("dict", "module"):
        theirs = torch.load(tmp_path / file)
        ours = read_torch_file(tmp_path / file)
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            array = ours[name].read()
            assert array.shape == tuple(value.shape)
            assert array.astype(mx.float32).tolist() == value.float().tolist()
    for dtype in (*OLD_TYPES, *NEW_TYPES):
        (tmp_path / "by hand").write_bytes(torch_file({"a": (dtype, np.ones((2, 3), NUMPY_TYPES[dtype]))}))
        loaded = torch.load(tmp_path / "by hand", weights_only=False)["a"]
        assert (loaded.dtype, tuple(loaded.shape)) == (getattr(torch, dtype), (2, 3))
