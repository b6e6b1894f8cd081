"""What the uplink sends on a connection, and what each answer means for the journal.

A batch is granted by the state machine, read from its lane, encoded and published; when its PUBACK
comes, what the state machine makes of it is carried out: the journal forgets what is durable, and
what the cloud will never take is set aside.

Invariant: between an await and the next step the connection may have gone, or a refusal may have
made the grant stale; then nothing is sent, and the readings are read again.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from bridge.envelope import LinkLane, Mode
from bridge.errors import LinkError
from bridge.readings import Readings
from bridge.uplink_events import Durable, Grant, Sent, SetAside, UplinkEvent
from bridge.uplink_state import PAYLOAD_FORMAT_INVALID, UplinkState
from edge.readings import CommitError, packet_bytes
from edge.uplink_asides import Asides
from edge.uplink_batches import BatchMaker
from edge.uplink_connection import UplinkConnection
from edge.uplink_lanes import UplinkLanes, journal_lane
from edge.uplink_settle import Settler, link_tombstones
from edge.uplink_status import UplinkMeter
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["UplinkSender"]

_LOG_EVERY_S = 30.0
_NOTHING = Readings(range(0), [], [], [], [], [], [])


class UplinkSender:
    """Sends batches and takes their answers.

    Args:
        gateway: The gateway's id, for the log.
        batch_readings: How many readings fill a batch.
        state: Decides.
        lanes: What is read, and in which turn.
        batches: Writes batches.
        settler: Makes the journal forget.
        asides: Takes what the cloud never will.
        meter: Counts.
        clock: Gives time to the state machine.
    """

    def __init__(
        self,
        gateway: str,
        batch_readings: int,
        state: UplinkState,
        lanes: UplinkLanes,
        batches: BatchMaker,
        settler: Settler,
        asides: Asides,
        meter: UplinkMeter,
        clock: Clock,
    ) -> None:
        self._batch_readings = batch_readings
        self._state = state
        self._lanes = lanes
        self._batches = batches
        self._settler = settler
        self._asides = asides
        self._meter = meter
        self._clock = clock
        self._sent: dict[int, tuple[Sent, int]] = {}  # by packet id, with its packet_bytes
        self._log = structlog.get_logger(component="uplink").bind(gateway=gateway)

    def connected(self) -> None:
        """Begin on a new connection: no answer to an older one's batches comes any more."""
        self._sent.clear()

    def next_lane(self, now_s: float) -> tuple[LinkLane | None, float]:
        """Return the lane to send now, or None and how long to wait unless something happens."""
        lane, wait_s = self._lanes.next(now_s, self._batch_readings)
        if lane is not None or not self._state.can_send(now_s):
            return lane, wait_s
        stones = self._settler.unreported(self._state.generation)
        return (LinkLane.LIVE, 0.0) if stones else (None, wait_s)

    async def send(self, connection: UplinkConnection, lane: LinkLane) -> None:
        """Make the next batch of a lane and send it."""
        state = self._state
        bodies = self._batches.bodies
        began_s = self._clock.monotonic_s()
        mode = bodies.wanted(began_s, self._lanes.waiting(), state.batches_in_flight)
        grant = state.grant(lane, mode)
        try:
            readings, historical = await self._lanes.take(grant, self._clock.wall_us())
        except CommitError as error:
            self._asides.unreadable(grant, error)
            return
        if grant.generation != state.generation or connection.lost:
            return
        if grant.fresh:
            self._batches.reset()
        try:
            grant, body = await self._batches.body(grant, readings)
        except Exception as error:  # noqa: BLE001 - what no encoder takes must not stop its lane
            self._refuse(grant, readings, "encode", f"cannot be encoded: {error!r}")
            return
        if grant.generation != state.generation or connection.lost:
            return
        stones = self._settler.unreported(state.generation)
        if readings is None:
            if lane is LinkLane.BACKLOG:
                self.carry_out(state.backlog_read_out())
            if not stones or lane is not LinkLane.LIVE:
                return
            readings = _NOTHING
        try:
            payload = self._batches.payload(
                grant, readings, body, link_tombstones(stones), historical=historical
            )
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(grant, readings, "encode", f"cannot be encoded: {error!r}")
            return
        first, last = _span(readings, grant)
        if state.too_large(connection.packet_bytes(len(payload))):
            cause = f"{len(payload)} bytes; the cloud takes at most {connection.packet_bytes_max}"
            self._refuse(grant, readings, "too-large", cause)
            return
        sent = state.sent(
            grant,
            self._clock.monotonic_s(),
            first_seq=first,
            last_seq=last,
            count=len(readings),
            batch_bytes=len(payload),
            tombstones=link_tombstones(stones),
        )
        self._settler.reported(stones)
        self._lanes.sent(lane, len(payload), len(readings))
        self._publish(connection, payload, sent, packet_bytes(readings))
        if sent.mode == Mode.STRUCTURED:
            bodies.governor.made(sent.count, self._clock.monotonic_s() - began_s)

    def _refuse(self, grant: Grant, readings: Readings | None, word: str, cause: str) -> None:
        """Note that a batch cannot be sent: fewer of its readings are tried next."""
        found = readings if readings is not None else _NOTHING
        first, last = _span(found, grant)
        count = len(found)
        self.carry_out(
            self._state.refused_here(
                grant, first_seq=first, last_seq=last, count=count, cause=cause, word=word
            )
        )

    def _publish(self, connection: UplinkConnection, payload: bytes, sent: Sent, size: int) -> None:
        try:
            packet_id = connection.publish(payload)
        except LinkError as error:
            connection.abort(str(error))
            return
        self._sent[packet_id] = (sent, size)

    def answered(self, packet_id: int, reason_code: int, reason: str) -> None:
        """Take the answer to a batch."""
        found = self._sent.pop(packet_id, None)
        if found is None:
            return
        sent, size = found
        refusals = self._state.refusals
        now_s = self._clock.monotonic_s()
        events = self._state.answered(sent, reason_code, reason, now_s)
        if sent.durable:
            status = self._meter.status
            status.batches_sent += 1
            status.structured_batches += sent.mode == Mode.STRUCTURED
            status.packet_bytes += size
            if sent.generation == self._state.generation:
                self._batches.bodies.acknowledged(sent.mode, sent.count, now_s)
        if self._state.refusals > refusals:
            if reason_code == PAYLOAD_FORMAT_INVALID:
                self._batches.bodies.refused()
            limited(self._log, "batch_refused", _LOG_EVERY_S).warning(
                "batch_refused",
                reason_code=f"0x{reason_code:02x}",
                reason=reason,
                first_seq=sent.first_seq,
                count=sent.count,
            )
        self.carry_out(events)

    def carry_out(self, events: Sequence[UplinkEvent]) -> None:
        """Do what the state machine has decided."""
        for event in events:
            if isinstance(event, Durable):
                self._settler.forget(event.tombstones)
                self._settler.trim(journal_lane(event.lane), event.after_seq, event.seq)
                self._meter.acknowledged(event.readings)
            elif isinstance(event, SetAside):
                self._asides.add(event)


def _span(readings: Readings, grant: Grant) -> tuple[int, int]:
    """Return first and last seq of a batch; of one without readings the seq it comes after."""
    if not len(readings):
        return grant.after_seq, grant.after_seq
    return readings.seqs[0], readings.seqs[-1]
