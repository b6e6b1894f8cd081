"""The uplink's decisions, without I/O: what to send next, and what an answer or its lack means.

Theory of operation. Each lane has two cursors: `acked_seq`, up to which the cloud has everything
(or it was set aside), and `sent_seq`, up to which batches are in flight. Batches of all lanes
share one connection and one context, so any refusal or loss makes everything unacknowledged stale
at once: the *generation* rises, `sent_seq` falls back to `acked_seq`, and the next batch starts a
fresh context. What is still to be answered of an older generation only keeps its room in the
window until the answer comes.

    answer                        then
    ------                        ----
    0x00                          acked_seq moves past it, as soon as all before it has
    0x10 0x80 0x83 0x87 0x90 0x97 hold for a jittered while, then send the same again, for ever
    0x99 version                  the same: another software is needed, not another batch
    0x99 mode                     mode 0 for the rest of this connection; for a while, doubling
                                  each time, when structured batches are refused in a row otherwise
    0x99 else                     the batch is *suspect*: again in a fresh context, then in mode 0,
                                  then in halves, down to one reading, which is set aside
    connection lost               dial the next endpoint; halve the batches if nothing got through

While a batch is suspect only one batch is in flight. A suspect's readings are set aside one by
one and no faster than the back-off allows, so a cloud that refuses everything cannot empty a
journal into the dead letters. docs/link-format.md section 1.

Backlog. `split` makes everything that lies in the journal's live lane backlog: the live cursor
jumps past it, and the backlog's goes through what was left out, up to `backlog_end`. What has been
acknowledged in between (by the live lane, after an earlier split) is in `settled` and is not sent
again. So the journal's live lane is acknowledged in two places at once, and `Durable` speaks of a
range: what may be forgotten is that range, never all up to its end.

Invariants: acked_seq <= sent_seq in each lane; `acked_seq` never falls; a lane's batches of one
generation are contiguous: the first begins at `acked_seq`, each next where the one before ends.
Backlog: sent_seq <= backlog_end <= the live lane's acked_seq. Every seq up to the live lane's
acked_seq is settled, or lies between the backlog's acked_seq and backlog_end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias

from bridge.envelope import LinkLane, Mode, Tombstone
from bridge.intervals import IntervalSet
from bridge.link_speed import LinkSpeed

__all__ = [
    "PAYLOAD_FORMAT_INVALID",
    "DecorrelatedJitter",
    "Durable",
    "Grant",
    "Redial",
    "Rng",
    "Sent",
    "SetAside",
    "UplinkEvent",
    "UplinkLimits",
    "UplinkState",
]

SUCCESS = 0x00
PAYLOAD_FORMAT_INVALID = 0x99
PACKET_TOO_LARGE = 0x95
RETRY_AFTER_MAX_S = 3600.0
RETRY_AFTER_SPREAD = 1.25  # a gateway comes between what it was told and so much of it
_STRUCTURED_FAILURES_MAX = 3  # in a row; then it is mode 0
PLAIN_MIN_S = 5.0  # for so long, before a structured batch is tried again;
PLAIN_MAX_S = 320.0  # each time twice as long, up to this
_URGENT_WINDOWS = 2  # an urgent batch goes although others fill the window


class Rng(Protocol):
    """What is needed of a random generator."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between `a` and `b`."""
        ...


class DecorrelatedJitter:
    """Delays that grow at random between a floor and a ceiling, so that a fleet spreads out.

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


@dataclass(slots=True, frozen=True)
class UplinkLimits:
    """Sizes and times the uplink keeps to."""

    batch_readings: int = 500
    batch_bytes: int = 256 * 1024  # of payloads and topics before compression
    window_bytes: int = 1024 * 1024  # of batches in flight
    window_batches: int = 64
    rate_bytes_s: float = 0.0  # what the link may be used for; 0 = as it carries
    ack_timeout_s: float = 30.0
    backoff_min_s: float = 0.5
    backoff_max_s: float = 60.0


@dataclass(slots=True, frozen=True)
class Grant:
    """Leave to make one batch; worthless once `generation` is no longer the state's."""

    lane: int
    after_seq: int
    readings_max: int
    bytes_max: int  # a single reading may be more
    mode: int
    fresh: bool  # start a new context first
    generation: int


