"""What the queues of all sessions of a broker may hold, and which of them are full.

A queue is *crowded* when it is more than half full, or all queues together are: as long as none
is, nobody has to look before delivering. It is *full* from the moment that a publish did not find
room in it until it is at most half full again; who publishes waits meanwhile, or is refused
(docs/adr/0006-full-queues.md).

Invariants:
- every session whose queue is crowded is in `crowded`; one that is not may be in it for a while;
- `full` names sessions that a publish did not find room in, and since when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mqtt.session import Session

__all__ = ["DROP_NEWEST", "DROP_OLDEST", "REFUSE", "SessionPolicy"]

REFUSE: Final = "refuse"
DROP_NEWEST: Final = "drop_newest"
DROP_OLDEST: Final = "drop_oldest"

_PUBLISH_BYTES_MIN: Final = 7  # of a PUBLISH with QoS 1 or 2
_TARGETS: Final = 1000  # sessions one publish is taken to reach at most


def _nothing() -> None:
    """Nobody waits for room."""


class SessionPolicy:
    """Limits of every session of a broker, and what was dropped by them, by reason.

    Args:
        queue_messages_max: Messages that wait for one client.
        queue_bytes_max: Their bytes.
        inflight_max: Unacknowledged at once, however large the client's receive maximum.
        queues_bytes_max: Bytes that wait for all clients together.
        queue_full: What becomes of a message that finds its queue full: REFUSE (its publisher is
            told or waits, and only what has none is dropped), DROP_NEWEST or DROP_OLDEST.

    Attributes:
        drops: Messages that a client will not get, by reason.
        sent: PUBLISH packets by QoS.
        queued_bytes: Of all sessions.
        reserved_messages: Publishes that were found to have room and come to the queues later.
        reserved_bytes: Their bytes, at most.
        crowded: Sessions whose queues are, or were lately, more than half full.
        full: Sessions that a publish found full and that are not half empty since: since when,
            monotonic.
        on_eased: Called when one of them is half empty, or gone.
        leap_bytes: A read of this many bytes of publishes fills no queue that was not crowded.
    """

    __slots__ = (
        "bytes_half",
        "crowded",
        "drops",
        "full",
        "inflight_max",
        "leap_bytes",
        "messages_half",
        "on_eased",
        "queue_bytes_max",
        "queue_full",
        "queue_messages_max",
        "queued_bytes",
        "queues_bytes_max",
        "reserved_bytes",
        "reserved_messages",
        "sent",
        "total_half",
    )

    def __init__(
        self,
        queue_messages_max: int = 10_000,
        queue_bytes_max: int = 16 << 20,
        inflight_max: int = 100,
        queues_bytes_max: int = 64 << 20,
        queue_full: str = REFUSE,
    ) -> None:
        self.drops: dict[str, int] = {}
        self.sent = [0, 0, 0]
        self.queued_bytes = 0
        self.reserved_messages = 0
        self.reserved_bytes = 0
        self.crowded: set[Session] = set()
        self.full: dict[Session, float] = {}
        self.on_eased: Callable[[], None] = _nothing
        self.limit(queue_messages_max, queue_bytes_max, inflight_max, queues_bytes_max, queue_full)

    def limit(
        self,
        queue_messages_max: int,
        queue_bytes_max: int,
        inflight_max: int,
        queues_bytes_max: int,
        queue_full: str,
    ) -> None:
        """Take other limits; the caller adds to `crowded` whoever is so by them."""
        self.queue_messages_max = queue_messages_max
        self.queue_bytes_max = queue_bytes_max
        self.inflight_max = inflight_max
        self.queues_bytes_max = queues_bytes_max
        self.queue_full = queue_full
        self.messages_half = queue_messages_max // 2
        self.bytes_half = queue_bytes_max // 2
        self.total_half = queues_bytes_max // 2
        self.leap_bytes = min(
            self.messages_half * _PUBLISH_BYTES_MIN, self.bytes_half, self.total_half // _TARGETS
        )

    def dropped(self, reason: str, count: int = 1) -> None:
        """Count messages that a client will not get."""
        self.drops[reason] = self.drops.get(reason, 0) + count

    def takes(self, size: int) -> bool:
        """Return True when all queues together have room for `size` bytes more."""
        return self.queued_bytes + self.reserved_bytes + size <= self.queues_bytes_max

    def look_at(self, session: Session) -> None:
        """A full queue has lost a message: it may be half empty now."""
        if session in self.full and not session.is_crowded():
            del self.full[session]
            self.on_eased()
