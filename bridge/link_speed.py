"""What a link moves, measured by acknowledgements, and the sizes that follow from it.

On a slow link everything in flight stands in front of what comes next, an urgent or a live reading
included. So the window is what the link moves in IN_FLIGHT_S (or two round trips, if that is
more), and one batch is what it moves in BATCH_S, within floors that let both grow again and the
ceilings that are configured.

A cloud that takes its time to answer (it is busy, or commits far away) looks like a slow link: the
window is what is answered in IN_FLIGHT_S, that is less and less, down to nothing. What tells the
two apart is the peer's TCP: as long as it has taken all bytes while the window is full, the window
is what binds, and grows to IN_FLIGHT_MAX_S; where TCP ends before the link, it costs a live reading
that much waiting at most.

Speed is bytes acknowledged while something is in flight. A stretch that ended with nothing in
flight was perhaps short of readings, not of link: it may raise the speed and never lowers it.
"""

from __future__ import annotations

import math

__all__ = ["LinkSpeed"]

IN_FLIGHT_S = 0.25
IN_FLIGHT_MAX_S = 0.6  # while it is the answers that are slow, not the link
_IN_FLIGHT_STEP = 1.25
BATCH_S = 0.2
WINDOW_BYTES_MIN = 4 * 1024
WINDOW_BYTES_FIRST = 16 * 1024  # until the link's speed is known
BATCH_BYTES_MIN = 1024
BATCH_READINGS_MIN = 16
_RATE_EVERY_S = 0.05  # shortest time over which speed is measured
_READING_BYTES_FIRST = 20.0  # encoded; until one was
_READING_BYTES_WEIGHT = 0.2  # of the newest batch in the average
_FULL_READINGS = 100  # from so many on what a batch takes by itself is hardly seen in a reading
_BATCH_BYTES = 12  # which is at least so much


class LinkSpeed:
    """The speed of one connection.

    Args:
        window_bytes_max: Most bytes that may be in flight.
        rate_bytes_s_max: What the link may be used for, whatever it carries; 0 = no limit.

    Attributes:
        rate_bytes_s: Bytes acknowledged a second, at most what may be; None until known.
        filled: The window was full: until then readings may have been short, not the link.
        round_trip_s: The shortest time from sending a batch to its answer; 0 until known.
        reading_bytes: What one reading of a batch takes, encoded, on average.
        backlog_reading_bytes: The same in full batches; an upper estimate until one was seen.
    """

    __slots__ = (
        "_busy_bytes",
        "_busy_since_s",
        "_full_seen",
        "_in_flight_s",
        "_rate_max",
        "_window_bytes_max",
        "backlog_reading_bytes",
        "filled",
        "rate_bytes_s",
        "reading_bytes",
        "round_trip_s",
    )

    def __init__(self, window_bytes_max: int, rate_bytes_s_max: float = 0.0) -> None:
        self._window_bytes_max = window_bytes_max
        self._rate_max = rate_bytes_s_max or math.inf
        self.reading_bytes = self.backlog_reading_bytes = _READING_BYTES_FIRST
        self._full_seen = False
        self.reset()

    def reset(self) -> None:
        """Begin on a new connection, which may be another link."""
        # a link that may carry so much a second is taken for one that can, until it is seen
        self.rate_bytes_s: float | None = None if self._rate_max == math.inf else self._rate_max
        self.round_trip_s = 0.0
        self.filled = False
        self._in_flight_s = IN_FLIGHT_S
        self._busy_since_s = 0.0
        self._busy_bytes = 0

    def began(self, now_s: float) -> None:
        """Note that something is in flight again after nothing was."""
        self._busy_since_s = now_s
        self._busy_bytes = 0

    def encoded(self, batch_bytes: int, readings: int) -> None:
        """Note what a batch of readings came to."""
        each = batch_bytes / readings
        self.reading_bytes += (each - self.reading_bytes) * _READING_BYTES_WEIGHT
        full = readings >= _FULL_READINGS
        if self._full_seen and not full:
            return
        if not full:
            each = max(1.0, batch_bytes - _BATCH_BYTES) / readings
        weight = 1.0 if full and not self._full_seen else _READING_BYTES_WEIGHT
        self._full_seen = full
        self.backlog_reading_bytes += (each - self.backlog_reading_bytes) * weight

    def acknowledged(self, batch_bytes: int, sent_s: float, now_s: float, *, idle: bool) -> None:
        """Note that a batch was acknowledged.

        Args:
            batch_bytes: Its size.
            sent_s: When it was sent.
            now_s: Now.
            idle: Nothing is in flight any more.
        """
        took_s = now_s - sent_s
        self.round_trip_s = min(self.round_trip_s or took_s, took_s)
        self._busy_bytes += batch_bytes
        busy_s = now_s - self._busy_since_s
        if busy_s < _RATE_EVERY_S:
            return
        rate = min(self._rate_max, self._busy_bytes / busy_s)
        known = self.rate_bytes_s
        if known is None:
            self.rate_bytes_s = rate
        elif rate > known or not idle:
            self.rate_bytes_s = (known + rate) / 2
        self.began(now_s)

    def full(self, *, idle: bool) -> None:
        """Note that an answer comes while the window is full.

        Args:
            idle: The peer's TCP has all that was sent: nothing is on its way.
        """
        self.filled = True
        if idle:
            self._in_flight_s = min(IN_FLIGHT_MAX_S, self._in_flight_s * _IN_FLIGHT_STEP)
        else:
            self._in_flight_s = max(IN_FLIGHT_S, self._in_flight_s / _IN_FLIGHT_STEP)

    @property
    def window_bytes(self) -> int:
        """How many bytes may be in flight; the batch that passes it still goes."""
        most = self._window_bytes_max
        if self.rate_bytes_s is None:
            return min(most, WINDOW_BYTES_FIRST)
        wanted = self.rate_bytes_s * max(self._in_flight_s, 2 * self.round_trip_s)
        return min(most, max(WINDOW_BYTES_MIN, int(wanted)))

    def batch_readings(self, most: int) -> int:
        """Return how many readings, at most `most`, one batch should hold on this link."""
        if self.rate_bytes_s is None:
            return most
        size = max(BATCH_BYTES_MIN, self.rate_bytes_s * BATCH_S)
        return min(most, max(BATCH_READINGS_MIN, int(size / max(1.0, self.reading_bytes))))

    def batch_bytes(self, most: int) -> int:
        """Return how many bytes of payloads and topics, at most `most`, one batch should hold.

        They may not compress, and before the speed is known this may be the slowest of links: all
        that comes behind the batch, urgent readings too, would wait for it.
        """
        return min(most, WINDOW_BYTES_FIRST) if self.rate_bytes_s is None else most