@dataclass(slots=True, eq=False)
class Sent:
    """A batch in flight."""

    lane: int
    after_seq: int
    first_seq: int
    last_seq: int  # = after_seq when the batch holds no readings
    count: int
    bytes: int
    mode: int
    generation: int
    sent_s: float = 0.0
    tombstones: Sequence[Tombstone] = ()
    durable: bool = False


@dataclass(slots=True, frozen=True)
class Durable:
    """Everything of `lane` past `after_seq` up to `seq` is safe in the cloud, and these stones."""

    lane: int
    seq: int
    readings: int
    tombstones: Sequence[Tombstone]
    after_seq: int = 0


@dataclass(slots=True, frozen=True)
class SetAside:
    """These readings will not be taken: make them dead letters, then call `set_aside_done`."""

    lane: int
    after_seq: int
    first_seq: int
    last_seq: int
    cause: str


@dataclass(slots=True, frozen=True)
class Redial:
    """Drop the connection: it is open, and nothing gets through."""

    cause: str


UplinkEvent: TypeAlias = Durable | SetAside | Redial


class _Step(IntEnum):
    """How far a suspect batch has been tried."""

    FRESH = 1
    PLAIN = 2
    HALVES = 3


@dataclass(slots=True)
class _Suspect:
    """A refused range of a lane, until everything up to `last_seq` is settled."""

    last_seq: int
    step: _Step
    readings_max: int


@dataclass(slots=True)
class _LaneCursor:
    acked_seq: int = 0
    sent_seq: int = 0
    chain: deque[Sent] = field(default_factory=deque)  # this generation's, in the order sent
    suspect: _Suspect | None = None


