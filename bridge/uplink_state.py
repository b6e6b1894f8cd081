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
    0x99 run                      the same: the cloud has to be met again first (edge/commands.py)
    0x99 mode                     mode 0 for the rest of this connection; for a while, doubling
                                  each time, when structured batches are refused in a row otherwise
    0x99 else                     the batch is *suspect*: again in a fresh context, then in mode 0,
                                  then in halves, down to one reading, which is set aside
    connection lost               dial the next endpoint; halve the batches if nothing got through

While a batch is suspect only one batch is in flight. A suspect's readings are set aside one by
one and no faster than the back-off allows, so a cloud that refuses everything cannot empty a
journal into the dead letters. docs/link-format.md section 1.

What is tried next of a suspect is `lane_cursor`'s, when structured batches are given up for a
while `structured_breaker`'s, which endpoint is dialled next and when `endpoint_rotation`'s.

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

from collections.abc import Sequence
from math import inf

from bridge.backoff import DecorrelatedJitter, Rng
from bridge.endpoint_rotation import EndpointRotation
from bridge.envelope import LinkLane, Mode, Tombstone
from bridge.intervals import IntervalSet
from bridge.lane_cursor import LaneCursor, Step
from bridge.link_speed import LinkSpeed
from bridge.structured_breaker import StructuredBreaker
from bridge.uplink_events import Durable, Grant, Redial, Sent, SetAside, UplinkEvent, UplinkLimits

__all__ = ["PAYLOAD_FORMAT_INVALID", "UplinkState"]

SUCCESS = 0x00
PAYLOAD_FORMAT_INVALID = 0x99
PACKET_TOO_LARGE = 0x95
_URGENT_WINDOWS = 2  # an urgent batch goes although others fill the window
_SHRINK_MAX = 16  # a batch is one reading by then


