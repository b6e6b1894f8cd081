"""Figures as people say them: spans of time and sizes."""

from __future__ import annotations

__all__ = ["size", "span"]


def span(seconds: float) -> str:
    """Return a time in the unit that fits it: "40 s", "75 min", "8 h 05 min", "13 years"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 72 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    days = seconds / 86_400
    return f"{days:.1f} days" if days < 730 else f"{days / 365:.0f} years"


def size(count: float) -> str:
    """Return bytes in the decimal unit that fits them: "512 B", "34.6 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
