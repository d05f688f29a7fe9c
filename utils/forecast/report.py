"""The lines of a forecast."""

from __future__ import annotations


def table(title: str, lines: list[tuple[str, str]]) -> str:
    """Format a title and lines of a name and a text, the texts below each other."""
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in lines)])


def duration_text(seconds: float) -> str:
    """Write a time for people: 0.032 s, 4.1 s, 12 min, 7.5 hours, 31 days, 3.2 years."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    units = (("s", 1, 100), ("min", 60, 100), ("hours", 3600, 48), ("days", 86_400, 730), ("years", 31_557_600, 1e9))
    unit, length = next((unit, length) for unit, length, most in units if seconds < most * length)
    return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
