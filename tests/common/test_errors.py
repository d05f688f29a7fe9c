"""Messages about values from elsewhere: short, in one line, whatever the value is."""

from __future__ import annotations

from common.errors import UserError, explain, printable, shown, shown_name


def test_what_files_say_is_shown_in_one_short_line() -> None:
    """A value of a foreign file would fill the screen, or fail where the message is printed."""
    assert shown("a\nb") == r"'a\nb'"
    assert shown("x" * 500) == "'" + "x" * 78 + "…"
    assert shown("\ud800") == r"'\ud800'"  # print would fail on it
    assert len(shown([["x" * 500] * 500] * 500)) <= 80
    assert shown(1 << 20_000) == "int with too many digits to show"


def test_names_from_files_stay_readable_but_no_terminal_obeys_them() -> None:
    for name in ("model.inner.H_level.layers.0.self_attn.qkv_proj.weight", "step-1", "x" * 120):
        assert shown_name(name) == name
    assert shown_name("\x1b[2J") == r"'\x1b[2J'"
    assert len(shown_name("x" * 900_000)) <= 80
    assert shown_name(3) == "3"


def test_no_message_obeys_a_file_whatever_put_it_together() -> None:
    """A clear-screen sequence would hide the message, and 900 kB of it everything else."""
    assert printable("a\n b\x1b[2J\ud800 é…") == r"a b\x1b[2J\ud800 é…"
    for error in (UserError("\x1b" * 9000), UserError("x " * 500_000), OSError(2, "gone", "\x1b[2J")):
        text = explain(error)
        assert text is not None
        assert text.isprintable()
        assert len(text) <= 4000
