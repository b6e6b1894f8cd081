"""What sessions subscribe to: one entry a subscription, and the members of shared ones.

MQTT 5.0 sections 3.8, 4.7 and 4.8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from mqtt.filter_calls import native
from mqtt.packets import Subscription
from mqtt.primitives import encode_variable_integer, read_variable_integer

if TYPE_CHECKING:
    from mqtt.session import Session

__all__ = ["ShareGroup", "Subscribed", "identifier_property", "subscribed"]


class Subscribed:
    """One subscription of one session; never changes but for `share`."""

    __slots__ = (
        "identifiers",
        "no_local",
        "qos",
        "retain_as_published",
        "session",
        "share",
        "topic_filter",
    )

    own: ClassVar[None] = None  # as `mqtt.server_routes.Target` has it, which this may stand for

    def __init__(
        self, session: Session, subscription: Subscription, identifiers: bytes = b""
    ) -> None:
        self.session = session
        self.topic_filter = subscription.topic_filter
        self.qos = subscription.qos
        self.no_local = subscription.no_local
        self.retain_as_published = subscription.retain_as_published
        self.identifiers = identifiers  # encoded property, b"" for none
        self.share: ShareGroup | None = None

    @property
    def options(self) -> int:
        """QoS, no local and retain as published, as a v5 SUBSCRIBE has them."""
        return self.qos | self.no_local << 2 | self.retain_as_published << 3

    @property
    def identifier(self) -> int:
        """The subscription identifier, 0 for none."""
        return read_variable_integer(self.identifiers, 1, 5)[0] if self.identifiers else 0


def subscribed(
    session: Session, subscriptions: Sequence[Subscription], identifiers: bytes
) -> list[Subscribed]:
    """Return what subscriptions make of a session, one for each."""
    if native is not None:
        return native.entries(Subscribed, session, subscriptions, identifiers)
    return [Subscribed(session, each, identifiers) for each in subscriptions]


class ShareGroup:
    """The members of one shared subscription, which take turns (section 4.8.2)."""

    __slots__ = ("_order", "_turn", "members", "topic_filter")

    def __init__(self, topic_filter: str) -> None:
        self.topic_filter = topic_filter  # with `$share/{name}/`
        self.members: dict[Session, Subscribed] = {}
        self._order: tuple[Subscribed, ...] = ()
        self._turn = 0  # index in `_order` of whoever is asked first

    def add(self, entry: Subscribed) -> None:
        """Let a session take its turns, or change its terms."""
        self.members[entry.session] = entry
        entry.share = self
        self._order = tuple(self.members.values())

    def remove(self, session: Session) -> None:
        """Let a session take no more turns."""
        self.members.pop(session, None)
        self._order = tuple(self.members.values())

    def choose(self, size: int, *, besides: Session | None = None) -> Subscribed | None:
        """Return who gets the next message: a connected member with room, else a connected one.

        Only when nobody connected can queue it does a session that waits for its client get it,
        and a full one only when all are.
        """
        order = self._order
        count = len(order)
        first = self._turn
        connected = waiting = full = None
        for index in range(first, first + count):
            entry = order[index % count]
            session = entry.session
            if session is besides:
                continue
            if not session.takes(size):
                full = full or entry
            elif session.has_room():
                self._turn = (index + 1) % count
                return entry
            elif session.link is None:
                waiting = waiting or entry
            else:
                connected = connected or entry
        if count:
            self._turn = (first + 1) % count
        return connected or waiting or full


def identifier_property(identifier: int) -> bytes:
    """Return a subscription identifier as a PUBLISH carries it; b"" for none."""
    return b"\x0b" + encode_variable_integer(identifier) if identifier else b""
