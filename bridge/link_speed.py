"""What a link moves, measured by acknowledgements, and the sizes that follow from it.

On a slow link everything in flight stands in front of what comes next, an urgent or a live reading
included. So the window is what the link moves in IN_FLIGHT_S, or in two round trips if that is more
(of a very long way, one and a quarter and IN_FLIGHT_MAX_S), and one batch is what it moves in
BATCH_S, up to the ceilings that are configured. The floors that let both grow again,
WINDOW_BYTES_MIN and BATCH_BYTES_MIN, count for no more than SLOW_WINDOW_S and SLOW_BATCH_S: below
some 16 kbit/s a batch is a few readings, in the end one.

A cloud that takes its time to answer (it is busy, or commits far away) looks like a slow link: the
window is what is answered in IN_FLIGHT_S, that is less and less, down to nothing. What tells the
two apart is the peer's TCP: as long as it has taken all bytes while the window is full, the window
is what binds, and grows to IN_FLIGHT_MAX_S; where TCP ends before the link, it costs a live reading
that much waiting at most. What tells them apart for good is a batch that goes alone: only a link
answers it the sooner. So where the round trip or the floors decide about the window, it is measured
anew now and then by such a batch (`wants_alone`), which costs the link a round trip without bytes.
Urgent batches go all the same: where some are always in flight it is given up, and tried again.

Speed is what was acknowledged between the sending of a batch and its answer, over that time or the
time it took to send as much, whichever is longer: that answers come together says nothing (the
delivery rate of Cardwell et al., "BBR: Congestion-Based Congestion Control", 2016). What is more
than was known counts at once; a round trip that showed less takes half the difference off, unless
readings were short, not the link: something of it ended with nothing in flight and room left.

A connection begins with what the dial has shown the link to move at least, the first batch a small
one, whose answer is the first round trip. Then _FILLING round trips may be in flight until one
answer is late: that the link is full.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["LinkSpeed", "Mark"]

IN_FLIGHT_S = 0.25
IN_FLIGHT_MAX_S = 0.6  # while it is the answers that are slow, not the link
_IN_FLIGHT_STEP = 1.25
BATCH_S = 0.2
WINDOW_BYTES_MIN = 4 * 1024
BATCH_BYTES_MIN = 1024
SLOW_WINDOW_S = 2.0
SLOW_BATCH_S = 1.5
WINDOW_BYTES_FIRST = 16 * 1024  # until the link's speed is known; less where the dial was slow,
_FIRST_BYTES_MIN = 1024
_FIRST_S = 2.0
_FIRST_BATCH_BYTES = 256  # of payloads and topics: its answer tells the round trip
_RAW_BYTES_MIN = 4 * 1024  # for a batch that may not compress as those before it,
_RAW_S = 16.0  # or so much of the link's time
_FILLING = 4.0  # round trips of bytes in flight until answers take longer,
_QUEUED, _QUEUED_S = 1.5, 0.02  # than so many, and so much
_FIRST_ANSWERS = 3  # say what the link moves
_FIRST_EACH_BYTES = 256  # what a batch of the first window is taken for, with all around it
_ROUND_S = 0.05  # shortest round
_ALONE_EVERY_S = 20.0  # between two batches that go alone, and so many round trips
_ALONE_WAIT_S = 5.0  # for one of them, or so many round trips
_READING_BYTES_FIRST = 20.0  # encoded; until one was
_READING_BYTES_WEIGHT = 0.2  # of the newest batch in the average
_FULL_READINGS = 100  # from so many on what a batch takes by itself is hardly seen in a reading
_BATCH_BYTES = 12  # which is at least so much


class Mark(NamedTuple):
    """What was known when a batch was sent.

    Attributes:
        sent_s: When that was.
        acked_bytes: Acknowledged on this connection until then,
        acked_s: the last of them then; `sent_s` if nothing else was in flight;
        acked_sent_s: and sent then.
        alone: Its answer tells the round trip anew.
    """

    sent_s: float
    acked_bytes: int
    acked_s: float
    acked_sent_s: float
    alone: bool


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
        "_acked_bytes",
        "_acked_s",
        "_acked_sent_s",
        "_alone_due_s",
        "_answers",
        "_best",
        "_filling",
        "_first_bytes",
        "_full_seen",
        "_in_flight_s",
        "_rate_max",
        "_round_rate",
        "_round_s",
        "_round_short",
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

    def reset(self, link_bytes_s: float = math.inf) -> None:
        """Begin on a new connection, which may be another link.

        Args:
            link_bytes_s: What the link moves at least, as far as dialling showed it.
        """
        # a link that may carry so much a second is taken for one that can, until it is seen
        self.rate_bytes_s: float | None = None if self._rate_max == math.inf else self._rate_max
        self.round_trip_s = 0.0
        self.filled = False
        shown = min(WINDOW_BYTES_FIRST, link_bytes_s * _FIRST_S)
        self._first_bytes = max(_FIRST_BYTES_MIN, int(shown))
        self._in_flight_s = IN_FLIGHT_S
        self._alone_due_s = -math.inf
        self._acked_bytes = 0
        self._acked_s = self._acked_sent_s = 0.0
        self._round_s = 0.0  # when this round began
        self._round_short = False
        self._round_rate = 0.0  # known when it began
        self._best = 0.0  # seen in it
        self._answers = 0
        self._filling = True  # no answer has waited for bytes before it yet

    def sent(self, now_s: float, *, alone: bool) -> Mark:
        """Return what to give `acknowledged` with the answer to a batch sent now.

        Args:
            now_s: Now.
            alone: Nothing else is in flight.
        """
        if alone:
            self._acked_s = self._acked_sent_s = now_s
        probe = alone and now_s >= self._alone_due_s
        if probe:
            self._alone_due_s = now_s + _ALONE_EVERY_S * max(1.0, self.round_trip_s)
        return Mark(now_s, self._acked_bytes, self._acked_s, self._acked_sent_s, probe)

    def wants_alone(self, now_s: float) -> bool:
        """Return True while the next batch should wait until nothing is in flight."""
        if now_s < self._alone_due_s or self.rate_bytes_s is None:
            return False
        unit = max(1.0, self.round_trip_s)
        turn_s = (now_s - self._alone_due_s) % ((_ALONE_EVERY_S + _ALONE_WAIT_S) * unit)
        if turn_s >= _ALONE_WAIT_S * unit:
            return False
        slow = self.rate_bytes_s * SLOW_WINDOW_S < WINDOW_BYTES_MIN
        return slow or 2 * self.round_trip_s > IN_FLIGHT_MAX_S

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

    def acknowledged(self, batch_bytes: int, mark: Mark, now_s: float, *, short: bool) -> None:
        """Note that a batch was acknowledged.

        Args:
            batch_bytes: Its size.
            mark: As `sent` returned it.
            now_s: Now.
            short: Nothing is in flight any more, though the window has room.
        """
        took_s = now_s - mark.sent_s
        if mark.alone or not self.round_trip_s:
            self.round_trip_s = took_s
        else:
            self.round_trip_s = min(self.round_trip_s, took_s)
        self._filling &= took_s <= _QUEUED * self.round_trip_s + _QUEUED_S
        self._answers += 1
        self._acked_bytes += batch_bytes
        self._acked_s, self._acked_sent_s = now_s, mark.sent_s
        over_s = max(now_s - mark.acked_s, mark.sent_s - mark.acked_sent_s)
        if over_s <= 0:
            return
        rate = min(self._rate_max, (self._acked_bytes - mark.acked_bytes) / over_s)
        self._best = max(self._best, rate)
        self._round_short |= short
        known = self.rate_bytes_s
        if known is None:
            # the first batch is small, and its answer tells little of those behind it
            if short or self._answers >= _FIRST_ANSWERS:
                self.rate_bytes_s = self._best
                self._end_round(now_s)
            return
        self.rate_bytes_s = max(known, rate)
        if now_s - self._round_s >= max(_ROUND_S, self.round_trip_s):
            self._end_round(now_s)

    def _end_round(self, now_s: float) -> None:
        assert self.rate_bytes_s is not None
        if self._best < self._round_rate and not self._round_short:
            self.rate_bytes_s = (self._round_rate + self._best) / 2
        self._best, self._round_short, self._round_rate = 0.0, False, self.rate_bytes_s
        self._round_s = now_s

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
        rate = self.rate_bytes_s
        if rate is None:
            return min(most, self._first_bytes)
        if self._filling:
            long_s = _FILLING * self.round_trip_s
        else:
            long_s = min(2 * self.round_trip_s, 1.25 * self.round_trip_s + IN_FLIGHT_MAX_S)
        least = min(WINDOW_BYTES_MIN, rate * SLOW_WINDOW_S)
        return min(most, max(1, int(max(rate * max(self._in_flight_s, long_s), least))))

    @property
    def window_batches(self) -> float:
        """How many batches may be in flight: small ones take more of the link than their bytes."""
        if self.rate_bytes_s is not None:
            return math.inf
        return 1 + self._first_bytes // _FIRST_EACH_BYTES

    def batch_readings(self, most: int) -> int:
        """Return how many readings, at most `most`, one batch should hold on this link."""
        rate = self.rate_bytes_s
        if rate is None:
            return most
        size = max(rate * BATCH_S, min(BATCH_BYTES_MIN, rate * SLOW_BATCH_S))
        return min(most, max(1, int(size / max(1.0, self.reading_bytes))))

    def batch_bytes(self, most: int) -> int:
        """Return how many bytes of payloads and topics, at most `most`, one batch should hold.

        They may not compress, and all that comes behind the batch, urgent readings too, would wait
        for it. Before the speed is known this may be the slowest of links.
        """
        if self.rate_bytes_s is not None:
            return min(most, max(_RAW_BYTES_MIN, int(self.rate_bytes_s * _RAW_S)))
        return min(most, self._first_bytes if self._answers else _FIRST_BATCH_BYTES)
