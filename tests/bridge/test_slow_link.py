"""How much lies before an urgent reading, and how well the link is filled, in simulated time.

A link of a rate and a round trip, each batch with the headers it takes; the state machine decides
what is sent as in the uplink (bridge/uplink_state.py, bridge/link_speed.py). There is always a
backlog; urgent readings come now and then and go next.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from bridge.envelope import LinkLane
from bridge.uplink_events import Sent, UplinkLimits
from bridge.uplink_state import UplinkState

HEADERS = 100  # bytes: MQTT, TLS, TCP and IP
HEAD, READING, RAW = 30, 4.0, 120  # a batch's own bytes; a reading's, encoded and as published
URGENT_EVERY_S = 5.0


@dataclass
class Line:
    """A link with a backlog at one end and a cloud at the other.

    Attributes:
        rate: Bytes a second.
        round_trip_s: Without any bytes before.
        answer_s: What the cloud takes to answer.
        ahead_s: Of each urgent reading: the link's time for what was on it when it came.
        sent_bytes: Of batches, headers too, that arrived.
    """

    rate: float
    round_trip_s: float
    answer_s: Callable[[], float] = lambda: 0.02
    reading: float = READING
    ahead_s: list[float] = field(default_factory=list)
    sent_bytes: float = 0.0

    def __post_init__(self) -> None:
        self._rng = random.Random(1)
        self.state = UplinkState(UplinkLimits(), 1, self._rng)
        self._answers: list[tuple[float, int, Sent]] = []
        self._count = 0
        self.now_s = 3 * self.round_trip_s + 500 / self.rate
        self._free_s = self._answered_s = self.now_s
        self._urgent_s = self.now_s + 1.0
        self.state.connection_made(
            self.now_s,
            receive_maximum=65_535,
            packet_bytes_max=None,
            link_bytes_s=500 / self.now_s,
        )

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            if self.now_s >= self._urgent_s and self.state.can_send(self.now_s, LinkLane.URGENT):
                self.ahead_s.append(max(0.0, self._free_s - self._urgent_s))
                self._send(LinkLane.URGENT)
                self._urgent_s = self.now_s + self._rng.expovariate(1 / URGENT_EVERY_S)
            elif self.state.can_send(self.now_s, LinkLane.BACKLOG):
                self._send(LinkLane.BACKLOG)
            else:
                self._wait()

    def _send(self, lane: LinkLane) -> None:
        state = self.state
        grant = state.grant(lane)
        most = max(1, min(grant.readings_max, grant.bytes_max // RAW))
        count = 1 if lane is LinkLane.URGENT else most
        size = int(HEAD + count * self.reading)
        self._free_s = max(self.now_s, self._free_s) + (size + HEADERS) / self.rate
        arrived_s = self._free_s + self.round_trip_s / 2
        self._answered_s = max(self._answered_s, arrived_s + self.answer_s())
        first = grant.after_seq + 1
        sent = state.sent(
            grant,
            self.now_s,
            first_seq=first,
            last_seq=first + count - 1,
            count=count,
            batch_bytes=size,
        )
        self._count += 1
        heapq.heappush(self._answers, (self._answered_s + self.round_trip_s / 2, self._count, sent))

    def _wait(self) -> None:
        self.now_s = self._answers[0][0]
        while self._answers and self._answers[0][0] <= self.now_s:
            _, _, sent = heapq.heappop(self._answers)
            if self.state.bytes_in_flight >= self.state.window_bytes:
                self.state.speed.full(idle=self._free_s <= self.now_s)
            self.state.answered(sent, 0, "", self.now_s)
            self.sent_bytes += sent.bytes + HEADERS


@pytest.mark.parametrize("round_trip_s", [0.02, 0.6, 2.0])
@pytest.mark.parametrize(("kbit_s", "most_s"), [(2.0, 4.0), (9.6, 3.5), (64.0, 3.0)])
def test_little_lies_before_an_urgent_reading_and_the_link_is_used(
    kbit_s: float, most_s: float, round_trip_s: float
) -> None:
    line = Line(kbit_s * 125, round_trip_s)
    line.run(240.0)
    assert len(line.ahead_s) > 20
    assert max(line.ahead_s) <= most_s + round_trip_s / 2
    assert line.sent_bytes / 240.0 / line.rate > (0.8 if round_trip_s < 2.0 else 0.7)


@pytest.mark.parametrize(
    ("kbit_s", "round_trip_s", "used"),
    [(256.0, 0.1, 0.95), (1000.0, 0.6, 0.8), (10_000.0, 0.1, 0.9), (10_000.0, 0.6, 0.7)],
)
def test_a_long_way_is_filled(kbit_s: float, round_trip_s: float, used: float) -> None:
    line = Line(kbit_s * 125, round_trip_s)
    line.run(20.0)
    assert line.sent_bytes / 20.0 / line.rate > used
    assert max(line.ahead_s) <= max(0.6, 2 * round_trip_s + 0.3)


def test_a_link_that_becomes_slow_has_little_in_flight_soon() -> None:
    line = Line(8000.0, 0.1)
    line.run(60.0)
    line.rate = 250.0
    line.run(60.0)
    line.ahead_s.clear()
    line.run(300.0)
    assert len(line.ahead_s) > 20
    assert max(line.ahead_s) <= 4.0


def test_readings_that_do_not_compress_any_more_hold_up_a_slow_link_once() -> None:
    line = Line(250.0, 0.1)
    line.run(60.0)
    line.reading = RAW
    line.run(60.0)
    assert max(line.ahead_s) <= 4096 / line.rate + 4.0
    line.ahead_s.clear()
    line.run(200.0)
    assert max(line.ahead_s) <= 4.0


def test_a_cloud_that_takes_seconds_to_answer_is_told_from_a_slow_link() -> None:
    slow_s = [0.02]
    line = Line(125_000.0, 0.05, answer_s=lambda: slow_s[0])
    line.run(10.0)
    slow_s[0] = 3.0
    line.run(120.0)
    before = line.sent_bytes
    line.run(30.0)
    assert (line.sent_bytes - before) / 30.0 > 20_000, "what is in flight is not a reading or two"
    slow_s[0] = 0.02
    line.run(60.0)
    line.ahead_s.clear()
    line.run(60.0)
    assert max(line.ahead_s) <= 0.6, "nor does it stay long when the answers come at once again"
