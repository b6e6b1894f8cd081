"""Delays between tries that grow at random, so that a fleet does not come back all at once."""

from __future__ import annotations

from typing import Protocol

__all__ = ["DecorrelatedJitter", "Rng"]


class Rng(Protocol):
    """What is needed of a random generator."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between `a` and `b`."""
        ...


class DecorrelatedJitter:
    """Delays that grow at random between a floor and a ceiling.

    Each delay is uniform between the floor and three times the one before (Brooker, "Exponential
    Backoff and Jitter", 2015).
    """

    __slots__ = ("_ceiling_s", "_floor_s", "_previous_s", "_rng")

    def __init__(self, floor_s: float, ceiling_s: float, rng: Rng) -> None:
        self._floor_s = floor_s
        self._ceiling_s = ceiling_s
        self._rng = rng
        self._previous_s = floor_s

    def next_s(self) -> float:
        """Return the next delay in seconds."""
        drawn_s = self._rng.uniform(self._floor_s, self._previous_s * 3)
        self._previous_s = min(self._ceiling_s, drawn_s)
        return self._previous_s

    def reset(self) -> None:
        """Begin again at the floor: something worked."""
        self._previous_s = self._floor_s
