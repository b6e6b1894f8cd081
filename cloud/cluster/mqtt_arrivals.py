"""QoS 2 publishes that are in the log and in no record: whoever takes a session over asks here.

Such a publish is appended to the log, then its identifier goes into the record of its publisher's
session, and then PUBREC is sent. When the owner dies between the first two, the client sends it
again to the next owner, which takes its identifier for one that was received and appends nothing.
Each publish has a number that rises; a record names the last whose identifier it has.

Invariant: what is kept of a client has higher numbers than its record, as far as that was seen.
"""

from __future__ import annotations

__all__ = ["Arrivals"]


class Arrivals:
    """Those of all lasting sessions of a cluster, as one node has read log and records."""

    def __init__(self) -> None:
        self._received: dict[str, int] = {}  # by client id, as its record says; 0 is left out
        self._open: dict[str, dict[int, int]] = {}  # client id -> number -> packet identifier

    def __len__(self) -> int:
        """Return of how many clients something is kept."""
        return len(self._open)

    def note(self, client_id: str, number: int, packet_id: int) -> None:
        """A publish was read in the log."""
        if number > self._received.get(client_id, 0):
            self._open.setdefault(client_id, {})[number] = packet_id

    def seen(self, client_id: str, received: int) -> None:
        """A record was seen that has every identifier up to a number."""
        if received:
            self._received[client_id] = received
        numbers = self._open.get(client_id)
        if numbers is None:
            return
        for number in [one for one in numbers if one <= received]:
            del numbers[number]
        if not numbers:
            del self._open[client_id]

    def ended(self, client_id: str) -> None:
        """A session has ended."""
        self._received.pop(client_id, None)
        self._open.pop(client_id, None)

    def missing(self, client_id: str, received: int) -> list[tuple[int, int]]:
        """Return number and packet identifier of what was read past a record, oldest first."""
        numbers = self._open.get(client_id, {})
        return sorted((number, one) for number, one in numbers.items() if number > received)
