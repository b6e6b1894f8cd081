"""A session by itself: what it sends, without a broker."""

from __future__ import annotations

from mqtt.frames import parse_publishes, split
from mqtt.server_messages import Message
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy

__all__ = ["FakeLink", "connected", "message", "offer"]


class FakeLink:
    """A connection that keeps what is sent."""

    def __init__(self, receive_maximum: int = 0xFFFF, limit: int = 0) -> None:
        self.version = 4
        self.receive_maximum = receive_maximum
        self.writable = True
        self.bytes_sent = 0
        self.limit = limit
        self.sent: list[bytes] = []

    def send(self, data: bytes, /) -> None:
        self.sent.append(data)

    def publish_frame(
        self, message: Message, first_byte: int, packet_id: int, identifiers: bytes, now_s: float
    ) -> bytes | None:
        head, tail = message.frame_parts(first_byte & 0xF7, 4)
        if first_byte & 6:
            head = bytes((first_byte,)) + head[1:] + packet_id.to_bytes(2, "big") + tail
        return None if self.limit and len(head) > self.limit else head

    def take(self) -> list[tuple[str, int, bytes, bool]]:
        """Return (kind, packet id, payload, dup) of what was sent since the last time."""
        told = []
        for data in self.sent:
            first, body, _ = split(data) or (0, 0, 0)
            if first >> 4 == 3:
                ((first, _, packet_id, _, payload),) = parse_publishes(data, 4)
                told.append(("publish", packet_id, payload, bool(first & 8)))
            else:
                told.append(("pubrel", int.from_bytes(data[body:], "big"), b"", False))
        self.sent.clear()
        return told


def message(text: str = "x", qos: int = 1, expires_s: float = 0.0) -> Message:
    """Return a message of topic `t`."""
    return Message(b"t", text.encode(), qos, expires_s=expires_s)


def connected(
    policy: SessionPolicy | None = None, receive_maximum: int = 0xFFFF
) -> tuple[Session, FakeLink]:
    """Return a session that is on a connection, and that."""
    session, link = Session("c", policy or SessionPolicy()), FakeLink(receive_maximum)
    session.attach(link)
    return session, link


def offer(session: Session, *texts: str, qos: int = 1, now_s: float = 0.0) -> list[bool]:
    """Offer messages to a session; return which of them it took."""
    return [session.offer(message(text, qos), qos, False, b"", now_s) for text in texts]