class UplinkState:
    """One gateway's uplink.

    Attributes:
        connected: A connection is up and its CONNACK was received.
        generation: Rises whenever what is in flight becomes stale.
        endpoint: Index of the endpoint in use or to dial next.
        last_error: What last went wrong, one line; "" while nothing has.
        refusals: Batches refused so far, not counting those in a refusal's wake.
        speed: What the link of this connection moves.
        settled: Seqs of the journal's live lane that are settled, by whichever cursor.
        backlog_end: The last seq of the backlog; None while there is none.
    """

    def __init__(self, limits: UplinkLimits, endpoints: int, rng: Rng) -> None:
        self._limits = limits
        self._lanes = [_LaneCursor() for _ in LinkLane]
        self._endpoints = endpoints
        self._backoff = DecorrelatedJitter(limits.backoff_min_s, limits.backoff_max_s, rng)
        self._in_flight: list[Sent] = []
        self._bytes_in_flight = 0
        self._window_batches = limits.window_batches
        self._packet_bytes_max: int | None = None
        self._setting_aside = False
        self._fresh = True
        self._plain = False
        self._plain_s = PLAIN_MIN_S  # of mode 0 after the next structured refusal too many
        self._plain_until_s = 0.0
        self._structured_failures = 0
        self._shrink = 0  # batches are 2^-shrink of their limits: nothing got through otherwise
        self._progress_s = 0.0  # when bytes in flight last moved or were acknowledged
        self._hold_until_s = 0.0
        self._dial_at_s = 0.0
        self._busy_until_s: dict[int, float] = {}  # by endpoint that has said when to come again
        self._rng = rng
        self._got_through = False  # something was acknowledged on this connection
        self.speed = LinkSpeed(limits.window_bytes, limits.rate_bytes_s)
        self.settled = IntervalSet()
        self.backlog_end: int | None = None
        self.connected = False
        self.generation = 0
        self.endpoint = 0
        self.last_error = ""
        self.refusals = 0

    # ---- connection

    @property
    def dial_at_s(self) -> float:
        """When to dial `endpoint`; meaningless while connected."""
        return self._dial_at_s

    def endpoints_changed(self, endpoints: int) -> None:
        """Take another number of endpoints; the first of them is dialled next."""
        self._endpoints = endpoints
        self._busy_until_s.clear()
        self.endpoint = 0

    def connection_made(
        self, now_s: float, *, receive_maximum: int, packet_bytes_max: int | None
    ) -> None:
        """Begin on a new connection with the server's limits.

        Args:
            now_s: Now.
            receive_maximum: Unacknowledged QoS 1 publishes the server takes [MQTT-3.3.4-7].
            packet_bytes_max: Its Maximum Packet Size; None without one.
        """
        self._rewind()
        self.connected = True
        self._window_batches = max(1, min(self._limits.window_batches, receive_maximum))
        self._packet_bytes_max = packet_bytes_max
        self._got_through = False
        self._structured_works()
        self.speed.reset()
        self._progress_s = now_s

    def connection_lost(
        self, now_s: float, cause: str, reason_code: int = 0, retry_after_s: float = 0.0
    ) -> list[UplinkEvent]:
        """Note that a dial failed or a connection ended, and plan the next dial.

        Args:
            now_s: Now.
            cause: One line for the operator.
            reason_code: The server's DISCONNECT reason code; 0 without one.
            retry_after_s: After how long the server wants it to come again; 0: it did not say.
        """
        self.last_error = cause
        was_connected, self.connected = self.connected, False
        first = self._in_flight[0] if self._in_flight else None
        self._in_flight.clear()
        self._bytes_in_flight = 0
        events: list[UplinkEvent] = []
        if was_connected and first is not None and first.generation == self.generation:
            if reason_code == PACKET_TOO_LARGE:
                events = self._suspect(first, "too-large", cause)
            elif not self._got_through:
                self._shrink = min(self._shrink + 1, 16)
        self._rewind()
        if was_connected and self._got_through:
            self.endpoint = 0
            self._dial_at_s = now_s + self._backoff.next_s()
            return events
        if retry_after_s > 0:
            told_s = min(retry_after_s, RETRY_AFTER_MAX_S)
            told_s = self._rng.uniform(told_s, told_s * RETRY_AFTER_SPREAD)
            self._busy_until_s[self.endpoint] = now_s + told_s
        self._next_endpoint(now_s)
        return events

    def _next_endpoint(self, now_s: float) -> None:
        """Turn to the next endpoint that has not said to come later; where all have, wait."""
        busy = {at: until for at, until in self._busy_until_s.items() if until > now_s}
        self._busy_until_s = busy
        self._dial_at_s = now_s
        if len(busy) >= self._endpoints:
            self.endpoint = min(busy, key=lambda at: busy[at])
            self._dial_at_s = busy[self.endpoint]
            return
        waits = False
        while True:
            self.endpoint += 1
            if self.endpoint >= self._endpoints:
                self.endpoint, waits = 0, True
            if self.endpoint not in busy:
                break
        if waits:
            self._dial_at_s += self._backoff.next_s()

    # ---- sending

    def acked_seq(self, lane: int) -> int:
        """Return the seq up to which everything of `lane` is settled."""
        return self._lanes[lane].acked_seq

    def sent_seq(self, lane: int) -> int:
        """Return the seq up to which `lane` was read; what comes next lies past it."""
        return self._lanes[lane].sent_seq

    @property
    def batches_in_flight(self) -> int:
        """Batches not answered yet."""
        return len(self._in_flight)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of batches not answered yet."""
        return self._bytes_in_flight

    def holding(self, now_s: float) -> bool:
        """Return True while a refusal makes the uplink wait."""
        return now_s < self._hold_until_s

    def in_flight(self, lane: int) -> bool:
        """Return True while a batch of `lane` has no answer."""
        return bool(self._lanes[lane].chain)

    def can_send(self, now_s: float, lane: int = LinkLane.LIVE) -> bool:
        """Return True when the window has room for a batch of `lane`."""
        if not self.connected or self._setting_aside or now_s < self._hold_until_s:
            return False
        if not self._in_flight:
            return True
        if any(lane.suspect is not None for lane in self._lanes):
            return False
        windows = _URGENT_WINDOWS if lane == LinkLane.URGENT else 1
        return (
            len(self._in_flight) < self._window_batches
            and self._bytes_in_flight < self.window_bytes * windows
        )

    @property
    def window_bytes(self) -> int:
        """How many bytes may be in flight on this link; the batch that passes it still goes."""
        return self.speed.window_bytes

    # ---- backlog

    def split(self, last_seq: int) -> bool:
        """Make all that waits in the live lane up to `last_seq` backlog.

        Returns:
            False, and nothing changed, while live batches are in flight or one is suspect.
        """
        live, backlog = self._lanes[LinkLane.LIVE], self._lanes[LinkLane.BACKLOG]
        if live.chain or live.suspect is not None or last_seq <= live.acked_seq:
            return False
        if self.backlog_end is None:
            backlog.acked_seq = backlog.sent_seq = live.acked_seq
        self.backlog_end = last_seq
        live.acked_seq = live.sent_seq = last_seq
        return True

    def backlog_read_out(self) -> list[UplinkEvent]:
        """Note that the journal has no reading of the backlog past what was sent.

        Returns:
            Once all of it is answered: that everything up to its end is settled.
        """
        backlog = self._lanes[LinkLane.BACKLOG]
        end = self.backlog_end
        if end is None or backlog.chain or self._setting_aside:
            return []
        after_seq, backlog.acked_seq = backlog.acked_seq, end
        backlog.sent_seq = end
        backlog.suspect = None
        self.backlog_end = None
        self._settle(LinkLane.BACKLOG, after_seq, end)
        return [Durable(LinkLane.BACKLOG, end, 0, [], after_seq)]

    def _settle(self, lane: int, after_seq: int, seq: int) -> None:
        if lane != LinkLane.URGENT and seq > after_seq:
            self.settled.add(after_seq + 1, seq)

    def grant(self, lane: int, mode: int = Mode.COLUMNAR) -> Grant:
        """Return leave to make the next batch of `lane`; call only when `can_send`.

        Args:
            lane: Whose turn it is.
            mode: The mode wanted; mode 0 is granted where another was refused.
        """
        cursor = self._lanes[lane]
        limits = self._limits
        readings_max = self.speed.batch_readings(limits.batch_readings)
        readings_max = max(1, readings_max >> self._shrink)
        suspect = cursor.suspect
        plain = self._plain
        if suspect is not None:
            readings_max = min(readings_max, suspect.readings_max)
            plain = plain or suspect.step >= _Step.PLAIN
        return Grant(
            lane=lane,
            after_seq=cursor.sent_seq,
            readings_max=readings_max,
            bytes_max=max(1, limits.batch_bytes >> self._shrink),
            mode=int(Mode.COLUMNAR) if plain else int(mode),
            fresh=self._fresh,
            generation=self.generation,
        )

    def too_large(self, packet_bytes: int) -> bool:
        """Return True when the server says it does not take packets of that size."""
        return self._packet_bytes_max is not None and packet_bytes > self._packet_bytes_max

    def sent(
        self,
        grant: Grant,
        now_s: float,
        *,
        first_seq: int,
        last_seq: int,
        count: int,
        batch_bytes: int,
        tombstones: Sequence[Tombstone] = (),
    ) -> Sent:
        """Note that the batch of a grant is on its way; the grant is of this generation."""
        assert grant.generation == self.generation
        sent = Sent(
            grant.lane, grant.after_seq, first_seq, last_seq, count, batch_bytes,
            grant.mode, grant.generation, now_s, tombstones,
        )  # fmt: skip
        if not self._in_flight:
            self._progress_s = now_s
            self.speed.began(now_s)
        if count:
            self.speed.encoded(batch_bytes, count)
        self._in_flight.append(sent)
        self._bytes_in_flight += batch_bytes
        cursor = self._lanes[grant.lane]
        cursor.sent_seq = last_seq
        cursor.chain.append(sent)
        self._fresh = False
        return sent

    def refused_here(
        self,
        grant: Grant,
        *,
        first_seq: int,
        last_seq: int,
        count: int,
        cause: str,
        word: str = "too-large",
    ) -> list[UplinkEvent]:
        """Note that a batch cannot be sent: larger than the server takes, or not to be encoded.

        `word` is "too-large", or "encode": then it is tried as one that the cloud refused.
        """
        sent = Sent(
            grant.lane, grant.after_seq, first_seq, last_seq, count, 0,
            grant.mode, grant.generation,
        )  # fmt: skip
        self.last_error = cause
        self._rewind()
        return self._suspect(sent, word, cause)

    def unreadable(
        self, grant: Grant, *, first_seq: int, last_seq: int, cause: str
    ) -> list[UplinkEvent]:
        """Note that the journal's next readings of a lane cannot be read; nothing was sent.

        They are set aside once everything before them is settled; until then call it again.
        """
        if grant.after_seq != self._lanes[grant.lane].acked_seq:
            return []
        self.last_error = cause
        self._setting_aside = True
        return [SetAside(grant.lane, grant.after_seq, first_seq, last_seq, cause)]

    def set_aside_done(self, event: SetAside, now_s: float) -> None:
        """Note that readings are safe among the dead letters: their lane moves on."""
        cursor = self._lanes[event.lane]
        assert cursor.acked_seq == event.after_seq
        cursor.acked_seq = cursor.sent_seq = event.last_seq
        self._settle(event.lane, event.after_seq, event.last_seq)
        cursor.chain.clear()
        self._clear_suspect(cursor)
        self._setting_aside = False
        self._hold_until_s = now_s + self._backoff.next_s()

    # ---- answers

    def answered(
        self, sent: Sent, reason_code: int, reason: str, now_s: float
    ) -> list[UplinkEvent]:
        """Take the PUBACK of a batch.

        Args:
            sent: The batch.
            reason_code: Of the PUBACK.
            reason: Its Reason String, "" without one.
            now_s: Now.
        """
        if sent not in self._in_flight:
            return []  # of a connection that is gone
        self._in_flight.remove(sent)
        self._bytes_in_flight -= sent.bytes
        self._progress_s = now_s
        if reason_code == SUCCESS:
            self._backoff.reset()
            self._got_through = True
            if sent.mode == Mode.STRUCTURED:
                self._structured_works()
            elif now_s >= self._plain_until_s:
                self._plain = False
            self._shrink = max(0, self._shrink - 1)
            idle = not self._in_flight
            self.speed.acknowledged(sent.bytes, sent.sent_s, now_s, idle=idle)
            sent.durable = True
            return self._advance(sent.lane)
        if sent.generation != self.generation:
            return []  # in the wake of an earlier refusal
        self.refusals += 1
        self.last_error = f"the cloud refused a batch: 0x{reason_code:02x} {reason}".rstrip()
        self._rewind()
        word = reason.partition(":")[0]
        if reason_code != PAYLOAD_FORMAT_INVALID or word == "version":
            self._hold_until_s = now_s + self._backoff.next_s()
            return []
        return self._suspect(sent, word, self.last_error)

    def progressed(self, now_s: float) -> None:
        """Note that the peer took bytes of what is in flight, though it has not answered."""
        self._progress_s = now_s

    def next_deadline_s(self) -> float | None:
        """Return when `handle_timeout` has something to do; None while connected and idle."""
        if not self.connected:
            return self._dial_at_s
        if self._in_flight:
            return self._progress_s + self._limits.ack_timeout_s
        return None

    def resume_s(self) -> float:
        """Return when a hold ends."""
        return self._hold_until_s

    def handle_timeout(self, now_s: float, *, unheard: bool = False) -> list[UplinkEvent]:
        """Return `Redial` when bytes in flight have stood still for too long.

        Args:
            now_s: Now.
            unheard: Nothing may be sent before the cloud has said what it holds, which it has not
                since the connection was made.
        """
        if not self.connected or not (self._in_flight or unheard):
            return []
        silent_s = now_s - self._progress_s
        if silent_s < self._limits.ack_timeout_s:
            return []
        what = "the cloud has not said what it holds" if unheard else "nothing was acknowledged"
        return [Redial(f"connected, but {what} for {silent_s:.0f} s")]

    # ---- inner

    def _advance(self, lane: int) -> list[UplinkEvent]:
        cursor = self._lanes[lane]
        chain = cursor.chain
        readings = 0
        tombstones: list[Tombstone] = []
        moved = False
        after_seq = cursor.acked_seq
        while chain and chain[0].durable:
            done = chain.popleft()
            cursor.acked_seq = done.last_seq
            readings += done.count
            tombstones += done.tombstones
            moved = True
        if not moved:
            return []
        self._clear_suspect(cursor)
        self._settle(lane, after_seq, cursor.acked_seq)
        return [Durable(lane, cursor.acked_seq, readings, tombstones, after_seq)]

    def _clear_suspect(self, cursor: _LaneCursor) -> None:
        suspect = cursor.suspect
        if suspect is None:
            return
        if cursor.acked_seq >= suspect.last_seq:
            cursor.suspect = None
        else:
            suspect.readings_max *= 2

    def _rewind(self) -> None:
        """Make everything in flight stale: it will be read and encoded again."""
        self.generation += 1
        self._fresh = True
        for cursor in self._lanes:
            cursor.sent_seq = cursor.acked_seq
            cursor.chain.clear()

    def _structured_works(self) -> None:
        """Note that nothing speaks against structured batches."""
        self._plain = False
        self._plain_s = PLAIN_MIN_S
        self._plain_until_s = 0.0
        self._structured_failures = 0

    def _structured_failed(self) -> None:
        """Count a structured batch that was refused: a decoder that is down comes up again."""
        self._structured_failures += 1
        if self._structured_failures < _STRUCTURED_FAILURES_MAX:
            return
        self._plain = True
        self._plain_until_s = max(self._plain_until_s, self._progress_s + self._plain_s)
        self._plain_s = min(PLAIN_MAX_S, self._plain_s * 2)

    def _suspect(self, sent: Sent, word: str, cause: str) -> list[UplinkEvent]:
        """Choose how the readings of a refused batch are tried next."""
        cursor = self._lanes[sent.lane]
        suspect = cursor.suspect
        if word == "mode" and sent.mode == Mode.STRUCTURED:
            self._plain, self._plain_until_s = True, math.inf
            return []
        if sent.mode == Mode.STRUCTURED:
            self._structured_failed()
        if suspect is None:
            step = _Step.HALVES if word == "too-large" else _Step.FRESH
            suspect = cursor.suspect = _Suspect(sent.last_seq, step, max(1, sent.count))
            if step is _Step.FRESH:
                return []
        elif suspect.step is _Step.FRESH and word != "too-large":
            suspect.step = _Step.PLAIN
            return []
        suspect.step = _Step.HALVES
        if sent.count > 1:
            suspect.readings_max = sent.count // 2
            return []
        if not sent.count:  # tombstones alone: there is nothing to set aside
            cursor.suspect = None
            self._hold_until_s = self._progress_s + self._backoff.next_s()
            return []
        if sent.after_seq != cursor.acked_seq:  # what lies before it has to be settled first
            return []
        self._setting_aside = True
        return [SetAside(sent.lane, sent.after_seq, sent.first_seq, sent.last_seq, cause)]
