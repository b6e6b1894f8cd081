"""Logging that a hostile or broken client cannot turn into a flood: one line a minute a cause."""

from __future__ import annotations

from collections.abc import Callable

import structlog

__all__ = ["BoundedLog"]


class BoundedLog:
    """A logger that lets each event through once in `every_s` and counts what it held back."""

    __slots__ = ("_clock_s", "_every_s", "_last", "_log")

    def __init__(self, clock_s: Callable[[], float], every_s: float = 60.0) -> None:
        self._log = structlog.get_logger(component="broker")
        self._clock_s = clock_s
        self._every_s = every_s
        # (event, cause) -> [time of the last line, held back since]; as many as the code has
        self._last: dict[tuple[str, int], list[float]] = {}

    def warning(self, event: str, *, cause: int = 0, **fields: object) -> None:
        """Log what went wrong, with how many like it were not logged since the last line.

        Args:
            event: What happened: a name from the code, never a client's text.
            cause: A reason code that makes it another event.
            fields: What is known of it.
        """
        now_s = self._clock_s()
        key = (event, cause)
        last = self._last.get(key)
        if last is not None and now_s - last[0] < self._every_s:
            last[1] += 1
            return
        self._last[key] = [now_s, 0]
        if cause:
            fields["reason_code"] = cause
        self._log.warning(event, **fields, suppressed=int(last[1]) if last else 0)

    def error(self, event: str, **fields: object) -> None:
        """Log what an operator has to put right; as seldom as `info`."""
        self._log.error(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """Log what happens a few times in the life of a broker."""
        self._log.info(event, **fields)
