"""What the cloud will never take, on its way from the lane into the journal's dead letters.

A reading the cloud refuses for good, or that cannot be read or encoded, must not hold up what comes
after it: it is set aside with its cause, and its lane moves on. Until the journal has it there, it
stays to do, and the lane stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from bridge.batch import EntryEncoder
from bridge.readings import FLAG_QOS_MASK, FLAG_RETAIN, Readings
from bridge.uplink_events import Grant, SetAside, UplinkEvent
from bridge.uplink_state import UplinkState
from edge.contract import JournalReader, Lane
from edge.readings import CommitError
from edge.segments import Segment, pack_segment
from edge.uplink_lanes import UplinkLanes, journal_lane
from edge.uplink_settle import Settler
from mqtt.frames import encode_publish
from runtime.clock import Clock

__all__ = ["Asides"]


class Asides:
    """Moves refused readings to the dead letters.

    Args:
        gateway: The gateway's id.
        journal: What keeps the dead letters.
        lanes: Reads a refused reading again.
        state: Told once a reading is set aside.
        settler: Told what its lane need not keep any more.
        clock: Gives the time of that.

    Attributes:
        readings: How many have been set aside.
    """

    def __init__(
        self,
        gateway: str,
        journal: JournalReader,
        lanes: UplinkLanes,
        state: UplinkState,
        settler: Settler,
        clock: Clock,
    ) -> None:
        self.readings = 0
        self._gateway = gateway
        self._journal = journal
        self._lanes = lanes
        self._state = state
        self._settler = settler
        self._clock = clock
        self._waiting: list[tuple[SetAside, bytes]] = []  # to do; b"" = encode the readings
        self._log = structlog.get_logger(component="uplink").bind(gateway=gateway)

    def add(self, event: SetAside) -> None:
        """Have refused readings set aside by the next `finish`."""
        self._waiting.append((event, b""))

    def unreadable(self, grant: Grant, error: CommitError) -> None:
        """Have a commit set aside that holds no publishes, once what lies before it is settled."""
        commit = error.commit
        last_seq = commit.first_seq + commit.count - 1
        events: Sequence[UplinkEvent] = self._state.unreadable(
            grant, first_seq=commit.first_seq, last_seq=last_seq, cause=str(error)
        )
        self._waiting += [(event, commit.body) for event in events if isinstance(event, SetAside)]

    async def finish(self) -> None:
        """Move what waits to the dead letters; raises what the journal raises."""
        while self._waiting:
            event, body = self._waiting[0]
            lane = journal_lane(event.lane)
            if not body:
                readings = await self._lanes.take_one(event.lane, event.after_seq)
                if readings is not None:
                    body = self._letter_of(readings, lane)
            await self._journal.set_aside(lane, event.first_seq, event.last_seq, event.cause, body)
            self._waiting.pop(0)
            self._state.set_aside_done(event, self._clock.monotonic_s())
            self._settler.trim(lane, event.after_seq, event.last_seq)
            self.readings += event.last_seq - event.first_seq + 1
            self._log.error(
                "readings_set_aside",
                first_seq=event.first_seq,
                last_seq=event.last_seq,
                cause=event.cause,
            )

    def _letter_of(self, readings: Readings, lane: Lane) -> bytes:
        """Return one reading as a dead letter keeps it: an entry, or, if need be, a body of 3.1."""
        try:
            epoch = self._journal.epoch
            return EntryEncoder().encode(self._gateway, epoch, readings, lane=lane)
        except Exception:  # noqa: BLE001 - the very fault it is set aside for
            (topic, _), flags = readings.sources[readings.source_index[0]], readings.flags[0]
            first_byte = 0x30 | (flags & FLAG_QOS_MASK) << 1 | bool(flags & FLAG_RETAIN)
            block = readings.properties[0]
            frame = encode_publish(first_byte, topic.encode(), 1, block, readings.payloads[0], 5)
            return pack_segment(Segment(5, "", readings.times_us[0], 1, frame))