class UplinkState:
    """One gateway's uplink.

    Attributes:
        connected: A connection is up and its CONNACK was received.
        generation: Rises whenever what is in flight becomes stale.
        last_error: What last went wrong, one line; "" while nothing has.
        refusals: Batches refused so far, not counting those in a refusal's wake.
        speed: What the link of this connection moves.
        settled: Seqs of the journal's live lane that are settled, by whichever cursor.
        backlog_end: The last seq of the backlog; None while there is none.
    """

    def __init__(self, limits: UplinkLimits, endpoints: int, rng: Rng) -> None:
        self._limits = limits
        self._lanes = [LaneCursor() for _ in LinkLane]
        self._backoff = DecorrelatedJitter(limits.backoff_min_s, limits.backoff_max_s, rng)
        self._rotation = EndpointRotation(endpoints, self._backoff, rng)
        self._breaker = StructuredBreaker()
        self._in_flight: list[Sent] = []
        self._bytes_in_flight = 0
        self._window_batches = limits.window_batches
        self._packet_bytes_max: int | None = None
        self._setting_aside = False
        self._fresh = True
        self._shrink = 0  # batches are 2^-shrink of their limits: nothing got through otherwise
        self._progress_s = 0.0  # when bytes in flight last moved or were acknowledged
        self._hold_until_s = 0.0
        self._got_through = False  # something was acknowledged on this connection
        self.speed = LinkSpeed(limits.window_bytes, limits.rate_bytes_s)
        self.settled = IntervalSet()
        self.backlog_end: int | None = None
        self.connected = False
        self.generation = 0
        self.last_error = ""
        self.refusals = 0

    # ---- connection

    @property
    def dial_at_s(self) -> float:
        """When to dial `endpoint`; meaningless while connected."""
        return self._rotation.dial_at_s

    @property
    def endpoint(self) -> int:
        """Index of the endpoint in use or to dial next."""
        return self._rotation.index

    def endpoints_changed(self, endpoints: int) -> None:
        """Take another number of endpoints; the first of them is dialled next."""
        self._rotation.replace(endpoints)

    def connection_made(
        self,
        now_s: float,
        *,
        receive_maximum: int,
        packet_bytes_max: int | None,
        link_bytes_s: float = inf,
    ) -> None:
        """Begin on a new connection with the server's limits.

        Args:
            now_s: Now.
            receive_maximum: Unacknowledged QoS 1 publishes the server takes [MQTT-3.3.4-7].
            packet_bytes_max: Its Maximum Packet Size; None without one.
            link_bytes_s: What the link moves at least, as far as dialling showed it.
        """
        self._rewind()
        self.connected = True
        self._window_batches = max(1, min(self._limits.window_batches, receive_maximum))
        self._packet_bytes_max = packet_bytes_max
        self._got_through = False
        self._breaker.reset()
        self.speed.reset(link_bytes_s)
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
                self._shrink = min(self._shrink + 1, _SHRINK_MAX)
        self._rewind()
        if was_connected and self._got_through:
            self._rotation.worked(now_s)
        else:
            self._rotation.failed(now_s, retry_after_s)
        return events

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
        if lane != LinkLane.URGENT and self.speed.wants_alone(now_s):
            return False
        windows = _URGENT_WINDOWS if lane == LinkLane.URGENT else 1
        return (
            len(self._in_flight) < min(self._window_batches, self.speed.window_batches)
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
            backlog.jump(live.acked_seq)
        self.backlog_end = last_seq
        live.jump(last_seq)
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
        after_seq = backlog.acked_seq
        backlog.jump(end)
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
        plain = self._breaker.is_open
        if suspect is not None:
            readings_max = min(readings_max, suspect.readings_max)
            plain = plain or suspect.step >= Step.PLAIN
        return Grant(
            lane=lane,
            after_seq=cursor.sent_seq,
            readings_max=readings_max,
            bytes_max=max(1, self.speed.batch_bytes(limits.batch_bytes) >> self._shrink),
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
            grant.mode, grant.generation, self.speed.sent(now_s, alone=not self._in_flight),
            tombstones,
        )  # fmt: skip
        if not self._in_flight:
            self._progress_s = now_s
        if count and grant.lane != LinkLane.URGENT:  # those go one by one
            self.speed.encoded(batch_bytes, count)
        self._in_flight.append(sent)
        self._bytes_in_flight += batch_bytes
        self._lanes[grant.lane].sent(sent)
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
        cursor.set_aside(event.last_seq)
        self._settle(event.lane, event.after_seq, event.last_seq)
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
        filled = self._bytes_in_flight >= self.window_bytes
        self._in_flight.remove(sent)
        self._bytes_in_flight -= sent.bytes
        self._progress_s = now_s
        if reason_code == SUCCESS:
            self._backoff.reset()
            self._got_through = True
            if sent.mode == Mode.STRUCTURED:
                self._breaker.reset()
            else:
                self._breaker.columnar_taken(now_s)
            self._shrink = max(0, self._shrink - 1)
            if sent.mark is not None:
                short = not self._in_flight and not filled
                self.speed.acknowledged(sent.bytes, sent.mark, now_s, short=short)
            sent.durable = True
            return self._advance(sent.lane)
        if sent.generation != self.generation:
            return []  # in the wake of an earlier refusal
        self.refusals += 1
        self.last_error = f"the cloud refused a batch: 0x{reason_code:02x} {reason}".rstrip()
        self._rewind()
        word = reason.partition(":")[0]
        if reason_code != PAYLOAD_FORMAT_INVALID or word in ("version", "run"):
            self._hold_until_s = now_s + self._backoff.next_s()
            return []
        return self._suspect(sent, word, self.last_error)

    def progressed(self, now_s: float) -> None:
        """Note that the peer took bytes of what is in flight, though it has not answered."""
        self._progress_s = now_s

    def next_deadline_s(self) -> float | None:
        """Return when `handle_timeout` has something to do; None while connected and idle."""
        if not self.connected:
            return self._rotation.dial_at_s
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
        """Say what of a lane has become durable."""
        done = self._lanes[lane].advance(lane)
        if done is None:
            return []
        self._settle(lane, done.after_seq, done.seq)
        return [done]

    def _rewind(self) -> None:
        """Make everything in flight stale: it will be read and encoded again."""
        self.generation += 1
        self._fresh = True
        for cursor in self._lanes:
            cursor.rewind()

    def _suspect(self, sent: Sent, word: str, cause: str) -> list[UplinkEvent]:
        """Choose how the readings of a refused batch are tried next."""
        cursor = self._lanes[sent.lane]
        if sent.mode == Mode.STRUCTURED:
            if word == "mode":
                self._breaker.unsupported()
                return []
            self._breaker.failed(self._progress_s)
        if not cursor.refused(sent, too_large=word == "too-large"):
            return []
        if not sent.count:  # tombstones alone: there is nothing to set aside
            cursor.suspect = None
            self._hold_until_s = self._progress_s + self._backoff.next_s()
            return []
        if sent.after_seq != cursor.acked_seq:  # what lies before it has to be settled first
            return []
        self._setting_aside = True
        return [SetAside(sent.lane, sent.after_seq, sent.first_seq, sent.last_seq, cause)]
