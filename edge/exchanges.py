"""The QoS 2 publishes in the journal, for a session store that did not hear of them before a crash.

`mqtt.broker.seams.Exchanges` on a journal. A QoS 2 publish is committed to the journal first and to
the sessions' file after that; the store's mark says how far it knows the journal, and what lies
behind the mark is read again at the next start: client id and packet identifier are in the bodies.

Invariant: while a mark is on its way to the disk no row behind the last durable one is deleted,
unless a limit evicts it; so a publish the cloud has long acknowledged is still found.
"""

from __future__ import annotations

import asyncio

import structlog

from edge.contract import Commit
from edge.journal import Journal
from edge.segments import SegmentError, unpack_body
from mqtt.errors import MqttError
from mqtt.frames import parse_publishes
from mqtt.inbound_qos_2 import publish_check

__all__ = ["JournalExchanges"]

log = structlog.get_logger(component="capture")

READ_BYTES = 1 << 20


class JournalExchanges:
    """What a journal remembers of QoS 2 publishes."""

    def __init__(self, journal: Journal) -> None:
        """Hold everything, until the store has said how far it knows the journal."""
        self._journal = journal
        journal.hold_after(0)

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and highest seq; a commit's publishes are settled in the turn that it is made."""
        return self._journal.epoch, self._journal.last_seq

    def hold(self, position: tuple[int, int] | None) -> None:
        """Delete no row after a position; None: whatever is not needed."""
        self._journal.hold_after(None if position is None else position[1])

    async def since(self, position: tuple[int, int]) -> list[tuple[str, int, int]]:
        """Return the QoS 2 publishes after a position, oldest first.

        A row that cannot be read is left out: it is the journal's business, and its publishes
        come again as new ones.
        """
        found: list[tuple[str, int, int]] = []
        async for commit in self._journal.committed_after(position[1], bytes_max=READ_BYTES):
            found += await asyncio.to_thread(_exchanges, commit)
        if found:
            log.info("qos_2_recovered", publishes=len(found))
        return found


def _exchanges(commit: Commit) -> list[tuple[str, int, int]]:
    """Return client id, packet identifier and check of each QoS 2 publish of a commit."""
    try:
        return [
            (segment.client_id, packet_id, publish_check(topic, payload))
            for segment in unpack_body(commit.body)
            for first_byte, topic, packet_id, _, payload in parse_publishes(
                segment.frames, segment.version
            )
            if first_byte & 0x06 == 0x04
        ]
    except (SegmentError, MqttError) as error:
        log.warning("commit_unreadable", first_seq=commit.first_seq, error=str(error))
        return []
