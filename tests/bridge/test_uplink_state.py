"""The uplink's decisions, told answer by answer; then a whole journal through a hostile link."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.envelope import Mode, Tombstone
from bridge.uplink_events import Durable, Grant, Redial, Sent, SetAside, UplinkEvent, UplinkLimits
from bridge.uplink_state import UplinkState

URGENT, LIVE, BACKLOG = 0, 1, 2
LIMITS = UplinkLimits(batch_readings=100, window_bytes=1000, window_batches=4)
STONE = Tombstone(LIVE, 5, 6, 2, "evicted-age", 7)


class Middle:
    """A generator that always draws the middle."""

    def uniform(self, a: float, b: float, /) -> float:
        return (a + b) / 2


def connected(limits: UplinkLimits = LIMITS, *, endpoints: int = 1) -> UplinkState:
    state = UplinkState(limits, endpoints, Middle())
    state.connection_made(0.0, receive_maximum=65_535, packet_bytes_max=None)
    return state


def send(
    state: UplinkState, count: int = 100, *, lane: int = LIVE, now_s: float = 0.0, size: int = 10
) -> Sent:
    grant = state.grant(lane)
    count = min(count, grant.readings_max)
    return state.sent(
        grant,
        now_s,
        first_seq=grant.after_seq + 1,
        last_seq=grant.after_seq + count,
        count=count,
        batch_bytes=size,
    )


# ---- the window ----------------------------------------------------------------------------------


def test_batches_follow_one_another_until_the_window_is_full() -> None:
    state = connected()
    sent = []
    while state.can_send(0.0):
        sent.append(send(state))
    assert [(one.first_seq, one.last_seq) for one in sent] == [
        (1, 100), (101, 200), (201, 300), (301, 400),
    ]  # fmt: skip
    assert state.answered(sent[0], 0, "", 1.0) == [Durable(LIVE, 100, 100, [])]
    assert state.can_send(1.0)


def test_the_window_counts_bytes_and_lets_one_large_batch_through() -> None:
    state = connected()
    send(state, size=999)
    assert state.can_send(0.0)
    send(state, size=5000)
    assert not state.can_send(0.0)
    assert state.bytes_in_flight == 5999


def carried(state: UplinkState, bytes_s: float, round_trip_s: float, seconds: float) -> list[int]:
    """Keep a link of that speed full; return the bytes in flight at each answer."""
    now_s, free_s, seen = 0.0, 0.0, []
    arrivals: list[tuple[float, Sent]] = []
    while now_s < seconds:
        while state.can_send(now_s):
            sent = send(state, now_s=now_s, size=8_000)
            free_s = max(free_s, now_s) + sent.bytes / bytes_s
            arrivals.append((free_s + round_trip_s, sent))
        now_s, sent = arrivals.pop(0)
        seen.append(state.bytes_in_flight)
        state.answered(sent, 0, "", now_s)
    return seen


WIDE = UplinkLimits(window_batches=1000)


@pytest.mark.parametrize("round_trip_s", [0.001, 0.1, 0.6])
def test_on_a_slow_link_little_is_in_flight(round_trip_s: float) -> None:
    seen = carried(connected(WIDE), 8_000, round_trip_s, 300.0)
    allowed = 8_000 * max(0.25, 2 * (round_trip_s + 1)) + 8_000
    assert max(seen[20:]) <= allowed, "what comes next waits a moment, not two minutes"


@pytest.mark.parametrize("round_trip_s", [0.001, 0.1, 0.6, 3.0])
def test_on_a_fast_link_the_window_opens_to_its_limit(round_trip_s: float) -> None:
    seen = carried(connected(WIDE), 5_000_000, round_trip_s, 60.0)
    assert max(seen) >= WIDE.window_bytes


def test_receive_maximum_of_the_server_is_kept() -> None:
    state = UplinkState(LIMITS, 1, Middle())
    state.connection_made(0.0, receive_maximum=2, packet_bytes_max=None)
    send(state)
    send(state)
    assert not state.can_send(0.0)


def test_only_the_first_batch_of_a_connection_starts_a_context() -> None:
    state = connected()
    assert state.grant(LIVE).fresh
    send(state)
    assert not state.grant(LIVE).fresh


def test_lanes_have_cursors_of_their_own() -> None:
    state = connected()
    live = send(state, lane=LIVE)
    urgent = send(state, 3, lane=URGENT)
    assert state.answered(urgent, 0, "", 1.0) == [Durable(URGENT, 3, 3, [])]
    assert (state.acked_seq(LIVE), state.sent_seq(LIVE)) == (0, 100)
    assert state.answered(live, 0, "", 1.0) == [Durable(LIVE, 100, 100, [])]


# ---- backlog -------------------------------------------------------------------------------------


def test_what_lay_in_the_journal_drains_as_backlog_while_live_goes_on_past_it() -> None:
    state = connected()
    assert state.split(300)
    live = send(state, 50, lane=LIVE)
    old = send(state, 100, lane=BACKLOG)
    assert (live.after_seq, live.last_seq) == (300, 350)
    assert (old.after_seq, old.last_seq) == (0, 100)
    assert state.answered(live, 0, "", 1.0) == [Durable(LIVE, 350, 50, [], 300)]
    assert state.answered(old, 0, "", 1.0) == [Durable(BACKLOG, 100, 100, [], 0)]
    assert state.settled.ranges() == [(1, 100), (301, 350)]


def test_a_backlog_ends_when_all_of_it_is_answered_and_not_before() -> None:
    state = connected()
    state.split(120)
    old = send(state, 100, lane=BACKLOG)
    assert state.backlog_read_out() == [], "its last batch has no answer yet"
    state.answered(old, 0, "", 1.0)
    assert state.backlog_read_out() == [Durable(BACKLOG, 120, 0, [], 100)]
    assert state.backlog_end is None
    assert state.settled.ranges() == [(1, 120)]


def test_live_batches_in_flight_are_answered_before_a_split() -> None:
    state = connected()
    live = send(state, 50)
    assert not state.split(300)
    state.answered(live, 0, "", 1.0)
    assert state.split(300)
    assert state.acked_seq(BACKLOG) == 50, "what live had is not backlog"


def test_a_second_outage_lengthens_the_backlog_and_leaves_out_what_live_has_sent() -> None:
    state = connected()
    state.split(300)
    state.answered(send(state, 50, lane=LIVE), 0, "", 1.0)
    state.connection_lost(2.0, "cut")
    state.connection_made(3.0, receive_maximum=65_535, packet_bytes_max=None)
    assert state.split(500)
    assert (state.acked_seq(BACKLOG), state.backlog_end) == (0, 500)
    assert 350 in state.settled
    assert 351 not in state.settled
    assert state.sent_seq(LIVE) == 500


def test_nothing_that_is_new_is_nothing_to_split() -> None:
    state = connected()
    state.split(300)
    assert not state.split(300)


def test_an_urgent_batch_goes_although_backlog_fills_the_window() -> None:
    state = connected()
    send(state, lane=BACKLOG, size=1000)
    assert not state.can_send(0.0, BACKLOG)
    assert not state.can_send(0.0, LIVE)
    assert state.can_send(0.0, URGENT)


def test_urgent_batches_that_are_always_on_their_way_do_not_keep_others_back_for_good() -> None:
    state = connected(UplinkLimits())
    state.answered(send(state), 0, "", 0.4)  # a long way: a batch is to go alone now and then
    on_their_way = [send(state, 1, lane=URGENT, now_s=0.4 + n / 10) for n in range(4)]
    may: list[bool] = []
    for n in range(8, 800):
        state.answered(on_their_way.pop(0), 0, "", n / 10)
        on_their_way.append(send(state, 1, lane=URGENT, now_s=n / 10))
        may.append(state.can_send(n / 10, LIVE))
    assert all(False in may[n : n + 260] for n in (200, 500)), "it is tried again"
    assert all(True in may[n : n + 60] for n in range(0, len(may) - 60, 10))


def test_an_acknowledgement_out_of_order_waits_for_those_before_it() -> None:
    state = connected()
    first, second = send(state), send(state)
    assert state.answered(second, 0, "", 1.0) == []
    assert state.acked_seq(LIVE) == 0
    assert state.answered(first, 0, "", 1.0) == [Durable(LIVE, 200, 200, [])]


def test_tombstones_are_durable_with_the_batch_that_told_of_them() -> None:
    state = connected()
    sent = state.sent(
        state.grant(LIVE), 0.0, first_seq=0, last_seq=0, count=0, batch_bytes=30,
        tombstones=[STONE],
    )  # fmt: skip
    assert state.answered(sent, 0, "", 1.0) == [Durable(LIVE, 0, 0, [STONE])]


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0x10, 0x80, 0x83, 0x87, 0x90, 0x97])
def test_not_now_waits_longer_each_time_and_sends_the_same_again(code: int) -> None:
    state = connected()
    now_s, pauses = 0.0, []
    for _ in range(20):
        sent = send(state, now_s=now_s)
        assert state.answered(sent, code, "later", now_s) == []
        assert not state.can_send(now_s)
        assert state.holding(now_s)
        pauses.append(state.resume_s() - now_s)
        now_s = state.resume_s()
        assert state.can_send(now_s)
        assert state.grant(LIVE).fresh
        assert state.sent_seq(LIVE) == 0
    assert pauses[0] == pytest.approx(1.0)
    assert max(pauses) <= LIMITS.backoff_max_s
    assert pauses[-1] > 20
    assert state.refusals == 20


def test_a_success_ends_the_growing_of_pauses() -> None:
    state = connected()
    now_s = 0.0
    for _ in range(10):
        state.answered(send(state), 0x97, "", now_s)
        now_s = state.resume_s()
    state.answered(send(state), 0, "", now_s)
    state.answered(send(state), 0x97, "", now_s)
    assert state.resume_s() - now_s == pytest.approx(1.0)


def test_what_is_refused_in_the_wake_of_a_refusal_counts_once() -> None:
    state = connected()
    first, second, third = send(state), send(state), send(state)
    state.answered(first, 0, "", 0.0)
    assert state.answered(second, 0x97, "", 0.0) == []
    assert state.answered(third, 0x99, "context: gone", 0.0) == []
    assert state.refusals == 1
    assert state.sent_seq(LIVE) == state.acked_seq(LIVE) == 100


def test_a_late_success_of_a_stale_batch_moves_nothing() -> None:
    state = connected()
    first, second = send(state), send(state)
    state.answered(second, 0x97, "", 0.0)
    assert state.answered(first, 0, "", 0.0) == []
    assert state.acked_seq(LIVE) == 0


def refuse_until(state: UplinkState, poison: int, now_s: float) -> list[tuple[Grant, int]]:
    """Let a cloud refuse whatever holds seq `poison`; return each batch tried with its count."""
    tried: list[tuple[Grant, int]] = []
    for _ in range(200):
        assert state.can_send(now_s)
        grant = state.grant(LIVE, Mode.STRUCTURED)
        sent = state.sent(
            grant, now_s, first_seq=grant.after_seq + 1,
            last_seq=grant.after_seq + min(100, grant.readings_max),
            count=min(100, grant.readings_max), batch_bytes=10,
        )  # fmt: skip
        tried.append((grant, sent.count))
        bad = sent.first_seq <= poison <= sent.last_seq
        for event in state.answered(sent, 0x99 if bad else 0, "check: no" if bad else "", now_s):
            if isinstance(event, SetAside):
                assert (event.first_seq, event.last_seq) == (poison, poison)
                state.set_aside_done(event, now_s)
                return tried
    raise AssertionError("never set aside")


@pytest.mark.parametrize("poison", [1, 2, 50, 99, 100])
def test_the_one_reading_that_is_refused_is_found_and_set_aside(poison: int) -> None:
    state = connected()
    tried = refuse_until(state, poison, 0.0)
    modes = [grant.mode for grant, _ in tried]
    assert modes[:3] == [Mode.STRUCTURED, Mode.STRUCTURED, Mode.COLUMNAR]
    assert all(grant.fresh for grant, _ in tried[:3])
    assert [count for _, count in tried[:3]] == [100, 100, 100]
    assert set(modes[2:]) == {Mode.COLUMNAR}
    assert len(tried) < 40
    assert state.acked_seq(LIVE) == poison
    assert state.holding(0.0)
    now_s = state.resume_s()
    while state.acked_seq(LIVE) < 200:
        assert state.can_send(now_s)
        state.answered(send(state), 0, "", now_s)
    assert state.grant(LIVE, Mode.STRUCTURED).mode == Mode.STRUCTURED


def test_while_a_batch_is_suspect_one_is_in_flight() -> None:
    state = connected()
    state.answered(send(state), 0x99, "check: no", 0.0)
    sent = send(state)
    assert not state.can_send(0.0)
    state.answered(sent, 0, "", 0.0)
    assert state.can_send(0.0)
    send(state)
    assert state.can_send(0.0), "the suspect is settled: the window is open again"


def test_a_cloud_that_refuses_everything_cannot_empty_the_journal_quickly() -> None:
    state = connected()
    now_s, aside = 0.0, 0
    while now_s < 3600:
        if not state.can_send(now_s):
            now_s = state.resume_s()
        for event in state.answered(send(state), 0x99, "malformed: all", now_s):
            assert isinstance(event, SetAside)
            aside += 1
            state.set_aside_done(event, now_s)
    assert 0 < aside < 150


def test_a_foreign_version_is_waited_out_and_never_set_aside() -> None:
    state = connected()
    for _ in range(50):
        now_s = state.resume_s()
        assert state.answered(send(state, 1), 0x99, "version: 1", now_s) == []
        assert state.holding(now_s)


def test_an_unknown_mode_keeps_the_connection_in_mode_0() -> None:
    state = connected()
    grant = state.grant(LIVE, Mode.STRUCTURED)
    sent = state.sent(grant, 0.0, first_seq=1, last_seq=9, count=9, batch_bytes=10)
    state.answered(sent, 0x99, "mode: 1", 0.0)
    assert state.grant(LIVE, Mode.STRUCTURED).mode == Mode.COLUMNAR
    assert state.can_send(0.0)
    state.connection_lost(0.0, "gone")
    state.connection_made(1.0, receive_maximum=10, packet_bytes_max=None)
    assert state.grant(LIVE, Mode.STRUCTURED).mode == Mode.STRUCTURED


def test_a_decoder_that_is_away_is_tried_again_ever_more_rarely_until_it_is_back() -> None:
    state = connected()
    now_s, back_s, tried_s = 0.0, 100.0, []
    while now_s < 200.0:
        grant = state.grant(LIVE, Mode.STRUCTURED)
        seq = grant.after_seq + 1
        sent = state.sent(grant, now_s, first_seq=seq, last_seq=seq, count=1, batch_bytes=10)
        if grant.mode != Mode.STRUCTURED:
            state.answered(sent, 0, "", now_s)
        elif now_s < back_s:
            tried_s.append(now_s)
            assert state.answered(sent, 0x99, "context: no decoder", now_s) == []
        else:
            state.answered(sent, 0, "", now_s)
            break
        now_s += 0.25
    assert len(tried_s) <= 9, tried_s
    assert max(after - before for before, after in pairwise(tried_s)) > 30
    assert now_s < 200.0, "found once it was back"
    send(state)
    assert state.grant(LIVE, Mode.STRUCTURED).mode == Mode.STRUCTURED


def test_packets_larger_than_the_server_takes_are_halved_and_in_the_end_set_aside() -> None:
    state = connected()
    state.connection_lost(0.0, "gone")
    state.connection_made(0.0, receive_maximum=10, packet_bytes_max=100)
    assert state.too_large(101)
    assert not state.too_large(100)
    counts = []
    events: list[UplinkEvent] = []
    while not events:
        grant = state.grant(LIVE)
        counts.append(grant.readings_max)
        events = state.refused_here(
            grant, first_seq=1, last_seq=grant.readings_max, count=grant.readings_max, cause="big"
        )
    assert counts == [100, 50, 25, 12, 6, 3, 1]
    assert events == [SetAside(LIVE, 0, 1, 1, "big")]
    assert not state.can_send(0.0), "nothing leaves before the reading is among the dead letters"


def test_nothing_is_set_aside_before_what_lies_before_it_is_settled() -> None:
    state = connected()
    ahead = send(state, 10)
    grant = state.grant(LIVE)
    facts = {"first_seq": 11, "last_seq": 11, "cause": "big"}
    assert state.unreadable(grant, **facts) == []
    assert state.refused_here(grant, count=1, **facts) == []
    assert state.acked_seq(LIVE) == 0
    state.answered(ahead, 0, "", 0.0)
    while state.acked_seq(LIVE) < 10:
        again = send(state, 10 - state.acked_seq(LIVE))
        state.answered(again, 0, "", 0.0)
    events = state.refused_here(state.grant(LIVE), count=1, **facts)
    assert events == [SetAside(LIVE, 10, 11, 11, "big")]


def test_refused_tombstones_are_tried_for_ever_at_a_growing_pace() -> None:
    state = connected()
    for _ in range(20):
        now_s = state.resume_s()
        sent = state.sent(
            state.grant(LIVE), now_s, first_seq=0, last_seq=0, count=0, batch_bytes=30,
            tombstones=[STONE],
        )  # fmt: skip
        assert state.answered(sent, 0x99, "malformed: no", now_s) == []
    assert state.resume_s() > 5


# ---- connections ---------------------------------------------------------------------------------


def test_everything_in_flight_is_read_again_after_a_loss() -> None:
    state = connected()
    first, second = send(state), send(state)
    state.answered(first, 0, "", 0.0)
    state.connection_lost(1.0, "reset")
    assert not state.can_send(1.0)
    state.connection_made(2.0, receive_maximum=10, packet_bytes_max=None)
    assert state.grant(LIVE).after_seq == 100
    assert state.grant(LIVE).fresh
    assert state.batches_in_flight == 0
    assert state.answered(second, 0, "", 2.0) == [], "an answer of a connection that is gone"


def test_an_endpoint_that_accepts_and_acknowledges_nothing_is_left_for_the_next() -> None:
    state = UplinkState(LIMITS, 2, Middle())
    state.connection_made(0.0, receive_maximum=10, packet_bytes_max=None)
    send(state)
    state.connection_lost(30.0, "silent")
    assert state.endpoint == 1
    assert state.dial_at_s == 30.0
    state.connection_made(30.0, receive_maximum=10, packet_bytes_max=None)
    state.answered(send(state), 0, "", 31.0)
    state.connection_lost(40.0, "reset")
    assert state.endpoint == 0, "after a connection that worked the first is tried first"
    assert state.dial_at_s > 40.0


def test_batches_shrink_while_connections_break_before_one_gets_through() -> None:
    state = connected()
    sizes = []
    for _ in range(10):
        sizes.append(send(state).count)
        state.connection_lost(0.0, "reset")
        state.connection_made(0.0, receive_maximum=10, packet_bytes_max=None)
    assert sizes == [100, 50, 25, 12, 6, 3, 1, 1, 1, 1]
    grown = []
    for _ in range(12):
        sent = send(state)
        grown.append(sent.count)
        state.answered(sent, 0, "", 0.0)
    assert grown[-1] == 100
    assert grown == sorted(grown)


def test_packet_too_large_from_the_server_is_a_refusal_of_the_batch() -> None:
    state = connected()
    events: list[UplinkEvent] = []
    for _ in range(12):
        sent = send(state)
        events = state.connection_lost(0.0, "0x95", 0x95)
        if events:
            break
        state.connection_made(0.0, receive_maximum=10, packet_bytes_max=None)
    assert sent.count == 1
    assert events == [SetAside(LIVE, 0, 1, 1, "0x95")]


# ---- the watchdog --------------------------------------------------------------------------------


def test_a_silent_peer_is_dialled_anew() -> None:
    state = connected()
    assert state.next_deadline_s() is None, "idle is no silence"
    send(state, now_s=100.0)
    assert state.next_deadline_s() == 130.0
    assert state.handle_timeout(129.9) == []
    (event,) = state.handle_timeout(130.0)
    assert isinstance(event, Redial)


def test_bytes_that_move_put_the_watchdog_off() -> None:
    state = connected()
    send(state, now_s=0.0)
    state.progressed(25.0)
    assert state.handle_timeout(40.0) == []
    assert len(state.handle_timeout(55.0)) == 1


# ---- the whole -----------------------------------------------------------------------------------

FAULTS = st.sampled_from(["ok"] * 6 + ["later", "bad", "lost", "late-ok", "forget"])


@settings(max_examples=200)
@given(st.lists(FAULTS, max_size=300), st.integers(0, 2**32), st.sets(st.integers(1, 400)))
def test_whatever_the_link_does_each_reading_arrives_or_is_set_aside_in_order(
    faults: list[str], seed: int, poison: set[int]
) -> None:
    """A journal of two interleaved lanes; the cloud refuses batches that hold a poisoned seq.

    Now and then all that has been captured and not sent becomes backlog; capture goes on.
    """
    rng = random.Random(seed)
    lanes: list[list[int]] = [[], []]
    for seq in range(1, 401):
        lanes[rng.random() < 0.8].append(seq)
    captured = rng.randrange(401)
    limits = UplinkLimits(batch_readings=16, window_bytes=500, window_batches=4)
    state = UplinkState(limits, 1, rng)
    arrived: list[list[int]] = [[], [], []]
    aside: set[int] = set()
    trimmed: set[int] = set()
    in_flight: list[tuple[Sent, list[int]]] = []
    now_s = 0.0

    def handle(events: list[UplinkEvent]) -> None:
        for event in events:
            if isinstance(event, SetAside):
                assert event.first_seq == event.last_seq, "only what was refused alone"
                aside.add(event.first_seq)
                state.set_aside_done(event, now_s)
            elif isinstance(event, Durable):
                kept = lanes[min(event.lane, LIVE)]
                done = {seq for seq in kept if event.after_seq < seq <= event.seq}
                assert done <= set().union(*arrived) | aside, "trimmed what is not safe"
                trimmed.update(done)

    def next_of(lane: int) -> list[int]:
        """Return what a lane of the link would read now."""
        through = state.backlog_end if lane == BACKLOG else captured
        return [
            seq
            for seq in lanes[min(lane, LIVE)]
            if state.sent_seq(lane) < seq <= (through or 0)
            and not (lane == BACKLOG and seq in state.settled)
        ]

    def answer(fault: str) -> None:
        sent, seqs = in_flight.pop(0)
        if fault == "later":
            handle(state.answered(sent, 0x97, "", now_s))
        elif fault == "bad" or poison & set(seqs):
            handle(state.answered(sent, 0x99, "check: no", now_s))
        else:
            arrived[sent.lane] += seqs
            handle(state.answered(sent, 0, "", now_s))
            return
        # the cloud has dropped the context: all that is behind is refused as well
        for behind, _ in in_flight:
            handle(state.answered(behind, 0x99, "context: gone", now_s))
        in_flight.clear()

    script = iter(faults)
    for _ in range(20_000):
        now_s += 0.02  # no slow link, on which a batch would be a reading
        if not state.connected:
            now_s = max(now_s, state.dial_at_s)
            state.connection_made(now_s, receive_maximum=3, packet_bytes_max=None)
        if state.holding(now_s):
            now_s = state.resume_s()
        captured = min(400, captured + rng.randrange(20))
        if rng.random() < 0.05:
            state.split(captured)
        if state.backlog_end is not None and not next_of(BACKLOG):
            handle(state.backlog_read_out())
        ready = [lane for lane in (URGENT, LIVE, BACKLOG) if next_of(lane)]
        if ready and state.can_send(now_s):
            grant = state.grant(rng.choice(ready))
            seqs = next_of(grant.lane)[: grant.readings_max]
            in_flight.append((
                state.sent(
                    grant, now_s, first_seq=seqs[0], last_seq=seqs[-1], count=len(seqs),
                    batch_bytes=100,
                ),
                seqs,
            ))  # fmt: skip
            if rng.random() < 0.5:
                continue
        if in_flight:
            fault = next(script, "ok")
            if fault in ("lost", "forget"):
                if fault == "forget":  # taken, and its answer lost
                    sent, seqs = in_flight[0]
                    if not poison & set(seqs):
                        arrived[sent.lane] += seqs
                in_flight.clear()
                handle(state.connection_lost(now_s, "cut"))
            else:
                answer(fault)
        elif not ready and captured == 400 and state.backlog_end is None:
            break
    for lane in (URGENT, LIVE, BACKLOG):
        first_arrivals = list(dict.fromkeys(arrived[lane]))
        assert first_arrivals == sorted(first_arrivals), "a lane's order"
    assert set().union(*arrived) | aside == set(range(1, 401))
    assert trimmed | aside == set(range(1, 401)), "all of it can be forgotten"
    assert poison <= aside
