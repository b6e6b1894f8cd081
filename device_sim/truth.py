"""Truth: what each device put on the wire, in order, and what was acknowledged to it.

A publish is named by a key, attempt and counter in one integer, so that a device that goes from
reading to reading adds to one range: a day of a device is a few ranges, whatever it sent.

Invariants: `sent` holds, in the order of sending, inclusive key ranges as flat pairs; a key that
was sent twice (redelivered by MQTT under the same stamp) is in it twice; every acknowledged key
was sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bridge.intervals import IntervalSet

__all__ = ["DeviceTruth", "Truth", "counter_of", "key_of"]

_COUNTER_BITS = 40
_COUNTER_MASK = (1 << _COUNTER_BITS) - 1


def key_of(attempt: int, counter: int) -> int:
    """Return the name of a device's publish."""
    return attempt << _COUNTER_BITS | counter


def counter_of(key: int) -> int:
    """Return which reading a publish carried."""
    return key & _COUNTER_MASK


class DeviceTruth:
    """The publishes of one device."""

    __slots__ = ("acked", "sent")

    def __init__(self) -> None:
        self.sent: list[int] = []  # first, last, first, last, ...
        self.acked = IntervalSet()

    def on_sent(self, key: int) -> None:
        """Note a publish written to the connection."""
        sent = self.sent
        if sent and sent[-1] + 1 == key:
            sent[-1] = key
        else:
            sent += (key, key)

    def on_acked(self, key: int) -> None:
        """Note an acknowledgement with success."""
        self.acked.add(key, key)

    def wire(self) -> Iterator[int]:
        """Yield the keys in the order they were sent."""
        sent = self.sent
        for at in range(0, len(sent), 2):
            yield from range(sent[at], sent[at + 1] + 1)

    def readings(self) -> int:
        """Return how many readings were ever sent: one past the highest counter."""
        return max((counter_of(last) + 1 for last in self.sent[1::2]), default=0)


@dataclass(slots=True)
class Truth:
    """What a run did, device by device; the part of the report that nothing else can know."""

    run: str
    stamped: bool  # payloads that can carry a stamp do
    devices: list[DeviceTruth] = field(default_factory=list)

    def publishes(self) -> int:
        """Return how many publishes went out, each attempt counted."""
        return sum(
            device.sent[at + 1] - device.sent[at] + 1
            for device in self.devices
            for at in range(0, len(device.sent), 2)
        )

    def acked(self) -> int:
        """Return how many publishes were acknowledged."""
        return sum(device.acked.count() for device in self.devices)
