"""How long the streams of a cluster took over what was appended, since last asked.

An append waits for the leader's disk and for a quorum's. A disk that has become slow shows in
nothing else: its server is there, and answers.
"""

from __future__ import annotations

__all__ = ["AppendTimes"]


class AppendTimes:
    """The times of one connection's appends: by stream, or by subject where nobody answered."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, float]] = {}  # how many, seconds together

    def note(self, name: str, took_s: float) -> None:
        """Take note of an append."""
        count, together_s = self._found.get(name, (0, 0.0))
        self._found[name] = (count + 1, together_s + took_s)

    def take(self) -> dict[str, float]:
        """Return the mean by name, seconds, of those noted since the last call."""
        found, self._found = self._found, {}
        return {name: together_s / count for name, (count, together_s) in found.items()}
