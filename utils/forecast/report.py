"""The lines of a forecast."""

from __future__ import annotations


def table(title: str, lines: list[tuple[str, str]]) -> str:
    """Format a title and lines of a name and a text, the texts below each other."""
    width = max(len(name) for name, _ in lines)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in lines)])


def duration_text(seconds: float) -> str:
    """Write a time for people: 0.032 s, 4.1 s, 12 min, 7.5 hours, 31 days."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    for limit, unit, factor in ((100, "s", 1), (100 * 60, "min", 60), (48 * 3600, "hours", 3600)):
        if seconds < limit:
            return f"{seconds / factor:.{0 if seconds >= 10 * factor else 1}f} {unit}"
    return f"{seconds / 86400:,.{0 if seconds >= 10 * 86400 else 1}f} days"
