"""Files and folders that appear whole or not at all, whatever stops their writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import expand_user, replacing

Write = Callable[[Path, str], object]


def write_folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / f"{text}.txt").write_text(text)


KINDS = pytest.mark.parametrize("write", [Path.write_text, write_folder], ids=["file", "folder"])


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def break_off(path: Path, write: Write, error: BaseException) -> None:
    """Fail when the new one is written, and before it is in its place."""
    before = files(path.parent)
    with replacing(path) as partial:
        write(partial, "new")
        assert files(path.parent).items() > before.items()  # what reads it now finds the old one
        raise error


@KINDS
def test_what_is_new_takes_the_place_of_what_was_there(write: Write, tmp_path: Path) -> None:
    """A folder is replaced as a whole: files of the old one would pass for parts of the new one."""
    for text in ("old", "new"):
        with replacing(tmp_path / "x") as partial:
            assert not partial.exists()
            write(partial, text)
        assert files(tmp_path) == {"x" if (tmp_path / "x").is_file() else f"x/{text}.txt": text}


@KINDS
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["full", "interrupted"])
def test_a_failure_leaves_the_old_one_and_nothing_else(write: Write, error: BaseException, tmp_path: Path) -> None:
    """Half of it would be read as a whole, and the old one would be lost."""
    for old in (False, True):
        if old:
            write(tmp_path / "x", "old")
        before = files(tmp_path)
        with pytest.raises(type(error)):
            break_off(tmp_path / "x", write, error)
        assert files(tmp_path) == before
        assert [path.name for path in tmp_path.iterdir()] == ["x"] * old


def test_a_folder_that_can_t_be_renamed_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames nothing has the name; a failure there must give it back."""
    write_folder(tmp_path / "x", "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="disk gone"), replacing(tmp_path / "x") as partial:
        write_folder(partial, "new")
    assert files(tmp_path) == {"x/old.txt": "old"}


def test_what_a_killed_process_left_is_no_part_of_the_next(tmp_path: Path) -> None:
    for name in (".x.partial", ".x.replaced", "x"):
        write_folder(tmp_path / name, "old")
    with replacing(tmp_path / "x") as partial:
        write_folder(partial, "new")
    assert files(tmp_path) == {"x/new.txt": "new"}


def test_a_home_is_found_or_missed_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_user("~/data") == tmp_path / "data"
    assert expand_user("data/~") == Path("data/~")
    with pytest.raises(UserError, match=r"^~nobody-here/x can't be expanded: ~nobody-here is no known home"):
        expand_user("~nobody-here/x")
