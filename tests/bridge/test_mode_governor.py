"""The governor: columnar only where it drains much faster, whatever it is that binds."""

from __future__ import annotations

from collections import deque

import pytest

from bridge.mode_governor import PAUSE_MAX_S, PAUSE_MIN_S, WAITING_MIN, ModeGovernor

BATCH = 500
FLOOD = 1_000_000
SLOW_LINK = {True: 12_000.0, False: 4_000.0}  # readings a second, by whether structured
SLOW_CPU = {True: 6_000.0, False: 28_000.0}


class Drain:
    """A link with a few batches in flight, which takes so many readings a second in each mode."""

    def __init__(self, rates: dict[bool, float], *, depth: int = 4) -> None:
        self.governor = ModeGovernor()
        self.rates = rates
        self.depth = depth
        self.in_flight: deque[bool] = deque()
        self.now_s = 0.0
        self.modes: list[tuple[float, bool]] = []  # when each batch was made

    def run(self, seconds: float, waiting: int = FLOOD) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            while len(self.in_flight) < self.depth:
                structured = self.governor.structured(self.now_s, waiting, len(self.in_flight))
                self.in_flight.append(structured)
                self.modes.append((self.now_s, structured))
            self.now_s += BATCH / self.rates[self.in_flight.popleft()]
            self.governor.answered(self.now_s, BATCH)

    def share(self, *, structured: bool, after_s: float = 0.0) -> float:
        """Return which part of the batches since then had a mode."""
        modes = [mode for at_s, mode in self.modes if at_s >= after_s]
        return modes.count(structured) / len(modes)


def test_structured_at_first_whatever_waits() -> None:
    assert ModeGovernor().structured(0.0, FLOOD, 0)


def test_columnar_within_seconds_where_that_is_much_faster() -> None:
    drain = Drain(SLOW_CPU)
    drain.run(60.0)
    first_s = next(at_s for at_s, mode in drain.modes if not mode)
    assert first_s < 2.0
    assert drain.share(structured=False, after_s=5.0) > 0.95
    assert drain.governor.switches == 1


def test_structured_while_the_link_binds_but_for_ever_rarer_samples() -> None:
    drain = Drain(SLOW_LINK)
    drain.run(600.0)
    assert drain.governor.switches == 0
    assert drain.share(structured=True) > 0.97
    assert drain.share(structured=True, after_s=300.0) > 0.99


def test_a_little_faster_is_not_worth_the_bytes() -> None:
    drain = Drain({True: 10_000.0, False: 13_000.0})
    drain.run(300.0)
    assert drain.governor.switches == 0


def test_structured_when_little_waits_and_no_sample_is_taken() -> None:
    drain = Drain(SLOW_CPU)
    drain.run(60.0, waiting=WAITING_MIN - 1)
    assert drain.share(structured=True) == 1.0


def test_structured_again_once_it_is_drained_and_columnar_at_once_for_the_next_flood() -> None:
    drain = Drain(SLOW_CPU)
    drain.run(20.0)
    began_s = drain.now_s + 1.0
    drain.run(60.0, waiting=20)
    assert drain.share(structured=True, after_s=began_s) == 1.0
    began_s = drain.now_s
    drain.run(0.5)
    assert drain.share(structured=False, after_s=began_s) > 0.8


def test_a_link_that_becomes_slow_in_a_drain_is_noticed() -> None:
    drain = Drain(SLOW_CPU)
    drain.run(15.0)
    assert drain.share(structured=False, after_s=10.0) > 0.5
    drain.rates = SLOW_LINK
    drain.run(2 * PAUSE_MAX_S)
    assert drain.share(structured=True, after_s=PAUSE_MAX_S + 60.0) > 0.9


def test_a_machine_that_gets_busy_in_a_drain_is_noticed() -> None:
    drain = Drain(SLOW_LINK)
    drain.run(15.0)
    drain.rates = SLOW_CPU
    drain.run(6 * PAUSE_MIN_S)
    assert drain.share(structured=False, after_s=5 * PAUSE_MIN_S) > 0.9


@pytest.mark.parametrize("depth", [1, 64])
def test_what_was_in_flight_when_the_mode_changed_is_not_counted(depth: int) -> None:
    drain = Drain(SLOW_CPU, depth=depth)
    drain.run(60.0)
    assert drain.governor.switches == 1
    slow = Drain(SLOW_LINK, depth=depth)
    slow.run(60.0)
    assert slow.governor.switches == 0


def test_a_new_connection_starts_structured() -> None:
    drain = Drain(SLOW_CPU)
    drain.run(20.0)
    drain.governor.restart()
    drain.in_flight.clear()
    assert drain.governor.structured(drain.now_s, FLOOD, 0)


def test_an_answer_of_nothing_ends_no_sample() -> None:
    governor = ModeGovernor()
    for second in range(100):
        assert governor.structured(float(second), FLOOD, 0), "nothing was answered"
