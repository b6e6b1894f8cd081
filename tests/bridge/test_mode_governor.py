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
    """A link with a few batches in flight, which takes so many readings a second in each mode.

    `made`: how many readings a second are made into structured batches; None: the governor is not
    told.
    """

    def __init__(
        self, rates: dict[bool, float], *, depth: int = 4, made: float | None = None
    ) -> None:
        self.governor = ModeGovernor()
        self.rates = rates
        self.made = made
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
                if structured and self.made is not None:
                    self.governor.made(BATCH, BATCH / self.made)
            self.now_s += BATCH / self.rates[self.in_flight.popleft()]
            self.governor.answered(self.now_s, BATCH)

    def begin(self, seconds: float) -> None:
        """Send as while the encoder comes up: columnar, and nobody asks the governor."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += BATCH / self.rates[False]
            self.governor.answered(self.now_s, BATCH, columnar=True)

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


FAST_LINK = {True: 50_000.0, False: 97_000.0}


def test_where_structured_batches_are_made_too_slowly_a_few_of_them_tell() -> None:
    drain = Drain(FAST_LINK, depth=20, made=55_000.0)
    drain.begin(0.3)
    drain.run(9.0)
    modes = [mode for _, mode in drain.modes]
    assert modes[:12] == [True] * 12
    assert modes.count(True) < 40, "what fills the window until the first answer"
    assert drain.governor.switches == 1


def test_nobody_knows_that_without_a_columnar_batch_before() -> None:
    drain = Drain(FAST_LINK, depth=20, made=55_000.0)
    drain.run(9.0)
    assert drain.governor.switches == 1
    assert drain.share(structured=False, after_s=2.0) == 1.0


def test_on_a_slow_link_structured_is_tried_first_and_what_is_gone_soon_goes_so() -> None:
    drain = Drain({True: 27_000.0, False: 9_700.0}, depth=10, made=55_000.0)
    drain.begin(0.4)
    drain.run(1.5, waiting=50_000)
    drain.run(1.0, waiting=25_000)
    assert drain.share(structured=True) == 1.0


def test_and_a_few_more_of_them_now_and_then() -> None:
    drain = Drain(FAST_LINK, depth=20, made=55_000.0)
    drain.begin(0.3)
    drain.run(120.0)
    structured = [at_s for at_s, mode in drain.modes if mode]
    assert max(structured) > PAUSE_MIN_S, "it is looked at again"
    assert len(structured) < 120
    drain.made = 90_000.0  # the encoder has a core for itself now,
    drain.rates = {True: 85_000.0, False: 97_000.0}
    drain.run(2 * PAUSE_MAX_S)
    assert drain.share(structured=True, after_s=drain.now_s - 30.0) > 0.9


def test_a_link_slower_than_the_encoder_is_found_by_samples_as_ever() -> None:
    drain = Drain(SLOW_LINK, made=55_000.0)
    drain.run(600.0)
    assert drain.governor.switches == 0
    assert drain.share(structured=True) > 0.97


def test_what_is_made_in_a_moment_is_not_worth_a_sample() -> None:
    drain = Drain(SLOW_LINK, made=55_000.0)
    drain.run(60.0, waiting=20_000)
    assert drain.share(structured=True) == 1.0


def test_batches_without_readings_tell_nothing() -> None:
    governor = ModeGovernor()
    now_s = 0.0
    for _ in range(4000):
        governor.structured(now_s, FLOOD, 0)
        governor.made(0, 0.0)
        governor.answered(now_s, 0)
        now_s += 0.01
    assert governor.structured(now_s, FLOOD, 0)


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
