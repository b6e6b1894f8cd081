"""What is retained under a subscription's filter, on its way to one session.

MQTT 5.0 sections 3.3.1.3 and 3.8.3.1. What is there when the subscription is made is sent as fast
as the client takes it, many messages in one write (benchmarks/retained.py). Invariant: a message
that was replaced or forgotten meanwhile is not sent any more; the subscription brings what is new.
"""

from __future__ import annotations

from operator import is_
from typing import Final

from mqtt.broker.router import Router
from mqtt.packets import Subscription
from mqtt.server_messages import Message
from mqtt.session import Session

__all__ = ["RetainedFeed"]

_BYTES_AT_ONCE: Final = 64 << 10


class RetainedFeed:
    """Retained messages that a session is still to be sent [MQTT-3.3.1-8] [MQTT-3.3.1-9].

    Args:
        router: Holds them.
        session: Whose subscription it is.
        subscription: Its filter is not a shared one.
        identifier: The subscription identifier as an encoded property, b"" for none.
    """

    __slots__ = (
        "_at",
        "_identifier",
        "_messages",
        "_names",
        "_qos",
        "_router",
        "_session",
        "topic_filter",
    )

    def __init__(
        self, router: Router, session: Session, subscription: Subscription, identifier: bytes
    ) -> None:
        self._router = router
        self._session = session
        self._qos = subscription.qos
        self._identifier = identifier
        self.topic_filter = subscription.topic_filter
        self._names, self._messages = router.retained.select(self.topic_filter)
        self._at = 0  # of the next one

    @property
    def is_done(self) -> bool:
        """Return True when nothing is left."""
        return self._at >= len(self._names)

    def send(self, limit: int, now_s: float) -> int:
        """Offer the next messages, at most `limit`; return how many were gone through."""
        at = self._at
        names = self._names[at : at + limit]
        messages = self._messages[at : at + limit]
        current = list(map(is_, map(self._router.retained.get, names), messages))
        if not all(current):
            messages = messages[: current.index(False)]
        taken = self._session.offer_together(messages, self._qos, self._identifier, _BYTES_AT_ONCE)
        if not taken:
            taken = self._send_singly(names, messages, now_s)
        if taken == len(messages) < len(names):
            taken += 1  # the one that is not retained any more
        self._at += taken
        return taken

    def _send_singly(self, names: list[str], messages: list[Message], now_s: float) -> int:
        session = self._session
        taken = 0
        for name, message in zip(names, messages, strict=False):
            link = session.link
            if link is None or not link.writable:
                break
            if self._router.still_retained(name, message, now_s):
                lower = min(message.qos, self._qos)
                session.offer(message, lower, True, self._identifier, now_s)
                message.forget_frames()
            taken += 1
        return taken
